"""Copying a cluster into bundles, by its files or through `BASE_BACKUP`: read, check, hash, compress, seal, store.

Each worker thread makes whole bundles by itself, pulled by the storage, so that bytes pass through the processor
once and no queue lies between the stages. Memory is a few frames for each worker, whatever the cluster's size.
Files that grow, shrink or vanish meanwhile are no error: WAL replays what happened to them.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from seawall.backup.load import Part, pack
from seawall.codec import FRAME_BYTES, BundleWriter, ExtentSource, Scratch, run_bytes
from seawall.errors import Cancelled, ClusterError, ClusterMismatch, PrivilegeMissing
from seawall.events import Advanced, Began, Noticed, Observer
from seawall.model import Cluster, Extent, FileEntry, StoredObject
from seawall.postgres.control import read_control, read_control_bytes
from seawall.postgres.pages import PageChecker, recheck
from seawall.postgres.scan import CopyEntry, CopyPlan, scan
from seawall.postgres.session import BackupSession, StartInfo
from seawall.postgres.stream import BaseBackup, StreamedFile, base_backup
from seawall.repository import BackupSetWriter
from seawall.settings import SourceSettings
from seawall.storage.base import Bytes
from seawall.storage.wrappers import TokenBucket
from seawall.wal import Lsn, Segment

FirstWal: TypeAlias = Callable[[Segment, bool], None]
_STREAM_EXTENT_BYTES = 8 * 1024 * 1024
_QUEUE_CHUNKS = 8
_CHECK_BYTES = FRAME_BYTES + 32 * 1024
# Files up to this size that are no relations are replaced as a whole when PostgreSQL changes them.
_SMALL_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Copied:
    """A cluster in bundles, not yet committed."""

    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: int
    stopped_at: datetime
    objects: list[StoredObject]
    files: list[FileEntry]
    specials: dict[str, str]


@dataclass
class _Output:
    """What the workers stored so far; shared by all of them."""

    writer: BackupSetWriter
    observe: Observer
    check: Callable[[], None] = lambda: None
    objects: list[StoredObject] = field(default_factory=list)
    extents: dict[str, list[tuple[int, Extent]]] = field(default_factory=lambda: defaultdict(list))
    bad_pages: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    vanished: set[str] = field(default_factory=set)
    failed: threading.Event = field(default_factory=threading.Event)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, sources: Callable[[BundleWriter], Iterable[ExtentSource]], scratch: Scratch) -> None:
        """Make and store one bundle from the extents that `sources` gives for its writer."""
        with self.lock:
            number = next(self.numbers)
        name, bundle = self.writer.bundle_writer(number, scratch)
        stored = self.writer.put_bundle(name, bundle, self._observed(bundle.stream(sources(bundle)), bundle))
        with self.lock:
            self.objects.append(stored)
            for path, offset, extent in bundle.extents(name):
                self.extents[path].append((offset, extent))

    def _observed(self, chunks: Iterator[Bytes], bundle: BundleWriter) -> Iterator[Bytes]:
        plain = stored = 0
        for chunk in chunks:
            self.observe.checkpoint()
            self.check()
            if self.failed.is_set():
                raise Cancelled("another worker failed")
            yield chunk
            if bundle.plain_bytes != plain:
                self.observe.hear(Advanced("copy", bundle.plain_bytes - plain, bundle.stored_bytes - stored))
                plain, stored = bundle.plain_bytes, bundle.stored_bytes

    def entry(self, listed: CopyEntry | StreamedFile) -> FileEntry | None:
        """The manifest's entry for a file, or None for one that vanished while it was copied."""
        extents = sorted(self.extents.get(listed.path, ()), key=lambda found: found[0])
        length = sum(extent.length for _, extent in extents)
        if listed.path in self.vanished:
            return None
        return FileEntry(
            path=listed.path,
            kind=listed.kind,
            mode=listed.mode,
            size_bytes=length,
            modified_at=listed.mtime,
            extents=tuple(extent for _, extent in extents),
            link=listed.link if listed.kind == "link" else "",
            bad_pages=tuple(sorted(self.bad_pages.get(listed.path, ()))),
        )


def copy_direct(
    source: SourceSettings,
    cluster: Cluster,
    writer: BackupSetWriter,
    *,
    workers: int,
    first_wal: FirstWal,
    observe: Observer,
) -> Copied:
    """Copy a cluster's files on its own host with several readers, between `pg_backup_start` and `pg_backup_stop`.

    Args:
        first_wal: called with the first segment that replay needs, before anything is copied.

    Raises:
        ServerUnreachable: the backup's session was lost.
        PrivilegeMissing: a file cannot be read.
        ClusterMismatch: the data directory is not that of the server, but perhaps its standby's.
    """
    directory = source.data_directory or Path(cluster.data_directory)
    with BackupSession(source, str(writer.label)) as session:
        started = session.start()
        first_wal(Segment.containing(started.lsn, started.timeline, cluster.segment_bytes), started.in_recovery)
        _refuse_other_copy(directory, started)
        found = scan(directory, cluster)
        for path, reason in found.left_out:
            observe.hear(Noticed("medium", "left-out", f"{path!r} is not in this backup: {reason}"))
        observe.hear(Began("copy", found.total_bytes))
        output = _Output(writer, observe, session.check)
        bucket = TokenBucket(source.max_rate_bytes_per_second)
        _copy_files(found, cluster, output, workers, bucket)
        # pg_control comes last, as PostgreSQL asks for backups of a standby; it never harms on a primary.
        _copy_control(directory, output)
        stopped = session.stop()
    specials = {"backup_label": stopped.backup_label}
    if stopped.tablespace_map:
        specials["tablespace_map"] = stopped.tablespace_map
    entries = [output.entry(listed) for listed in found.entries]
    files = sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.path)
    return Copied(started.lsn, stopped.lsn, stopped.timeline, stopped.stopped_at, output.objects, files, specials)


