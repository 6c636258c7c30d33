"""Copying a cluster on its own host by its files: read, check, hash, compress, seal, store.

Each worker thread makes whole bundles by itself, pulled by the storage, so that bytes pass through the processor
once and no queue lies between the stages. Memory is a few frames for each worker, whatever the cluster's size.
Files that grow, shrink or vanish meanwhile are no error: WAL replays what happened to them.
"""

from __future__ import annotations

import os
import queue
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from seawall.backup.attempts import AttemptLog
from seawall.backup.changes import Known
from seawall.backup.compare import Comparison
from seawall.backup.crew import Bounds, Crew, Slots
from seawall.backup.load import Load, Part, WholeFiles, pack
from seawall.backup.output import Copied, Output
from seawall.backup.prior import Prior
from seawall.backup.reading import SMALL_BYTES, opened
from seawall.backup.told import Told, told_by
from seawall.codec import FRAME_BYTES, ExtentSource, Scratch, run_bytes
from seawall.errors import ClusterMismatch
from seawall.events import Began, Noticed, Observer
from seawall.model import Cluster
from seawall.postgres.control import CONTROL_FILE, read_control, read_control_bytes
from seawall.postgres.pages import PageChecker, recheck
from seawall.postgres.scan import CopyEntry, CopyPlan, scan
from seawall.postgres.session import BackupSession, StartInfo
from seawall.repository import BackupSetWriter
from seawall.settings import SourceSettings
from seawall.storage.wrappers import TokenBucket
from seawall.wal import Segment

FirstWal: TypeAlias = Callable[[Segment, bool], None]
_CHECK_BYTES = FRAME_BYTES + 32 * 1024
# Up to so many pages read at once wait for others to be checked with.
_FEW_PAGES = 4


def copy_direct(
    source: SourceSettings,
    cluster: Cluster,
    writer: BackupSetWriter,
    *,
    log: AttemptLog,
    prior: Prior | None = None,
    known: Known | None = None,
    reread: bool = False,
    bucket: TokenBucket,
    workers: int,
    adapts: bool = False,
    first_wal: FirstWal,
    observe: Observer,
) -> Copied:
    """Copy a cluster's files on its own host with several readers, between `pg_backup_start` and `pg_backup_stop`.

    Args:
        log: notes what was stored, for an attempt after this one.
        prior: what is known of the backup to build on; None for a full one.
        known: what parts of files may be taken over from: the prior, and attempts that were stopped; None to store
            everything.
        reread: compare all files with the prior, also those whose times say that nothing was written to them.
        bucket: how fast files are read, all readers together.
        workers: how many read, compress and seal side by side.
        adapts: whether there may be more writers than that while these wait for the storage.
        first_wal: called with the first segment that replay needs, before anything is copied.

    Raises:
        ServerUnreachable: the backup's session was lost.
        PrivilegeMissing: a file cannot be read.
        ClusterMismatch: the data directory is not that of the server, but perhaps its standby's.
    """
    directory = source.data_directory or Path(cluster.data_directory)
    with BackupSession(source, str(writer.label)) as session:
        started = session.start()
        _refuse_other_copy(directory, started)
        first = Segment.containing(started.lsn, started.timeline, cluster.segment_bytes)
        with ThreadPoolExecutor(1, thread_name_prefix="first-wal") as beside:
            arrived = beside.submit(first_wal, first, started.in_recovery)
            listed_at_ns = _before_listing(directory)
            found = scan(directory, cluster)
            # Before the first byte is read: where WAL does not arrive, all of that would be in vain.
            arrived.result()
        for path, reason in found.left_out:
            observe.hear(Noticed("medium", "left-out", f"{path!r} is not in this backup: {reason}"))
        observe.hear(Began("copy", found.total_bytes))
        output = Output(writer, observe, cluster.block_bytes, log, known, session.check)
        reread = reread or _went_back(prior, started)
        told = None if prior is None or reread else told_by(source, cluster, prior, started, observe)
        parts = _parts(found, output, told, reread=reread, workers=workers, bucket=bucket)
        _copy_parts(parts, cluster, output, Bounds.of(workers, adapts=adapts), bucket)
        # pg_control is read last, as PostgreSQL asks for backups of a standby; it never harms on a primary.
        control = read_control_bytes(directory / CONTROL_FILE)
        # All that replay starts from was read by now. Where what follows fails, a stopped backup is void all the same.
        with ThreadPoolExecutor(1, thread_name_prefix="stop") as beside:
            stopping = beside.submit(session.stop)
            _store_control(control, output)
            files = output.files(found.entries)
            stopped = stopping.result()
    specials = {"backup_label": stopped.backup_label}
    if stopped.tablespace_map:
        specials["tablespace_map"] = stopped.tablespace_map
    return Copied(
        started.lsn,
        stopped.lsn,
        stopped.timeline,
        stopped.stopped_at,
        files.objects,
        len(output.objects),
        files,
        listed_at_ns,
        specials,
    )


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


def _before_listing(directory: Path) -> int:
    """A moment before the listing that is about to begin, by the earlier of two clocks, in nanoseconds.

    Files carry times of the file system's clock, which may be another host's. The server wrote pg_control at the
    latest checkpoint, so its time is from that clock and in the past.
    """
    return min(time.time_ns(), (directory / CONTROL_FILE).stat().st_mtime_ns)


def _went_back(prior: Prior | None, started: StartInfo) -> bool:
    """Whether a primary's WAL is before the end of the prior: its files were put back by other means than a restore."""
    return prior is not None and not started.in_recovery and started.lsn < prior.head.stop_lsn


