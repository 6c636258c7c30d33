"""Copying a cluster through `BASE_BACKUP`: one stream in, several workers compress, seal and store.

What differs from the prior is decided on the bytes as they pass, so nothing is read twice. Where the server can tell
what changed (`summarize_wal` of PostgreSQL 17 and later), only that passes. Files that grow, shrink or vanish
meanwhile are no error: WAL replays what happened to them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TypeAlias

from seawall.backup.attempts import AttemptLog
from seawall.backup.changes import Known, PriorFile, Span
from seawall.backup.differences import differing_runs, stretches
from seawall.backup.output import Copied, Output, run_together
from seawall.backup.prior import Prior
from seawall.codec import BundleWriter, ExtentSource, Scratch
from seawall.codec.runs import digests_of
from seawall.errors import Cancelled, IncrementalRefused
from seawall.events import Advanced, Began, Noticed, Observer
from seawall.limits import highest
from seawall.model import Cluster
from seawall.postgres import incremental
from seawall.postgres.listing import CopyEntry, Listing
from seawall.postgres.stream import BaseBackup, StreamedFile, base_backup
from seawall.postgres.summaries import FIRST_MAJOR
from seawall.repository import BackupSetWriter
from seawall.settings import SourceSettings
from seawall.storage.wrappers import TokenBucket
from seawall.wal import Segment

FirstWal: TypeAlias = Callable[[Segment, bool], None]
_STREAM_EXTENT_BYTES = 8 * 1024 * 1024
_QUEUE_CHUNKS = 8
# How long a lane may have no room before what comes goes to another one, as a new extent.
_PATIENCE_SECONDS = 1.0
_LOOK_SECONDS = 0.2


def copy_stream(
    source: SourceSettings,
    cluster: Cluster,
    writer: BackupSetWriter,
    *,
    log: AttemptLog,
    prior: Prior | None = None,
    known: Known | None = None,
    bucket: TokenBucket,
    workers: int,
    first_wal: FirstWal,
    observe: Observer,
) -> Copied:
    """Copy a cluster through the replication protocol: one stream in, several workers compress and store.

    Args:
        log: notes what was stored, for an attempt after this one.
        prior: what is known of the backup to build on; None for a full one.
        known: what parts of files may be taken over from: the prior, and attempts that were stopped; None to store
            everything. Where the server sends changes alone, that is the prior and nothing else.
        bucket: how fast the stream is taken in. The server itself keeps to the highest limit of all windows: what it
            is told at the start cannot be changed.
        first_wal: called with the first segment that replay needs, before anything is copied.

    Raises:
        ServerUnreachable: the stream broke.
    """
    listings: list[Listing] = []
    output = Output(writer, observe, cluster.block_bytes, log, known)
    begun, is_told = _begun(source, cluster, writer, prior, observe)
    if is_told:
        # What does not come is as it was in the prior, which says nothing of attempts.
        output.known = prior
    with begun as stream:
        first_wal(Segment.containing(stream.start_lsn, stream.timeline, cluster.segment_bytes), cluster.in_recovery)
        observe.hear(Began("copy", stream.estimated_bytes))
        lanes = _Lanes(workers, output)
        deal = _Dealing(stream, lanes, output, bucket)
        run_together([lambda: listings.append(Listing(deal.listed())), *lanes.jobs()], output)
        for path, pages in stream.bad_pages.items():
            output.bad_pages[path].extend(pages)
        specials = {"backup_label": stream.backup_label}
        if stream.tablespace_map:
            specials["tablespace_map"] = stream.tablespace_map
        files = output.files(listings[0], listings[0].places)
        return Copied(
            stream.start_lsn,
            stream.stop_lsn,
            stream.stop_timeline,
            stream.stopped_at,
            files.objects,
            len(output.objects),
            files,
            0,
            specials,
        )


def _begun(
    source: SourceSettings, cluster: Cluster, writer: BackupSetWriter, prior: Prior | None, observe: Observer
) -> tuple[BaseBackup, bool]:
    """The stream of what changed where the server can tell that, else of everything; and which of these it is."""
    label, rate = str(writer.label), highest(source.limits, source.max_rate_bytes_per_second)
    if prior is not None and cluster.major_version >= FIRST_MAJOR:
        # The same sample whenever the same backup is looked at again.
        chance = random.Random(label)  # noqa: S311 - a sample, no secret
        try:
            told = _told(prior)
            return base_backup(source, label, max_rate=rate, prior=told, randomness=chance, observe=observe), True
        except IncrementalRefused as refused:
            message = f"{refused.message}; all of the cluster is sent and compared with {prior.head.label}"
            observe.hear(Noticed("low", "changes-not-told", message))
    return base_backup(source, label, max_rate=rate, observe=observe), False


def _told(prior: Prior) -> incremental.Prior:
    """What the server must know of a prior: files of which parts can be taken over."""
    head, files = prior.head, _MainForks(prior)
    return incremental.Prior(head.cluster.system_identifier, head.timeline, head.start_lsn, head.stop_lsn, files)


class _MainForks:
    """The files of a prior of which parts can be taken over, each read when it is asked for: there may be a million."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    def get(self, path: str, /) -> incremental.PriorFile | None:
        known = self._prior.get(path) if incremental.is_main_fork(path) else None
        if known is None:
            return None
        return incremental.PriorFile(known.entry.size_bytes, known.blocks.run_bytes)

    def items(self) -> Iterator[tuple[str, incremental.PriorFile]]:
        found = ((path, self.get(path)) for path in self._prior.paths())
        return ((path, known) for path, known in found if known is not None)


