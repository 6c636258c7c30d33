"""WAL that arrives as a stream of bytes, and its way into files of the spool.

    <segment>.open      the segment that is being written, its beginning durable up to `flushed`
    <segment>           complete and durable; shipped, then removed
    <segment>.partial   the last segment of a timeline that the server left; shipped, then removed
    <timeline>.history  shipped, then removed

The order that protects data: bytes → fdatasync → (complete: rename → fsync of the directory) → only then is the
position reported to the server, which may forget WAL before it. A spool file is removed only after the repository
has it. After a crash the open segment is streamed again from its beginning over the bytes that are there: they
are the same, so nothing that was reported durable is ever less than that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seawall.archive.spool import local_error, sync_directory
from seawall.errors import ClusterError, StorageError, WalConflict
from seawall.storage.base import Bytes
from seawall.wal import DEFAULT_SEGMENT_BYTES, Lsn, Segment, is_archive_name

OPEN = ".open"
_CLOSING_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The open segment's durable beginning, readable through a descriptor that the holder closes."""

    segment: Segment
    end: Lsn
    descriptor: int


class Incoming:
    """Writes a stream into segment files; used by one thread, except for `snapshot`, `received` and `flushed`.

    Args:
        directory: the receiver's spool.
        segment_bytes: of this cluster.
        closed: called when a segment is durable under its name, from the thread that closes it.
    """

    def __init__(
        self,
        directory: Path,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._closed = closed
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="archive-close")
        self._closing: list[Future[None]] = []
        self._lock = threading.Lock()
        self._segment: Segment | None = None
        self._descriptor = -1
        self._named = False
        self._broken = False
        self.received = Lsn(0)
        self.flushed = Lsn(0)

    def begin(self, position: Lsn, timeline: int) -> None:
        """Expect a stream on `timeline` from `position`, which is the beginning of a segment."""
        if position.value % self._segment_bytes:
            raise ValueError(f"{position} is no beginning of a segment")
        self.recover()
        segment = Segment.containing(position, timeline, self._segment_bytes)
        self._settle(segment)
        self.received = self.flushed = position
        self._open(segment)

    def recover(self) -> None:
        """Give up what is under way, whatever became of it, before asking `resume_at` where to go on.

        Bytes whose sync failed may be lost without another error, so they are never synced again: what was not
        closed is streamed and written once more from its beginning.
        """
        closing, self._closing = self._closing, []
        for future in closing:
            future.exception()
        self._close()
        self._broken = False

    def write(self, start: int, data: Bytes) -> bool:
        """Append bytes that begin at `start`; true when a segment was completed by them.

        Raises:
            ClusterError: the server left bytes out or repeats some.
            StorageError: the spool cannot take them.
        """
        position = self.received.value
        if start != position:
            raise ClusterError(f"WAL arrived from {Lsn(start)} where {self.received} was expected")
        view, completed = memoryview(data), False
        while view:
            offset = position % self._segment_bytes
            piece = view[: self._segment_bytes - offset]
            self._write_at(piece, offset)
            position += len(piece)
            view = view[len(piece) :]
            self.received = Lsn(position)
            if position % self._segment_bytes == 0:
                self._complete()
                completed = True
        return completed

    def sync(self) -> None:
        """Make everything that was received durable; `flushed` says so."""
        self._drain()
        if self._segment is None or self.flushed == self.received:
            return
        try:
            os.fdatasync(self._descriptor)
            if not self._named:
                sync_directory(self._directory)
                self._named = True
        except OSError as error:
            raise local_error(error, f"{self._directory} cannot be synced") from error
        self.flushed = self.received

    def leave(self) -> None:
        """The server left this timeline: keep what there is of the open segment as its `.partial`."""
        self.sync()
        segment = self._segment
        if segment is None:
            return
        length = self.received - segment.start
        try:
            os.ftruncate(self._descriptor, length)
            os.fsync(self._descriptor)
            self._close()
            source = self._path(segment, OPEN)
            if length:
                source.rename(self._path(segment, ".partial"))
            else:
                source.unlink()
            sync_directory(self._directory)
        except OSError as error:
            raise local_error(error, f"{segment.name} cannot be closed") from error

    def keep_history(self, timeline: int, content: bytes) -> None:
        """Lay a history file into the spool, durable under its name when this returns.

        Raises:
            WalConflict: another history of that timeline waits there.
        """
        final = self._directory / f"{timeline:08X}.history"
        draft = self._directory / f".tmp-{final.name}"
        try:
            if final.exists() and final.read_bytes() != content:
                raise WalConflict(f"{final} exists with other content")
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(final)
            sync_directory(self._directory)
        except OSError as error:
            raise local_error(error, f"{final} cannot be written") from error

    def closing(self) -> int:
        """How many complete segments are not yet durable under their names."""
        return sum(not future.done() for future in self._closing)

    def snapshot(self) -> Snapshot | None:
        """The open segment as far as it is durable, for another thread; None when nothing of it is."""
        with self._lock:
            segment, flushed = self._segment, self.flushed
            if segment is None or not segment.start < flushed <= segment.end:
                return None
            return Snapshot(segment, flushed, os.dup(self._descriptor))

    def resume_at(self) -> Segment | None:
        """The segment to stream from again after a stop or crash, or None if the spool says nothing.

        It is the first open one of the newest timeline (a second may have been opened while the first was being
        closed), else the one behind the newest complete one.
        """
        names = [entry.name for entry in os.scandir(self._directory)]
        unfinished = [n for n in names if n.endswith(OPEN)]
        left = [n for n in names if n.endswith(".partial")]
        complete = [n for n in names if len(n) == 24 and is_archive_name(n)]
        newest = max((n[:8] for n in (*unfinished, *left, *complete)), default=None)
        if newest is None:
            return None
        for found in (unfinished, left):
            again = min((n[:24] for n in found if n.startswith(newest)), default=None)
            if again is not None:
                return Segment.parse(again, self._segment_bytes)
        return Segment.parse(max(n for n in complete if n.startswith(newest)), self._segment_bytes).next()

    def close(self) -> None:
        """Make durable what was received, and stop."""
        try:
            self.sync()
        finally:
            self._closer.shutdown(wait=True)
            self._close()

    # ---- files

    def _path(self, segment: Segment, suffix: str = "") -> Path:
        return self._directory / f"{segment.name}{suffix}"

    def _open(self, segment: Segment) -> None:
        self._close()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path(segment, OPEN), flags, 0o600)
        except OSError as error:
            raise local_error(error, f"{segment.name} cannot be opened in {self._directory}") from error
        with self._lock:
            self._segment, self._descriptor, self._named = segment, descriptor, False

    def _close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._segment, self._descriptor = None, -1

    def _write_at(self, piece: memoryview, offset: int) -> None:
        try:
            while piece:
                count = os.pwrite(self._descriptor, piece, offset)
                piece, offset = piece[count:], offset + count
        except OSError as error:
            raise local_error(error, f"WAL cannot be written in {self._directory}") from error

    def _complete(self) -> None:
        """Close the open segment in another thread, in order, while the next one is already received."""
        with self._lock:
            segment, descriptor = self._segment, self._descriptor
            self._segment, self._descriptor = None, -1
        if segment is None:
            return
        # Handed over first: whoever finishes it closes the descriptor, also when one before it failed.
        self._closing.append(self._closer.submit(self._finish, segment, descriptor))
        if len(self._closing) > _CLOSING_AT_ONCE:
            self._closing.pop(0).result()
        self._open(segment.next())

    def _finish(self, segment: Segment, descriptor: int) -> None:
        try:
            # Never report what lies behind a segment that could not be closed.
            if self._broken:
                raise StorageError(f"{segment.name} is not closed: one before it could not be")
            self._broken = True
            os.fsync(descriptor)
            self._path(segment, OPEN).rename(self._path(segment))
            sync_directory(self._directory)
            self._broken = False
        except OSError as error:
            raise local_error(error, f"{segment.name} cannot be closed") from error
        finally:
            os.close(descriptor)
        self.flushed = segment.end
        self._closed()

    def _settle(self, first: Segment) -> None:
        """Keep open files that the stream will not come back to: of older timelines, or before a gap."""
        for entry in os.scandir(self._directory):
            name = entry.name.removesuffix(OPEN)
            if name == entry.name or (name[:8] == first.name[:8] and name >= first.name):
                continue
            if entry.stat().st_size:
                Path(entry.path).rename(self._directory / f"{name}.partial")
            else:
                Path(entry.path).unlink()

    def _drain(self) -> None:
        """Wait until every complete segment is durable under its name."""
        # Each stays known until all have ended: `recover` waits for every one, also after one that failed. One that
        # ended later would report as durable what lies behind a gap.
        for future in self._closing:
            future.result()
        self._closing = []
