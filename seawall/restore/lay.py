"""Laying a backup's files down: every object read once, every byte proved, pg_control last.

A marker file is written first and removed last, so that an interrupted restore is known as such. pg_control lies
under another name until all else is in place and synced: until then PostgreSQL refuses to start there.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from seawall.archive.intake import read_header, refuse_other_place
from seawall.codec import Entry, read_extents
from seawall.errors import Cancelled, ClusterMismatch, Damaged
from seawall.events import Advanced, Began, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import Extent, FileEntry, Head, SealingMode
from seawall.postgres.binaries import Account
from seawall.repository import SourceArea, manifest
from seawall.repository.sealed import Counted
from seawall.repository.wanted import Wanted, extents_of, refuse_holes
from seawall.restore.destination import MARKER
from seawall.restore.order import led, ordered, woven
from seawall.restore.patches import Indexes, fetched
from seawall.restore.plan import RestorePlan
from seawall.restore.tree import CONTROL, Tree, remove_tree, sync_directory, translated
from seawall.restore.writing import FileWriter

_MADE_BY_THE_RESTORE = ("backup_label", "tablespace_map")
_STALE = ("recovery.signal", "standby.signal", "postmaster.pid", *_MADE_BY_THE_RESTORE)
_SUMMARIES_SINCE = 17
# What all workers together hold of parts that they fetched for the objects that lead, shared by at least two.
_PATCHES_BYTES = 16 * 1024 * 1024
_LEAST_SHARES = 2


@dataclass(frozen=True, slots=True)
class Laid:
    """What was written and what was right already, and the special texts of the backup."""

    files: int
    written_bytes: int
    reused_bytes: int
    specials: Mapping[str, str]


def lay(
    plan: RestorePlan, area: SourceArea, ring: KeyRing, account: Account, *, workers: int, observe: Observer
) -> Laid:
    """Write all files of the plan's backup into its destination; pg_control waits for `tree.reveal_control`.

    Raises:
        Damaged, ObjectMissing, KeyMissing: the backup cannot be read; the destination stays unfinished.
        StorageFull, StorageDenied: the destination cannot be written.
        Cancelled: on request; the destination stays unfinished, and a delta restore goes on with it.
    """
    try:
        return _Laying(plan, area, ring=ring, account=account, workers=workers, observe=observe).run()
    except OSError as error:
        raise translated(error, plan.destination) from error


def sound_manifest(area: SourceArea, head: Head, ring: KeyRing, observe: Observer) -> manifest.Reader:
    """The manifest, or its copy when the manifest is not what was stored.

    Raises:
        Damaged: neither is what was stored.
    """
    for copy, name in enumerate((area.layout.manifest(head.label), area.layout.manifest_copy(head.label))):
        counted = Counted(area.storage.get(name))
        for _ in counted:
            observe.checkpoint()
        if counted.sha256 == head.manifest_sha256:
            return area.manifest(head.label, ring, copy=bool(copy))
        observe.hear(Noticed("high", "manifest-damaged", f"{name} is not what was stored; its other copy is tried"))
    raise Damaged(f"both copies of the manifest of {head.source} {head.label} are not what was stored")


class _Laying:
    def __init__(
        self,
        plan: RestorePlan,
        area: SourceArea,
        *,
        ring: KeyRing,
        account: Account,
        workers: int,
        observe: Observer,
    ) -> None:
        self._plan, self._area, self._ring = plan, area, ring
        self._workers, self._observe = max(workers, 1), observe
        spaces = {f"pg_tblspc/{oid}": place for oid, _, place in plan.tablespaces}
        self._tree = Tree(plan.destination, spaces, account)
        self._failed = threading.Event()
        self._wanted = Wanted()
        self._indexes = Indexes(lambda name: area.index(plan.head, name, ring))
        self._paths: list[str] = []
        self._old: list[FileEntry] = []
        self._lock = threading.Lock()
        self._written = self._reused = 0

    def run(self) -> Laid:
        # Before the first byte of the destination changes, it is certain that the backup can be opened.
        reader = sound_manifest(self._area, self._plan.head, self._ring, self._observe)
        self._observe.hear(Began("restore", self._plan.head.plain_bytes))
        with ThreadPoolExecutor(self._workers, thread_name_prefix="keys") as pool:
            # GnuPG takes its time for each key of a chain; files are made meanwhile. What fails here fails again,
            # and is told, where the key is needed.
            for opening in self._area.open_keys(self._plan.head, reader.objects, self._ring):
                pool.submit(opening)
            self._prepare()
            files = sum(self._place(entry) for entry in reader.files())
        self._directories_of_wal()
        self._repair_old()
        if self._plan.delta:
            self._tree.remove_strangers(self._paths)
        self._write()
        for name in _MADE_BY_THE_RESTORE:
            if name in reader.specials:
                self._special(name, reader.specials[name])
        return Laid(files, self._written, self._reused, reader.specials)

    def _prepare(self) -> None:
        self._tree.begin()
        marker = {"label": str(self._plan.head.label), "source": self._plan.source, "delta": self._plan.delta}
        self._tree.text(MARKER, json.dumps(marker))
        sync_directory(self._tree.root)
        if self._plan.delta:
            # From the first changed byte on the directory must not start any more. What lies behind a link named
            # `global` is not this restore's to remove.
            self._tree.directory("global")
            (self._tree.root / CONTROL).unlink(missing_ok=True)
            for stale in _STALE:
                (self._tree.root / stale).unlink(missing_ok=True)
            _clear_wal(self._plan, self._area.wal.names(), self._observe)

    def _directories_of_wal(self) -> None:
        for name in ("pg_wal", "pg_wal/archive_status"):
            self._tree.directory(name)
        if self._plan.head.cluster.major_version >= _SUMMARIES_SINCE:
            self._tree.directory("pg_wal/summaries")

    def _place(self, entry: FileEntry) -> int:
        self._observe.checkpoint()
        if self._plan.delta:
            self._paths.append(entry.path)
        if entry.path in self._tree.spaces:
            self._tree.link(entry.path, str(self._tree.spaces[entry.path]))
        elif entry.kind == "directory":
            self._tree.directory(entry.path, entry.mode)
        elif entry.kind == "link":
            self._tree.link(entry.path, entry.link)
        else:
            self._file(entry)
        return 1

    def _file(self, entry: FileEntry) -> None:
        refuse_holes(entry)
        if self._plan.delta and self._tree.is_kept(entry):
            self._old.append(entry)
            return
        self._tree.new_file(entry)
        self._want(entry, extents_of(entry))

    def _want(self, entry: FileEntry, extents: Iterable[tuple[int, Extent]]) -> None:
        file = self._wanted.file(entry)
        # Nothing can be read from the middle of an OpenPGP message: there each object is read by itself.
        alone = self._plan.head.sealing is SealingMode.OPENPGP
        for lead, window in led(extents):
            if alone:
                for each in window:
                    self._wanted.add(file, [each], each[1].object)
            else:
                self._wanted.add(file, window, lead)

    def _repair_old(self) -> None:
        """Compare what lies there with the backup, several files side by side, and want only what differs."""
        self._old.sort(key=lambda entry: -entry.size_bytes)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="compare") as pool:
            for entry, wrong in zip(self._old, pool.map(self._compared, self._old), strict=True):
                reused = entry.size_bytes - sum(extent.length for _, extent in wrong)
                self._reused += reused
                self._observe.hear(Advanced("restore", reused))
                self._want(entry, wrong)

    def _compared(self, entry: FileEntry) -> list[tuple[int, Extent]]:
        self._observe.checkpoint()
        return self._tree.wrong_extents(entry)

    def _special(self, name: str, text: str) -> None:
        if name == "tablespace_map":
            # One line for each tablespace: its oid, a space, its place (PostgreSQL xlog.c, do_pg_backup_start).
            text = "".join(f"{oid} {_escaped(str(place))}\n" for oid, _, place in self._plan.tablespaces)
        self._tree.text(name, text)

    def _write(self) -> None:
        loads: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        for names in self._wanted.runs(self._workers):
            loads.put(names)

        def work() -> None:
            with closing(FileWriter(self._tree, self._count)) as file:
                while not self._failed.is_set():
                    try:
                        names = loads.get_nowait()
                    except queue.Empty:
                        file.settle()
                        return
                    self._objects(names, file)

        run_together([work] * self._workers, self._failed)

    def _fetched(self, name: str, entries: Sequence[Entry]) -> Iterator[tuple[str, int, memoryview]]:
        """Parts of an object that others lead."""
        return read_extents(partial(self._area.storage.get, name), self._indexes.take(name), entries)

    def _objects(self, names: Sequence[str], file: FileWriter) -> None:
        """Lay down what objects lead that follow each other, and so often lead parts of the same others."""
        led_by = [(name, ordered(self._wanted.parts(name), name)) for name in names]
        others = [part for name, parts in led_by for part in parts if part.object != name]
        patches = fetched(others, self._fetched, _PATCHES_BYTES // max(self._workers, _LEAST_SHARES))
        for name, parts in led_by:
            modified_at = self._wanted.modified_at(name)
            own = [part.entry for part in parts if part.object == name]
            # Frames of which everything is superseded need no proof here: nothing of them is laid down.
            held = iter(self._area.bundle(self._plan.head, name, self._ring, own, sparing=True))
            for path, offset, piece in woven(parts, name, held, patches):
                file.write(path, offset, piece, modified_at[path])

    def _count(self, written: int) -> None:
        self._observe.checkpoint()
        if self._failed.is_set():
            raise Cancelled("another worker failed")
        self._observe.hear(Advanced("restore", written))
        with self._lock:
            self._written += written


def run_together(jobs: Iterable[Callable[[], None]], failed: threading.Event) -> None:
    """Run jobs side by side; the first error sets `failed`, which stops the others, and is the one raised."""
    jobs = list(jobs)
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="restore") as pool:
        futures = [pool.submit(job) for job in jobs]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future for future in done if future.exception()]
        if errors:
            failed.set()
    for future in errors or futures:
        future.result()


def _clear_wal(plan: RestorePlan, stored: frozenset[str], observe: Observer) -> None:
    """Take old WAL out of the way: replayed after the archive's, it would lead past the target.

    Segments that the repository does not hold are kept beside the destination; they may be the last there are.
    """
    old = plan.destination / "pg_wal"
    if old.is_symlink():
        observe.hear(Noticed("medium", "wal-left", f"pg_wal was a link; old WAL stays in {old.readlink()}"))
        old.unlink()
        return
    if not old.is_dir():
        return
    aside = plan.destination.with_name(f"{plan.destination.name}.unarchived-wal")
    for path in sorted(old.iterdir()):
        if path.name not in stored and _is_segment(path):
            aside.mkdir(mode=0o700, exist_ok=True)
            path.rename(aside / path.name)
            observe.hear(Noticed("medium", "wal-kept", f"{path.name} is not in the repository and is kept in {aside}"))
    remove_tree(old)


def _is_segment(path: Path) -> bool:
    """Whether a file holds the WAL that its name says; recycled files wait under names of the future."""
    try:
        with path.open("rb") as file:
            refuse_other_place(read_header(file.read(64), path.name), path.name)
    except (ClusterMismatch, IsADirectoryError):
        return False
    return True


def _escaped(path: str) -> str:
    """A path in tablespace_map: a backslash goes before line breaks and backslashes (PostgreSQL xlog.c)."""
    return path.replace("\\", "\\\\").replace("\n", "\\\n").replace("\r", "\\\r")
