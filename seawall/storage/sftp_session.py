"""A conversation with an SFTP server: many requests under way at once, from several threads.

Large requests, sent without waiting for the answers before, are what makes it quick: a request's bytes go to the socket
from where they lie, and an answer's are read into the object that callers get.

Invariants: one thread reads all answers, so a sender can wait for room without stopping them; a session that lost its
connection or met nonsense is `lost` for good, and every request that was or is made says so.

Not guaranteed: that a request which was not answered was not done.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from seawall.storage.base import Bytes
from seawall.storage.sftp_packets import (
    NO_ATTRIBUTES,
    VERSION,
    Attributes,
    EndOfFile,
    Fields,
    Kind,
    Nonsense,
    NoSuchFile,
    Open,
    Unsupported,
    number,
    permissions,
    refusal,
    span,
    string,
    text,
)
from seawall.storage.ssh import Ending

# What every server takes (draft, section 3), and the most that we ask of one that says it takes more: OpenSSH's own
# limit, a packet of 256 KiB.
_SAFE_BYTES = 32 * 1024
_MOST_BYTES = 256 * 1024 - 1024

# Bytes of one file that are asked for before they are wanted: twice what OpenSSH's client lets be on the way.
_AHEAD_BYTES = 4 * 1024 * 1024

# Answers are at most as large as what was asked for; lists of names may be larger.
_LARGEST_ANSWER = 16 * 1024 * 1024

# A server that answers nothing at all for so long, while something is asked of it, is given up.
_PATIENCE_SECONDS = 120.0
_GOODBYE_SECONDS = 5.0


class Lost(Exception):
    """The session is gone."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.words)
        self.ending = ending


class Line(Protocol):
    """What carries the bytes: `ssh.Line`, or in tests a server without one."""

    socket: socket.socket

    def end(self) -> Ending:
        """Wait until whatever carried it is gone, and say why."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A packet's type and what follows its number."""

    kind: int
    content: bytes


