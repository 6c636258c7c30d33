"""SFTP's packets, version 3: what is asked, what is answered, and how values are written.

The protocol is draft-ietf-secsh-filexfer-02; the extensions are those of OpenSSH's PROTOCOL file, section 4. Pure: no
byte is sent or received here, and what a server sent is believed only as far as it is long enough.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, IntFlag
from stat import S_IFMT, S_ISDIR, S_ISREG

VERSION = 3


class Kind(IntEnum):
    """Types of packets (draft, section 3)."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Open(IntFlag):
    """How a file is opened (draft, section 6.3)."""

    READ = 0x01
    WRITE = 0x02
    CREATE = 0x08
    EXCLUSIVE = 0x20


class Refused(Exception):
    """The server's answer is not success (draft, section 7)."""


class EndOfFile(Refused):
    """Nothing there any more."""


class NoSuchFile(Refused):
    """Proved absent."""


class NotPermitted(Refused):
    """The account may not."""


class Unsupported(Refused):
    """The server does not know the request."""


_REFUSALS = {1: EndOfFile, 2: NoSuchFile, 3: NotPermitted, 8: Unsupported}


class Nonsense(Exception):
    """The other end does not speak this protocol."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the server says of a file."""

    size_bytes: int
    mode: int
    modified_at: datetime

    @property
    def has_kind(self) -> bool:
        """Whether the server said what it is: a file, a folder or something else."""
        return S_IFMT(self.mode) != 0

    @property
    def is_folder(self) -> bool:
        return S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return S_ISREG(self.mode)


_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
NO_ATTRIBUTES = bytes(4)


def permissions(mode: int) -> bytes:
    """Attributes that are a mode and nothing else."""
    return struct.pack(">II", _PERMISSIONS, mode)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def span(offset: int, length: int) -> bytes:
    """A place in a file and how much there."""
    return struct.pack(">QI", offset, length)


def string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def text(value: str) -> bytes:
    return string(value.encode())


class Fields:
    """The values of an answer, one after the other.

    Every one of its functions may raise Nonsense: the answer is shorter than its values.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there are more."""
        return self._at < len(self._content)

    def taken(self, size: int) -> bytes:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise Nonsense("an answer of the server is shorter than what it holds")
        return self._content[begin : self._at]

    def number(self) -> int:
        return int.from_bytes(self.taken(4))

    def large(self) -> int:
        return int.from_bytes(self.taken(8))

    def string(self) -> bytes:
        return self.taken(self.number())

    def text(self) -> str:
        """A string that should be UTF-8; what is not, is no name of ours."""
        return self.string().decode(errors="replace")

    def attributes(self) -> Attributes:
        """What the server says of a file (draft, section 5)."""
        flags = self.number()
        size = self.large() if flags & _SIZE else 0
        self.taken(8 if flags & _OWNER else 0)
        mode = self.number() if flags & _PERMISSIONS else 0
        self.taken(4 if flags & _TIMES else 0)
        modified = self.number() if flags & _TIMES else 0
        for _ in range(2 * self.number() if flags & _EXTENDED else 0):
            self.string()
        return Attributes(size, mode, datetime.fromtimestamp(modified, UTC))

    def names(self) -> Iterator[tuple[str, Attributes]]:
        """Names with attributes (draft, section 7); between them lies a line as `ls -l` would print it."""
        for _ in range(self.number()):
            name = self.text()
            self.string()
            yield name, self.attributes()


def refusal(content: bytes) -> Refused | None:
    """What a status says (draft, section 7); None for success."""
    fields = Fields(content)
    code = fields.number()
    if code == 0:
        return None
    said = fields.text() if fields else ""
    return _REFUSALS.get(code, Refused)(said or f"status {code}")
