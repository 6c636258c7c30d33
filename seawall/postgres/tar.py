"""Reading a tar archive that arrives in pieces of any size, with few steps of Python for each byte of content.

Format: POSIX 1003.1-2008, `pax` ("ustar Interchange Format" and "pax Header Block"), and GNU tar's long names
(`L`, `K`) and base-256 numbers (GNU tar manual, "Basic Tar Format"). `tarfile` of the standard library wants a
file to read from and cannot hand out content in a buffer of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from seawall.errors import ClusterError
from seawall.storage.base import Bytes

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "directory", b"2": "link"}
# A long name or a pax header is a few hundred bytes; a larger one is no server's.
_MAX_EXTENSION = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: `kind` is file, directory or link; `size` is of the content that follows, in bytes.

    Bytes of names that are no UTF-8 are kept as lone surrogates, as `os.fsdecode` does.
    """

    path: str
    kind: str
    mode: int
    size: int
    mtime: float
    link: str


@dataclass(slots=True)
class _Extension:
    """What `x`, `g`, `L` and `K` entries say of the entry after them."""

    path: str = ""
    link: str = ""
    pax: dict[str, str] = field(default_factory=dict)


class TarReader:
    """Reads one archive, entry by entry: `next`, then `readinto` until the entry's size is reached.

    Args:
        pieces: the archive's bytes; a piece need not stay valid once the next is asked for.
    """

    def __init__(self, pieces: Iterator[Bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._content = 0
        self._padding = 0
        self._defaults: dict[str, str] = {}

    def next(self) -> Member | None:
        """The next entry, None at the archive's end; content of the last one that was not read is passed over.

        Raises:
            ClusterError: these bytes are no tar archive, or it ends in the middle.
        """
        said = _Extension(pax=dict(self._defaults))
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in b"xgLK":
                self._extend(said, kind, size)
            else:
                return self._member(header, said)
        return None

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer from the entry's content; fewer bytes than its length only at the content's end.

        Raises:
            ClusterError: the archive ends in the middle.
        """
        wanted = min(len(view), self._content)
        done = 0
        while done < wanted:
            piece = self._piece(wanted - done)
            view[done : done + len(piece)] = piece
            done += len(piece)
        self._content -= wanted
        return wanted

    def _header(self) -> bytes | None:
        self._skip(self._content + self._padding)
        self._content = self._padding = 0
        header = self._exactly(_BLOCK)
        if header == _ZEROS:
            # Two zero blocks close an archive; what comes after the first carries nothing.
            for _ in self._pieces:
                pass
            return None
        stated = _number(header[148:156])
        if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
            raise _broken("a header's checksum is wrong")
        return header

    def _extend(self, said: _Extension, kind: bytes, size: int) -> None:
        if size > _MAX_EXTENSION:
            raise _broken(f"an extended header of {size} bytes")
        content = self._exactly(size)
        self._skip(-size % _BLOCK)
        if kind == b"L":
            said.path = _text(content)
        elif kind == b"K":
            said.link = _text(content)
        else:
            records = _pax_records(content)
            said.pax.update(records)
            if kind == b"g":
                self._defaults.update(records)

    def _member(self, header: bytes, said: _Extension) -> Member:
        kind = _KINDS.get(header[156:157])
        path = said.pax.get("path") or said.path or _ustar_path(header)
        if kind is None:
            raise _broken(f"{path!r} is of type {header[156:157]!r}")
        size = int(said.pax.get("size") or _number(header[124:136])) if kind == "file" else 0
        self._content, self._padding = size, -size % _BLOCK
        link = said.pax.get("linkpath") or said.link or _text(header[157:257])
        mtime = float(said.pax.get("mtime") or _number(header[136:148]))
        mode = _number(header[100:108]) & 0o7777
        return Member(path.rstrip("/"), kind, mode, size, mtime, link if kind == "link" else "")

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            piece = self._piece(count)
            parts.append(bytes(piece))
            count -= len(piece)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._piece(count))

    def _piece(self, most: int) -> memoryview:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                raise _broken("it ends in the middle")
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken


def _broken(what: str) -> ClusterError:
    return ClusterError(f"the server's tar archive makes no sense: {what}", hint="Take the backup again.")


def _number(field_bytes: bytes) -> int:
    """A header's number: octal digits, or base-256 where the first bit is set (sizes from 8 GiB on)."""
    if field_bytes[0] & 0x80:
        return int.from_bytes(field_bytes, "big") & ((1 << (8 * len(field_bytes) - 1)) - 1)
    try:
        return int(field_bytes.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise _broken(f"{field_bytes!r} is no octal number") from error


def _text(field_bytes: bytes) -> str:
    return field_bytes.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _ustar_path(header: bytes) -> str:
    # GNU's own format has "ustar  " here and other things than a prefix behind it.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _pax_records(content: bytes) -> dict[str, str]:
    """Records of `"%d %s=%s\\n", <length>, <keyword>, <value>`; the length counts the whole record."""
    records: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(content):
            raise _broken("a pax record's length")
        record, content = content[len(digits) + 1 : int(digits) - 1], content[int(digits) :]
        keyword, _, value = record.partition(b"=")
        records[_text(keyword)] = value.decode("utf-8", "surrogateescape")
    return records