def _refuse_other_copy(directory: Path, started: StartInfo) -> None:
    """Stop where the files are not those of the server that the session is with.

    A standby or an old clone on this host has the same identity, but lacks changes that replay takes for done: the
    start's checkpoint is in pg_control only where it was made (or replayed) and its pages were written.
    """
    control = read_control(directory)
    if control.redo_lsn < started.lsn:
        raise ClusterMismatch(
            f"the last checkpoint in {directory} began at {control.redo_lsn}, before the backup's start at "
            f"{started.lsn}: these are not the files of the server that was asked",
            hint="Run the direct copy on the server's own host (`data_directory`, `conninfo`), or use mode = stream.",
        )


def _copy_files(found: CopyPlan, cluster: Cluster, output: _Output, workers: int, bucket: TokenBucket) -> None:
    loads: queue.SimpleQueue[tuple[Part, ...]] = queue.SimpleQueue()
    for load in pack([entry for entry in found.files if not entry.is_control], workers):
        loads.put(load)

    def work() -> None:
        scratch = Scratch()
        checker = _Pages(cluster.block_bytes) if cluster.checksums else None
        while True:
            try:
                load = loads.get_nowait()
            except queue.Empty:
                return
            output.put(lambda _bundle, load=load: _sources(load, checker, output, bucket), scratch)  # type: ignore[misc] # default binds the loop's value

    _run([work] * workers, output)