_Message: TypeAlias = "tuple[str, int, int] | bytes | None"
_END_OF_EXTENT = b""


class _Lane:
    """One worker of a streamed copy and the short queue that feeds it.

    An extent is its begin (path, offset in the file, length of its runs), chunks, and its end. Only chunks take room.

    Args:
        changed: told, and held, whenever a message comes or goes; all lanes have the same one.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self.waiting = 0
        self._messages: deque[_Message] = deque()
        self._changed = changed
        self._ended = False

    @property
    def has_room(self) -> bool:
        return self.waiting < _QUEUE_CHUNKS

    def send(self, message: _Message) -> None:
        with self._changed:
            self._messages.append(message)
            self.waiting += _is_chunk(message)
            self._changed.notify_all()

    def job(self, output: Output) -> Callable[[], None]:
        def work() -> None:
            scratch = Scratch()
            while not self._ended:
                output.put(lambda bundle: self._sources(bundle, output), scratch)

        return work

    def _sources(self, bundle: BundleWriter, output: Output) -> Iterator[ExtentSource]:
        while bundle.room:
            message = self._next(output)
            if message is None:
                self._ended = True
                return
            if isinstance(message, tuple):
                path, offset, runs = message
                content = _Chunks(lambda: self._next(output))
                yield ExtentSource(path, offset, 1 << 62, content.readinto, runs)

    def _next(self, output: Output) -> _Message:
        _wait(self._changed, lambda: bool(self._messages), output)
        with self._changed:
            message = self._messages.popleft()
            self.waiting -= _is_chunk(message)
            self._changed.notify_all()
        return message


def _is_chunk(message: _Message) -> bool:
    return isinstance(message, bytes) and message != _END_OF_EXTENT


def _wait(changed: threading.Condition, condition: Callable[[], bool], output: Output, seconds: float = inf) -> bool:
    """Wait until something holds, or for so long; whether it does.

    Raises:
        Cancelled: somebody asked to stop, or another worker failed.
    """
    give_up_at = time.monotonic() + seconds
    while not output.failed.is_set():
        with changed:
            if changed.wait_for(condition, min(_LOOK_SECONDS, max(give_up_at - time.monotonic(), 0))):
                return True
        if time.monotonic() >= give_up_at:
            return False
        output.observe.checkpoint()
    raise Cancelled("another worker failed")


class _Lanes:
    """All lanes of a copy. One whose worker waits for the storage is passed by, and what it had waits with it."""

    def __init__(self, count: int, output: Output) -> None:
        self._changed = threading.Condition()
        self._output = output
        self._lanes = [_Lane(self._changed) for _ in range(count)]

    def jobs(self) -> Iterator[Callable[[], None]]:
        return (lane.job(self._output) for lane in self._lanes)

    def free(self) -> _Lane:
        """The least busy lane, as soon as one has room."""
        _wait(self._changed, lambda: any(lane.has_room for lane in self._lanes), self._output)
        return min(self._lanes, key=lambda lane: lane.waiting)

    def is_stuck(self, lane: _Lane, patience: float) -> bool:
        """Whether a lane has no room and gets none within so many seconds; one that is merely busy is waited for."""
        return not _wait(self._changed, lambda: lane.has_room, self._output, patience)

    def end(self) -> None:
        for lane in self._lanes:
            lane.send(None)


class _Chunks:
    """One extent's chunks as something that fills buffers."""

    def __init__(self, pull: Callable[[], _Message]) -> None:
        self._pull = pull
        self._rest = memoryview(b"")
        self._over = False

    def readinto(self, view: memoryview) -> int:
        while not self._rest and not self._over:
            message = self._pull()
            if not isinstance(message, bytes) or message == _END_OF_EXTENT:
                self._over = True
            else:
                self._rest = memoryview(message)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Dealing:
    """Gives the stream's files out to the lanes."""

    def __init__(self, stream: BaseBackup, lanes: _Lanes, output: Output, bucket: TokenBucket) -> None:
        self._stream, self._lanes, self._output, self._bucket = stream, lanes, output, bucket

    def listed(self) -> Iterator[CopyEntry]:
        """All that the stream has, each after it was dealt; there may be a million, so none is kept here."""
        # After an error here the lanes wait for more until `_run` tells them: were they told from here, their own
        # "another worker failed" could be what `_run` meets first, and the user would not learn why.
        for number, file in enumerate(self._stream.files()):
            if file.kind == "file":
                self._deal(number, file)
            # Without times: those of the server's files are not known.
            yield CopyEntry(
                "",
                file.path,
                file.kind,
                file.mode,
                file.size,
                file.mtime,
                file.link,
                file.is_relation,
                file.first_block,
            )
        self._lanes.end()

    def _deal(self, number: int, file: StreamedFile) -> None:
        output = self._output
        known = output.known.get(file.path) if output.known is not None else None
        sending = _Sending(number, file, self._lanes, output, self._bucket)
        if known is not None and file.is_partial:
            sending.send_told(known)
        elif known is None:
            for chunk in sending.chunks():
                sending.send(chunk)
        else:
            sending.send_differing(known)
        sending.end()


