"""What the workers of a copy stored so far, and what they take over: from both come manifest and block map."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from seawall.backup.attempts import AttemptLog
from seawall.backup.changes import Known, PriorFile, Span, Times, joined_digests, kept_extents
from seawall.backup.ledger import CopiedFile, Extents, Ledger, TakenFile
from seawall.codec import BundleWriter, ExtentSource, Scratch, run_bytes
from seawall.errors import Cancelled, Damaged, StorageError
from seawall.events import Advanced, Noticed, Observer
from seawall.model import Extent, FileEntry, StoredObject
from seawall.postgres.scan import CopyEntry
from seawall.postgres.stream import StreamedFile
from seawall.repository import BackupSetWriter
from seawall.repository.blocks import FileBlocks
from seawall.storage.base import Bytes
from seawall.wal import Lsn

Listed: TypeAlias = CopyEntry | StreamedFile


@dataclass(frozen=True, slots=True)
class Copied:
    """A cluster in bundles, not yet committed.

    Args:
        objects: the bundles of this backup, then those of earlier ones that its files refer to.
        stored: how many of these are its own.
        files: every file, directory and link, with the block map of each file; to be closed.
        listed_at_ns: when the files were listed; 0 if their times are not known.
    """

    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: int
    stopped_at: datetime
    objects: list[StoredObject]
    stored: int
    files: Ledger
    listed_at_ns: int
    specials: dict[str, str]


@dataclass
class Output:
    """What was stored and what is taken over; shared by all workers.

    Args:
        block_bytes: the cluster's; no page lies in two runs.
        log: notes what was stored, for an attempt after this one.
        known: what parts of files may be taken over from, or None to store everything.
        check: raises when the backup is void.
        making: what bundles are made under, such as a slot of `crew.Slots`.
    """

    writer: BackupSetWriter
    observe: Observer
    block_bytes: int
    log: AttemptLog
    known: Known | None = None
    check: Callable[[], None] = lambda: None
    making: Callable[[Iterator[Bytes]], Iterator[Bytes]] = lambda chunks: chunks
    objects: list[StoredObject] = field(default_factory=list)
    bad_pages: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    vanished: set[str] = field(default_factory=set)
    failed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _stored: Extents = field(default_factory=Extents)
    _whole: bytearray = field(default_factory=bytearray)
    _kept: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    _run_bytes: dict[str, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def run_bytes(self, listed: Listed) -> int:
        """How long the runs of a file are: as they were where parts of it are taken over."""
        return self._run_bytes.get(listed.path) or max(run_bytes(listed.size), self.block_bytes)

    def keep(self, listed: Listed, known: PriorFile, spans: Sequence[Span]) -> None:
        """Take parts of a file over: whole runs, in order; none where only its runs shall be as they were.

        Memory holds nothing of a file that is stored anew in runs of the usual length: there may be many.
        """
        if known.blocks.run_bytes != self.run_bytes(listed):
            self._run_bytes[listed.path] = known.blocks.run_bytes
        if spans:
            self._kept[listed.path] = tuple(spans)

    def keep_whole(self, number: int) -> None:
        """Take a file over as it was stored before: by its number among those that were found, which may be many."""
        self._whole.extend(bytes(max(number + 1 - len(self._whole), 0)))
        self._whole[number] = True

    def put(self, sources: Callable[[BundleWriter], Iterable[ExtentSource]], scratch: Scratch) -> None:
        """Make and store one bundle from the extents that `sources` gives for its writer."""
        with self.lock:
            number = next(self._numbers)
        name, bundle = self.writer.bundle_writer(number, scratch)
        stored = self.writer.put_bundle(
            name, bundle, self._observed(self.making(bundle.stream(sources(bundle))), bundle)
        )
        extents, digests = bundle.extents(name), bundle.digests
        # Only now: what the storage did not confirm is nothing that another attempt could take over.
        self.log.note(stored, extents, digests, parts_sha256=self._parts_sha256(stored))
        with self.lock:
            self.objects.append(stored)
            for (path, offset, extent), found in zip(extents, digests, strict=True):
                self._stored.add(path, offset, extent, found)

    def _parts_sha256(self, stored: StoredObject) -> str:
        """What spares reading the object back, should this backup have to be resumed; without it, it is read back."""
        if not self.log.is_kept:
            return ""
        try:
            return self.writer.parts_sha256(stored)
        except StorageError as error:
            message = f"{stored.name} would have to be read back if this backup is resumed: {error.message}"
            self.observe.hear(Noticed("low", "parts-not-told", message))
            return ""

    def _observed(self, chunks: Iterator[Bytes], bundle: BundleWriter) -> Iterator[Bytes]:
        plain = stored = 0
        for chunk in chunks:
            self.go_on()
            yield chunk
            if bundle.plain_bytes != plain:
                self.observe.hear(Advanced("copy", bundle.plain_bytes - plain, bundle.stored_bytes - stored))
                plain, stored = bundle.plain_bytes, bundle.stored_bytes

    def go_on(self) -> None:
        """Raise where there is a reason to stop: somebody asked, the backup is void, or another worker failed."""
        self.observe.checkpoint()
        self.check()
        if self.failed.is_set():
            raise Cancelled("another worker failed")

    def files(self, listed: Iterable[Listed], numbers: Iterable[int] | None = None) -> Ledger:
        """What the manifest says of everything that was listed and did not vanish; ends the output.

        Args:
            listed: in the order of paths.
            numbers: by which `keep_whole` was told of them, if that is not their order.
        """
        earlier = self.known.objects if self.known is not None else ()
        with closing(self._stored):
            numbered = zip(itertools.count() if numbers is None else numbers, listed, strict=False)
            there = ((number, each) for number, each in numbered if each.path not in self.vanished)
            return Ledger(itertools.starmap(self._file, there), self.objects, earlier)

    def _file(self, number: int, listed: Listed) -> CopiedFile | TakenFile:
        is_whole = number < len(self._whole) and bool(self._whole[number])
        rows = (
            self.known.rows(listed.path) if self.known is not None and is_whole and not self._is_bad(listed) else None
        )
        if rows is not None:
            return TakenFile(listed.path, listed.mode, listed.mtime, times_of(listed), *rows)
        spans = (Span(0, listed.size),) if is_whole else self._kept.get(listed.path, ())
        extents, digests, runs = self._content(listed, spans)
        entry = FileEntry(
            path=listed.path,
            kind=listed.kind,
            mode=listed.mode,
            size_bytes=sum(extent.length for extent in extents),
            modified_at=listed.mtime,
            extents=extents,
            link=listed.link if listed.kind == "link" else "",
            bad_pages=tuple(sorted(self.bad_pages.get(listed.path, ()))),
        )
        if listed.kind != "file":
            return CopiedFile(entry, None)
        known = times_of(listed)
        return CopiedFile(
            entry, FileBlocks(listed.path, known.size, known.mtime_ns, known.ctime_ns, known.inode, runs, digests)
        )

    def _is_bad(self, listed: Listed) -> bool:
        """Whether a page of a file is wrong although its bytes are known, which the manifest has to say."""
        return listed.path in self.bad_pages

    def _content(self, listed: Listed, spans: Sequence[Span]) -> tuple[tuple[Extent, ...], bytes, int]:
        """The extents of a file, stored and taken over, the digests of its runs, and how long these are."""
        path = listed.path
        known = self.known.get(path) if self.known is not None and spans else None
        stored = self._stored.of(path)
        if known is None:
            digests = b"".join(row.digests for row in stored)
            return tuple(row.extent for row in stored), digests, self.run_bytes(listed)
        rows = [*kept_extents(known, spans), *((row.offset, row.extent) for row in stored)]
        rows.sort(key=lambda row: row[0])
        _refuse_holes(listed, rows)
        extents = tuple(extent for _, extent in rows)
        digests = joined_digests(known, spans, ((row.offset, row.digests) for row in stored))
        return extents, digests, known.blocks.run_bytes


def _refuse_holes(listed: Listed, rows: Sequence[tuple[int, Extent]]) -> None:
    """The last look at what an incremental made of a file: a defect must not become a backup that lies.

    Raises:
        Damaged: what was stored and what is taken over is not all of the file.
    """
    end = 0
    for offset, extent in rows:
        if offset != end:
            break
        end += extent.length
    else:
        if end == listed.size:
            return
    raise Damaged(
        f"{listed.path!r}: what was copied covers {end} of its {listed.size} bytes", hint="This is a defect in Seawall."
    )


def times_of(listed: Listed) -> Times:
    """A file's times, which only a direct copy knows."""
    if isinstance(listed, CopyEntry):
        return Times(listed.size, listed.mtime_ns, listed.ctime_ns, listed.inode)
    return Times(listed.size, 0, 0, 0)


def run_together(jobs: Sequence[Callable[[], None]], output: Output) -> None:
    """Run jobs side by side; the first error stops the others and is the one that is raised."""
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="copy") as pool:
        futures: list[Future[None]] = [pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        if failed:
            output.failed.set()
    for future in failed or futures:
        future.result()