def _run(jobs: Sequence[Callable[[], None]], output: _Output) -> None:
    """Run jobs side by side; the first error stops the others and is the one that is raised."""
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="copy") as pool:
        futures: list[Future[None]] = [pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        if failed:
            output.failed.set()
    for future in failed or futures:
        future.result()


def _sources(
    load: Iterable[Part], checker: _Pages | None, output: _Output, bucket: TokenBucket
) -> Iterator[ExtentSource]:
    for part in load:
        with _PartReader(part, checker, output, bucket) as reader:
            runs = run_bytes(part.entry.size)
            yield ExtentSource(part.entry.path, part.offset, reader.length(), reader.readinto, runs, reader.inspect)


class _Pages:
    """The page checker of one worker, and the size of what it checks."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self._checker = PageChecker(_CHECK_BYTES, block_bytes)

    def bad(self, view: memoryview, first_block: int) -> list[int]:
        return self._checker.check(view, first_block)


class _PartReader:
    """Reads one part of a file and judges its pages; a vanished file reads as empty, a shrunken one as zeros.

    A small file that is no relation is read as it is when it is opened, whatever it was when it was listed: nothing
    replays a change of postgresql.auto.conf, and one that is cut or has zeros at its end keeps a server from starting.
    """

    def __init__(self, part: Part, checker: _Pages | None, output: _Output, bucket: TokenBucket) -> None:
        self._part, self._output, self._bucket = part, output, bucket
        self._checker = checker if part.entry.is_relation else None
        self._position, self._left = part.offset, part.length
        entry = part.entry
        self._is_small = not entry.is_relation and part.length == entry.size <= _SMALL_BYTES
        self._descriptor = -1

    def __enter__(self) -> _PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def length(self) -> int:
        """How many bytes to read at most."""
        if self._is_small:
            self._left = min(os.fstat(self._descriptor).st_size, _SMALL_BYTES) if self._open() else 0
        return self._left

    def readinto(self, view: memoryview) -> int:
        if self._descriptor < 0 and not self._open():
            return 0
        wanted = view[: self._left]
        got = os.preadv(self._descriptor, [wanted], self._position)
        if got == 0 and not self._is_small:
            # The file became shorter after it was listed: WAL holds the truncation and replays it over zeros.
            wanted[:] = bytes(len(wanted))
            got = len(wanted)
        self._bucket.take(got)
        self._position += got
        self._left -= got
        return got

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self._part.entry.absolute, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._output.vanished.add(self._part.entry.path)
            return False
        except PermissionError as error:
            raise PrivilegeMissing(f"{self._part.entry.absolute} cannot be read by this account") from error
        except OSError as error:
            raise ClusterError(f"{self._part.entry.absolute} cannot be read: {error.strerror}") from error
        return True

    def inspect(self, view: memoryview, offset: int) -> None:
        if self._checker is None:
            return
        entry, size = self._part.entry, self._checker.block_bytes
        first = entry.first_block + offset // size
        for block in self._checker.bad(view, first):
            page = view[(block - first) * size : (block - first + 1) * size]
            if recheck(self._descriptor, block, page, file_first_block=entry.first_block):
                with self._output.lock:
                    self._output.bad_pages[entry.path].append(block)


def _copy_control(directory: Path, output: _Output) -> None:
    content = BytesIO(read_control_bytes(directory / "global" / "pg_control"))
    length = len(content.getbuffer())
    control = ExtentSource("global/pg_control", 0, length, content.readinto, run_bytes(length))
    output.put(lambda _bundle: [control], Scratch())


def copy_stream(
    source: SourceSettings,
    cluster: Cluster,
    writer: BackupSetWriter,
    *,
    workers: int,
    first_wal: FirstWal,
    observe: Observer,
) -> Copied:
    """Copy a cluster through the replication protocol: one stream in, several workers compress and store.

    Args:
        first_wal: called with the first segment that replay needs, before anything is copied.

    Raises:
        ServerUnreachable: the stream broke.
    """
    listed: list[StreamedFile] = []
    output = _Output(writer, observe)
    rate = source.max_rate_bytes_per_second
    with base_backup(source, str(writer.label), max_rate=rate, observe=observe) as stream:
        first_wal(Segment.containing(stream.start_lsn, stream.timeline, cluster.segment_bytes), cluster.in_recovery)
        observe.hear(Began("copy", stream.estimated_bytes))
        lanes = [_Lane() for _ in range(workers)]
        _run([lambda: _deal(stream, lanes, listed, output), *(lane.job(output) for lane in lanes)], output)
        for path, pages in stream.bad_pages.items():
            output.bad_pages[path].extend(pages)
        specials = {"backup_label": stream.backup_label}
        if stream.tablespace_map:
            specials["tablespace_map"] = stream.tablespace_map
        entries = [output.entry(found) for found in listed]
        files = sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.path)
        return Copied(
            stream.start_lsn,
            stream.stop_lsn,
            stream.stop_timeline,
            stream.stopped_at,
            output.objects,
            files,
            specials,
        )


_Message: TypeAlias = "tuple[str, int, int] | bytes | None"
_END_OF_EXTENT = b""


class _Lane:
    """One worker of a streamed copy and the short queue that feeds it.

    An extent is its begin (path, offset in the file, the file's size), chunks, and its end.
    """

    def __init__(self) -> None:
        self.messages: queue.Queue[_Message] = queue.Queue(_QUEUE_CHUNKS)
        self._ended = False

    def send(self, message: _Message, output: _Output) -> None:
        while not output.failed.is_set():
            try:
                return self.messages.put(message, timeout=0.2)
            except queue.Full:
                output.observe.checkpoint()
        raise Cancelled("another worker failed")

    def job(self, output: _Output) -> Callable[[], None]:
        def work() -> None:
            scratch = Scratch()
            while not self._ended:
                output.put(lambda bundle: self._sources(bundle, output), scratch)

        return work

    def _sources(self, bundle: BundleWriter, output: _Output) -> Iterator[ExtentSource]:
        while bundle.room:
            message = self._next(output)
            if message is None:
                self._ended = True
                return
            if isinstance(message, tuple):
                path, offset, size = message
                content = _Chunks(lambda: self._next(output))
                yield ExtentSource(path, offset, 1 << 62, content.readinto, run_bytes(size))

    def _next(self, output: _Output) -> _Message:
        while not output.failed.is_set():
            try:
                return self.messages.get(timeout=0.2)
            except queue.Empty:
                output.observe.checkpoint()
        raise Cancelled("another worker failed")


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


def _deal(stream: BaseBackup, lanes: Sequence[_Lane], listed: list[StreamedFile], output: _Output) -> None:
    """Give the stream's files out to the lanes in extents of up to 8 MiB, always to the least busy lane."""
    # After an error here the lanes wait for more until `_run` tells them: were they told from here, their own
    # "another worker failed" could be what `_run` meets first, and the user would not learn why.
    for file in stream.files():
        listed.append(file)
        if file.kind == "file":
            _deal_file(file, lanes, output)
    for lane in lanes:
        lane.send(None, output)


def _deal_file(file: StreamedFile, lanes: Sequence[_Lane], output: _Output) -> None:
    offset, lane, begun = 0, lanes[0], 0
    for chunk in file.chunks():
        if not begun:
            lane = min(lanes, key=lambda candidate: candidate.messages.qsize())
            lane.send((file.path, offset, file.size), output)
        # The chunk's buffer is the stream's own and is filled anew for the next one.
        lane.send(bytes(chunk), output)
        offset += len(chunk)
        begun += len(chunk)
        if begun >= _STREAM_EXTENT_BYTES:
            lane.send(_END_OF_EXTENT, output)
            begun = 0
    if begun:
        lane.send(_END_OF_EXTENT, output)