class _Sending:
    """One file on its way to the lanes, in extents of up to 8 MiB, always to the least busy lane."""

    def __init__(self, number: int, file: StreamedFile, lanes: _Lanes, output: Output, bucket: TokenBucket) -> None:
        self._number, self._file, self._lanes, self._output, self._bucket = number, file, lanes, output, bucket
        self._lane: _Lane | None = None
        self._offset = self._begun = 0
        self._kept: list[Span] = []

    def chunks(self) -> Iterator[memoryview]:
        """The file's content at the pace that is allowed; while it waits, the server cannot send more."""
        for chunk in self._file.chunks():
            self._bucket.take(len(chunk))
            yield chunk

    def send(self, chunk: memoryview) -> None:
        """Have the file's next bytes stored."""
        runs = self._output.run_bytes(self._file)
        # Extents begin where runs do.
        patience = inf if self._offset % runs else _PATIENCE_SECONDS
        if self._lane is not None and self._lanes.is_stuck(self._lane, patience):
            self.end()
        if self._lane is None:
            self._lane = self._lanes.free()
            self._lane.send((self._file.path, self._offset, runs))
        # The chunk's buffer is the stream's own and is filled anew for the next one.
        self._lane.send(bytes(chunk))
        self._offset += len(chunk)
        self._begun += len(chunk)
        if self._begun >= _STREAM_EXTENT_BYTES:
            self.end()

    def end(self) -> None:
        """End the extent that is under way, if one is."""
        if self._lane is not None:
            self._lane.send(_END_OF_EXTENT)
        self._lane, self._begun = None, 0

    def send_differing(self, known: PriorFile) -> None:
        """Have the file's runs stored that the prior does not have, and take the others over."""
        # Before anything is stored: what is stored of the file is cut into runs of the prior's length.
        self._output.keep(self._file, known, ())
        for chunk in in_runs(self.chunks(), known.blocks.run_bytes):
            self._send_runs(known, chunk)
        self._keep(known)

    def send_told(self, known: PriorFile) -> None:
        """The same where only those runs come that may differ."""
        self._output.keep(self._file, known, ())
        for offset, content in self._file.runs():
            self._bucket.take(len(content))
            self._skip(Span(self._offset, offset - self._offset))
            self._send_runs(known, content)
        self._skip(Span(self._offset, self._file.size - self._offset))
        self._keep(known)

    def _keep(self, known: PriorFile) -> None:
        size = self._file.size
        if size == known.entry.size_bytes and self._kept == [Span(0, size)]:
            self._output.keep_whole(self._number)
        else:
            self._output.keep(self._file, known, self._kept)

    def _send_runs(self, known: PriorFile, content: memoryview) -> None:
        length, size = known.blocks.run_bytes, self._file.size
        first, begins = self._offset // length, self._offset
        differs = differing_runs(known, digests_of(content, length), size, first)
        for span, differ in stretches(differs, length, min(size, begins + len(content)), first):
            if differ:
                self.send(content[span.offset - begins : span.offset - begins + span.length])
            else:
                self._skip(span)

    def _skip(self, span: Span) -> None:
        if not span.length:
            return
        self.end()
        self._offset += span.length
        self._output.observe.hear(Advanced("copy", span.length))
        if self._kept and self._kept[-1].offset + self._kept[-1].length == span.offset:
            span = Span(self._kept[-1].offset, self._kept.pop().length + span.length)
        self._kept.append(span)


def in_runs(chunks: Iterable[memoryview], run_bytes: int) -> Iterator[memoryview]:
    """The same bytes in pieces that are cut between runs; each is valid until the next is asked for."""
    rest = b""
    for chunk in chunks:
        joined = memoryview(rest + chunk) if rest else chunk
        whole = len(joined) - len(joined) % run_bytes
        if whole:
            yield joined[:whole]
        rest = bytes(joined[whole:])
    if rest:
        yield memoryview(rest)