def _parts(
    found: CopyPlan, output: Output, told: Told | None, *, reread: bool, workers: int, bucket: TokenBucket
) -> Sequence[Part]:
    """What has to be stored; the rest is taken over."""
    if output.known is None:
        chosen = (n for n, entry in enumerate(found.entries) if entry.kind == "file" and not entry.is_control)
        return WholeFiles(found.entries, array("Q", chosen))
    comparison = Comparison(
        found.entries, output.known, output, workers=workers, bucket=bucket, reread=reread, told=told
    )
    return comparison.parts()


def _copy_parts(parts: Sequence[Part], cluster: Cluster, output: Output, bounds: Bounds, bucket: TokenBucket) -> None:
    loads: queue.SimpleQueue[Load] = queue.SimpleQueue()
    for load in pack(parts, bounds.slots):
        loads.put(load)
    slots = Slots(bounds.slots)
    output.making = slots.making

    def work(goes_on: Callable[[], bool]) -> None:
        scratch = Scratch()
        checker = _Pages(cluster.block_bytes, output) if cluster.checksums else None
        while goes_on():
            try:
                load = loads.get_nowait()
            except queue.Empty:
                return
            output.put(lambda _bundle, load=load: _sources(load, checker, output, bucket), scratch)  # type: ignore[misc] # default binds the loop's value

    Crew(bounds, slots, output).run(work, lambda: not loads.empty())


def _sources(
    load: Iterable[Part], checker: _Pages | None, output: Output, bucket: TokenBucket
) -> Iterator[ExtentSource]:
    for part in load:
        with _PartReader(part, checker, output, bucket) as reader:
            runs = output.run_bytes(part.entry)
            yield ExtentSource(part.entry.path, part.offset, reader.length(), reader.readinto, runs, reader.inspect)
    if checker is not None:
        checker.judge_waiting()


class _Pages:
    """The page checks of one worker.

    A check costs nearly as much for one page as for fifty, so pages of small files wait, as they were read, until
    there are many.
    """

    def __init__(self, block_bytes: int, output: Output) -> None:
        self._size = block_bytes
        self._output = output
        self._checker = PageChecker(_CHECK_BYTES, block_bytes)
        self._pages = memoryview(bytearray(FRAME_BYTES))
        self._waiting: list[tuple[CopyEntry, int]] = []

    def judge(self, entry: CopyEntry, descriptor: int, view: memoryview, offset: int) -> None:
        """Judge what was read of a file at an offset, now or with what comes later."""
        first, count = entry.first_block + offset // self._size, len(view) // self._size
        if count > _FEW_PAGES:
            for block in self._checker.check(view, first):
                # Torn or corrupt: an attempt after this one shall read and judge the file anew.
                self._output.log.spoil(entry.path)
                page = view[(block - first) * self._size : (block - first + 1) * self._size]
                self._judge_again(entry, descriptor, block, page)
            return
        if (len(self._waiting) + count) * self._size > len(self._pages):
            self.judge_waiting()
        begin = len(self._waiting) * self._size
        self._pages[begin : begin + count * self._size] = view[: count * self._size]
        self._waiting += [(entry, first + number) for number in range(count)]

    def judge_waiting(self) -> None:
        """Judge the pages that wait; a bundle ends after this, so that no bad page of it is unknown."""
        waiting, self._waiting = self._waiting, []
        for position in self._checker.check_scattered(self._pages, [block for _, block in waiting]) if waiting else ():
            entry, block = waiting[position]
            self._output.log.spoil(entry.path)
            descriptor = opened(entry)
            if descriptor < 0:
                # Dropped since it was read: WAL drops it again.
                continue
            try:
                page = self._pages[position * self._size : (position + 1) * self._size]
                self._judge_again(entry, descriptor, block, page)
            finally:
                os.close(descriptor)

    def _judge_again(self, entry: CopyEntry, descriptor: int, block: int, page: memoryview) -> None:
        if recheck(descriptor, block, page, file_first_block=entry.first_block):
            with self._output.lock:
                self._output.bad_pages[entry.path].append(block)


class _PartReader:
    """Reads one part of a file and judges its pages; a vanished file reads as empty, a shrunken one as zeros.

    A small file that is no relation is read as it is when it is opened, whatever it was when it was listed: nothing
    replays a change of postgresql.auto.conf, and one that is cut or has zeros at its end keeps a server from starting.
    """

    def __init__(self, part: Part, checker: _Pages | None, output: Output, bucket: TokenBucket) -> None:
        self._part, self._output, self._bucket = part, output, bucket
        self._checker = checker if part.entry.is_relation else None
        self._position, self._left = part.offset, part.length
        entry = part.entry
        self._is_small = not entry.is_relation and part.length == entry.size <= SMALL_BYTES
        self._descriptor = -1

    def __enter__(self) -> _PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def length(self) -> int:
        """How many bytes to read at most."""
        if self._is_small:
            self._left = min(os.fstat(self._descriptor).st_size, SMALL_BYTES) if self._open() else 0
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
        self._descriptor = opened(self._part.entry)
        if self._descriptor < 0:
            self._output.vanished.add(self._part.entry.path)
        return self._descriptor >= 0

    def inspect(self, view: memoryview, offset: int) -> None:
        if self._checker is not None:
            self._checker.judge(self._part.entry, self._descriptor, view, offset)


def _store_control(content: bytes, output: Output) -> None:
    length = len(content)
    control = ExtentSource(
        CONTROL_FILE, 0, length, BytesIO(content).readinto, max(run_bytes(length), output.block_bytes)
    )
    output.put(lambda _bundle: [control], Scratch())