class Session:
    """A conversation with a server; safe to use from several threads.

    Every function that asks something may raise Refused, where the server's answer is no success, and Lost.

    Args:
        patience_seconds: how long the server may be silent while something is asked of it.

    Raises:
        Lost: no conversation came about.
    """

    def __init__(self, line: Line, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._line = line
        self._patience = patience_seconds
        self._sending = threading.Lock()
        self._awaited: dict[int, Future[Answer]] = {}
        self._number = 0
        self._heard_at = time.monotonic()
        self._given_up: deque[bytes] = deque()
        self._ending: Ending | None = None
        self._greeting: Future[Answer] = Future()
        self._listener = threading.Thread(target=self._listen, name="sftp", daemon=True)
        self._listener.start()
        try:
            self._extensions = self._greeted()
            self._most_read, self._most_written = self._limits()
        except BaseException:
            self._hang_up()
            raise

    @property
    def lost(self) -> bool:
        return self._ending is not None

    def close(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(OSError):
            self._line.socket.shutdown(socket.SHUT_WR)
        self._listener.join(_GOODBYE_SECONDS)
        self._hang_up()
        self._listener.join()

    # -- files

    def open(self, path: str, how: Open) -> bytes:
        """A handle of a file."""
        return self._said(self._ask(Kind.OPEN, text(path), number(how), NO_ATTRIBUTES), Kind.HANDLE).string()

    def give_up(self, handle: bytes) -> None:
        """Let a handle be closed with the next request; nobody learns whether it was.

        A reader that is given up half way may be finalized by the garbage collector: in any thread, and in the middle
        of any of this class's functions. So nothing here waits, for no answer and for no lock.
        """
        self._given_up.append(handle)

    def write(self, handle: bytes, offset: int, content: Bytes) -> None:
        """Write bytes at their place, in as many requests at once as it takes."""
        view, file = memoryview(content), string(handle)
        under_way = []
        for start in range(0, len(view), self._most_written):
            piece = view[start : start + self._most_written]
            under_way.append(self._ask(Kind.WRITE, file, span(offset + start, len(piece)), piece))
        for answer in under_way:
            self._done(answer)

    def read(self, handle: bytes, begin: int, end: int) -> Iterator[bytes]:
        """Bytes from `begin` to `end` in pieces, some of them asked for before they are wanted.

        Raises:
            EndOfFile: the file has fewer.
        """
        under_way: deque[tuple[int, int, Future[Answer]]] = deque()
        starts = iter(range(begin, end, self._most_read))
        while True:
            while len(under_way) * self._most_read < _AHEAD_BYTES and (start := next(starts, None)) is not None:
                stop = min(start + self._most_read, end)
                under_way.append((start, stop, self._read(handle, start, stop)))
            if not under_way:
                return
            yield from self._arrived(handle, *under_way.popleft())

    def sync(self, handle: bytes) -> None:
        """Make what was written durable.

        Raises:
            Unsupported: the server lacks `fsync@openssh.com`.
        """
        self._done(self._extended("fsync@openssh.com", string(handle)))

    def about(self, handle: bytes) -> Attributes:
        """What the server says of an open file."""
        return self._said(self._ask(Kind.FSTAT, string(handle)), Kind.ATTRS).attributes()

    # -- names

    def stat(self, path: str, *, follow: bool = False) -> Attributes:
        """What the server says of a name, or of what a symbolic link leads to."""
        return self._said(self._ask(Kind.STAT if follow else Kind.LSTAT, text(path)), Kind.ATTRS).attributes()

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except NoSuchFile:
            return False
        return True

    def is_folder(self, path: str) -> bool:
        """Whether a folder, or a symbolic link to one, has the name."""
        try:
            return self.stat(path, follow=True).is_folder
        except NoSuchFile:
            return False

    def folder(self, path: str) -> list[tuple[str, Attributes]]:
        """What lies in a folder, in any order."""
        handle = self._said(self._ask(Kind.OPENDIR, text(path)), Kind.HANDLE).string()
        found: list[tuple[str, Attributes]] = []
        try:
            while True:
                found += self._said(self._ask(Kind.READDIR, string(handle)), Kind.NAME).names()
        except EndOfFile:
            return [entry for entry in found if entry[0] not in (".", "..")]
        finally:
            self.give_up(handle)

    def remove(self, path: str) -> None:
        self._done(self._ask(Kind.REMOVE, text(path)))

    def make_folder(self, path: str, mode: int) -> None:
        self._done(self._ask(Kind.MKDIR, text(path), permissions(mode)))

    def remove_folder(self, path: str) -> None:
        self._done(self._ask(Kind.RMDIR, text(path)))

    def rename(self, old: str, new: str) -> None:
        self._done(self._ask(Kind.RENAME, text(old), text(new)))

    def link(self, old: str, new: str) -> None:
        """Give a file a second name.

        Raises:
            Unsupported: the server lacks `hardlink@openssh.com`.
        """
        self._done(self._extended("hardlink@openssh.com", text(old), text(new)))

    def free_bytes(self, path: str) -> int:
        """What an account without privileges can still write there.

        Raises:
            Unsupported: the server lacks `statvfs@openssh.com`.
        """
        said = self._said(self._extended("statvfs@openssh.com", text(path)), Kind.EXTENDED_REPLY)
        _, fragment, _, _, available = [said.large() for _ in range(5)]
        return fragment * available

    # -- requests

    def _greeted(self) -> frozenset[str]:
        """Begin, and learn which extensions the server has."""
        with self._sending:
            self._send(struct.pack(">IBI", 5, Kind.INIT, VERSION))
        said, found = self._said(self._greeting, Kind.VERSION), set()
        while said:
            found.add(said.text())
            said.string()
        return frozenset(found)

    def _limits(self) -> tuple[int, int]:
        """The largest read and the largest write that the server takes."""
        if "limits@openssh.com" not in self._extensions:
            return _SAFE_BYTES, _SAFE_BYTES
        said = self._said(self._extended("limits@openssh.com"), Kind.EXTENDED_REPLY)
        _, read, written = (said.large() for _ in range(3))
        return min(read or _SAFE_BYTES, _MOST_BYTES), min(written or _SAFE_BYTES, _MOST_BYTES)

    def _extended(self, name: str, *fields: Bytes) -> Future[Answer]:
        if name not in self._extensions:
            raise Unsupported(f"the server lacks {name}")
        return self._ask(Kind.EXTENDED, text(name), *fields)

    def _read(self, handle: bytes, start: int, stop: int) -> Future[Answer]:
        return self._ask(Kind.READ, string(handle), span(start, stop - start))

    def _arrived(self, handle: bytes, start: int, stop: int, answer: Future[Answer]) -> Iterator[bytes]:
        """The bytes that were asked for; where a server gave fewer, the rest is asked for anew (draft, section 6.4)."""
        while True:
            piece = self._answered(answer, Kind.DATA)
            if not 0 < len(piece) <= stop - start:
                raise Nonsense(f"{len(piece)} bytes came where {stop - start} were asked for")
            yield piece
            start += len(piece)
            if start == stop:
                return
            answer = self._read(handle, start, stop)

    def _ask(self, kind: Kind, *fields: Bytes) -> Future[Answer]:
        """Send a request; its answer is to come."""
        with self._sending:
            while self._given_up:
                self._request(Kind.CLOSE, string(self._given_up.popleft()))
            return self._request(kind, *fields)

    def _request(self, kind: Kind, *fields: Bytes) -> Future[Answer]:
        if self._ending is not None:
            raise Lost(self._ending)
        self._number = (self._number + 1) & 0xFFFFFFFF
        if not self._awaited:
            self._heard_at = time.monotonic()
        answer = self._awaited[self._number] = Future()
        self._send(struct.pack(">IBI", 5 + sum(map(len, fields)), kind, self._number), *fields)
        return answer

    def _send(self, *fields: Bytes) -> None:
        """Write a whole packet, from where its parts lie."""
        left = sum(map(len, fields))
        try:
            left -= self._line.socket.sendmsg(fields)
            if left:
                self._line.socket.sendall(b"".join(fields)[-left:])
        except OSError:
            # A part of a packet makes nonsense of all that would follow. The listener finds out what was the matter.
            self._hang_up()

    def _hang_up(self) -> None:
        """End the connection, also for a thread that waits for its bytes."""
        with contextlib.suppress(OSError):
            self._line.socket.shutdown(socket.SHUT_RDWR)

    # -- answers

    def _said(self, future: Future[Answer], kind: Kind) -> Fields:
        """The values of an answer of that kind."""
        return Fields(self._answered(future, kind))

    def _answered(self, future: Future[Answer], kind: Kind) -> bytes:
        answer = self._awaiting(future)
        if answer.kind == kind:
            return answer.content
        if answer.kind == Kind.STATUS and (refused := refusal(answer.content)) is not None:
            raise refused
        raise Nonsense(f"the server answers {answer.kind} where {kind.name} is due")

    def _done(self, future: Future[Answer]) -> None:
        answer = self._awaiting(future)
        if answer.kind != Kind.STATUS:
            raise Nonsense(f"the server answers {answer.kind} where STATUS is due")
        if (refused := refusal(answer.content)) is not None:
            raise refused

    def _awaiting(self, future: Future[Answer]) -> Answer:
        while True:
            try:
                return future.result(self._patience)
            except TimeoutError:
                if time.monotonic() - self._heard_at < self._patience:
                    continue  # it answers, only not us yet: a slow line carries first what was asked before
                self._ending = self._ending or Ending(f"no answer within {self._patience:g} seconds")
                self._hang_up()
                raise Lost(self._ending) from None

    def _listen(self) -> None:
        nonsense = None
        try:
            while True:
                self._hear()
        except Nonsense as error:
            nonsense = Ending(str(error))
            self._hang_up()
        except OSError:
            pass
        ending = self._line.end()
        with self._sending:
            # Whoever asks from now on is told; whoever asked before is told here.
            self._ending = self._ending or nonsense or ending
            left, self._awaited = [self._greeting, *self._awaited.values()], {}
        for future in left:
            if not future.done():
                future.set_exception(Lost(self._ending))
        self._line.socket.close()

    def _hear(self) -> None:
        """Take one packet and hand it to whoever waits for it."""
        length, kind, asked = struct.unpack(">IBI", self._exactly(9))
        self._heard_at = time.monotonic()
        if not 5 <= length <= _LARGEST_ANSWER:
            raise Nonsense("what answers there does not speak SFTP")
        if kind == Kind.VERSION and not self._greeting.done():
            self._greet(asked, self._exactly(length - 5))
            return
        if kind == Kind.DATA:
            # Its length is read apart, so that its bytes go to the caller as they came.
            if int.from_bytes(self._exactly(4)) != length - 9:
                raise Nonsense("an answer of the server has another length than it says")
            content = self._exactly(length - 9)
        else:
            content = self._exactly(length - 5)
        future = self._awaited.pop(asked, None)
        if future is None:
            raise Nonsense(f"the server answers what nobody asked: {kind}, {asked}")
        future.set_result(Answer(kind, content))

    def _greet(self, version: int, content: bytes) -> None:
        if version != VERSION:
            raise Nonsense(f"the server speaks SFTP {version} only")
        self._greeting.set_result(Answer(Kind.VERSION, content))

    def _exactly(self, size: int) -> bytes:
        content = self._line.socket.recv(size, socket.MSG_WAITALL) if size else b""
        if len(content) == size:
            return content
        if not content:
            raise ConnectionResetError("the other end is gone")
        # A signal may end the wait early.
        return content + self._exactly(size - len(content))
