"""Laying a backup's files down: every object read once, every byte proved, pg_control last.

A marker file is written first and removed last, so that an interrupted restore is known as such. pg_control lies
under another name until all else is in place and synced: until then PostgreSQL refuses to start there.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from seawall.codec import Entry
from seawall.errors import Cancelled, DestinationInUse, RestoreError, StorageDenied, StorageFull
from seawall.events import Advanced, Began, Observer
from seawall.keys import KeyRing
from seawall.model import FileEntry
from seawall.postgres.binaries import Account
from seawall.repository import SourceArea
from seawall.restore.plan import RestorePlan

MARKER = ".seawall-restore.json"
CONTROL = "global/pg_control"
_HELD_CONTROL = "global/pg_control.seawall"
_EMPTY_DIRECTORIES = ("pg_wal", "pg_wal/archive_status", "pg_wal/summaries")


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
    """Write all files of the plan's backup into its destination, except pg_control, which `finish` puts in place.

    Raises:
        Damaged, ObjectMissing, KeyMissing: the backup cannot be read; the destination stays unfinished.
        StorageFull, StorageDenied: the destination cannot be written.
    """
    try:
        return _Laying(plan, area, ring=ring, account=account, workers=workers, observe=observe).run()
    except OSError as error:
        raise _translated(error, plan.destination) from error


def finish(destination: Path) -> None:
    """Put pg_control in place, when everything else is written and synced, and take the marker away."""
    sync_tree(destination)
    (destination / _HELD_CONTROL).rename(destination / CONTROL)
    sync_directory(destination / "global")
    (destination / MARKER).unlink()
    sync_directory(destination)


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
        self._plan, self._area, self._ring, self._account = plan, area, ring, account
        self._workers, self._observe = workers, observe
        self._root = plan.destination
        self._spaces = {f"pg_tblspc/{oid}": place for oid, _, place in plan.tablespaces}
        self._failed = threading.Event()
        self._modes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._written = self._reused = 0

    def run(self) -> Laid:
        manifest = self._area.manifest(self._plan.head.label, self._ring)
        self._observe.hear(Began("restore", self._plan.head.plain_bytes))
        self._prepare()
        wanted: dict[str, list[Entry]] = defaultdict(list)
        count = 0
        paths: set[str] = set()
        for entry in manifest.files():
            count += 1
            paths.add(entry.path)
            self._place(entry, wanted)
        if self._plan.delta:
            self._remove_strangers(paths)
        self._write(wanted)
        for name in ("backup_label", "tablespace_map"):
            if name in manifest.specials:
                self._special(name, manifest.specials[name])
        return Laid(count, self._written, self._reused, manifest.specials)

    def _prepare(self) -> None:
        self._directory(self._root, 0o700)
        marker = {"label": str(self._plan.head.label), "source": self._plan.source, "delta": self._plan.delta}
        self._text(self._root / MARKER, json.dumps(marker))
        sync_directory(self._root)
        if self._plan.delta:
            # From the first changed byte on the directory must not start any more.
            (self._root / CONTROL).unlink(missing_ok=True)
            for stale in ("recovery.signal", "standby.signal", "postmaster.pid", "backup_label", "tablespace_map"):
                (self._root / stale).unlink(missing_ok=True)
            shutil.rmtree(self._root / "pg_wal", ignore_errors=False) if _real_directory(
                self._root / "pg_wal"
            ) else None
        for place in self._spaces.values():
            place.mkdir(parents=True, exist_ok=True)
            if not self._plan.delta and any(place.iterdir()):
                raise DestinationInUse(f"tablespace directory {place} is not empty")
            self._directory(place, 0o700)

    def _place(self, entry: FileEntry, wanted: dict[str, list[Entry]]) -> None:
        path = self._path(entry.path)
        if entry.path in self._spaces:
            _link(path, self._spaces[entry.path])
        elif entry.kind == "directory":
            self._directory(path, entry.mode or 0o700)
        elif entry.kind == "link":
            _link(path, Path(entry.link))
        elif self._plan.delta and entry.path != CONTROL and _matches(path, entry):
            self._reused += entry.size_bytes
            self._observe.hear(Advanced("restore", entry.size_bytes))
        else:
            self._new_file(path, entry)
            offset = 0
            for extent in entry.extents:
                wanted[extent.object].append(Entry(entry.path, offset, extent.offset, extent.length, extent.blake3))
                offset += extent.length
        if not entry.path and entry.kind == "directory":
            for name in _EMPTY_DIRECTORIES:
                self._directory(self._root / name, 0o700)

    def _path(self, path: str) -> Path:
        if path == CONTROL:
            return self._root / _HELD_CONTROL
        for prefix, place in self._spaces.items():
            if path.startswith(f"{prefix}/"):
                return place / path.removeprefix(f"{prefix}/")
        return self._root / path

    def _directory(self, path: Path, mode: int) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(mode & 0o777)
        self._account.own(path)

    def _new_file(self, path: Path, entry: FileEntry) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, entry.mode & 0o777 or 0o600)
            if not self._account.is_current:
                os.fchown(descriptor, self._account.uid, self._account.gid)
        finally:
            os.close(descriptor)

    def _text(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8", newline="")
        path.chmod(0o600)
        self._account.own(path)

    def _special(self, name: str, text: str) -> None:
        if name == "tablespace_map":
            # One line for each tablespace: its oid, a space, its place (PostgreSQL xlog.c, do_pg_backup_start).
            text = "".join(f"{oid} {_escaped(str(place))}\n" for oid, _, place in self._plan.tablespaces)
        self._text(self._root / name, text)

    def _remove_strangers(self, paths: set[str]) -> None:
        """Remove what the backup does not have; never the root, never through a link."""
        roots = [(self._root, ""), *((place, f"{prefix}/") for prefix, place in self._spaces.items())]
        for root, prefix in roots:
            for folder, directories, files in os.walk(root, topdown=False, followlinks=False):
                here = Path(folder)
                for name in (*files, *directories):
                    relative = prefix + str((here / name).relative_to(root))
                    if relative in paths or relative in (MARKER, _HELD_CONTROL) or relative.startswith("pg_wal"):
                        continue
                    path = here / name
                    path.rmdir() if _real_directory(path) else path.unlink()

    def _write(self, wanted: Mapping[str, Sequence[Entry]]) -> None:
        loads: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in sorted(wanted, key=lambda name: -sum(entry.length for entry in wanted[name])):
            loads.put(name)

        def work() -> None:
            while not self._failed.is_set():
                try:
                    name = loads.get_nowait()
                except queue.Empty:
                    return
                self._object(name, wanted[name])

        with ThreadPoolExecutor(self._workers, thread_name_prefix="restore") as pool:
            futures = [pool.submit(work) for _ in range(self._workers)]
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future.done() and future.exception()]
            if failed:
                self._failed.set()
        for future in failed or futures:
            future.result()

    def _object(self, name: str, entries: Sequence[Entry]) -> None:
        current, descriptor = "", -1
        try:
            for path, offset, piece in self._area.bundle(self._plan.head, name, self._ring, entries):
                self._observe.checkpoint()
                if self._failed.is_set():
                    raise Cancelled("another worker failed")
                if path != current:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, current = os.open(self._path(path), os.O_WRONLY | os.O_NOFOLLOW), path
                _write_all(descriptor, piece, offset)
                self._observe.hear(Advanced("restore", len(piece)))
                with self._lock:
                    self._written += len(piece)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _write_all(descriptor: int, piece: memoryview, offset: int) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(descriptor, piece[done:], offset + done)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        if _real_directory(path):
            raise DestinationInUse(f"{path} is a directory where a link belongs")
        path.unlink()
    path.symlink_to(target)


def _real_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _matches(path: Path, entry: FileEntry) -> bool:
    """Whether a file holds exactly what the backup has, by size and by the hash of every extent."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    with open(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size != entry.size_bytes:
            return False
        return all(_digest(file.fileno(), extent.length) == extent.blake3 for extent in entry.extents)


def _digest(descriptor: int, length: int) -> str:
    hasher = blake3()
    while length:
        piece = os.read(descriptor, min(length, 1024 * 1024))
        if not piece:
            break
        hasher.update(piece)
        length -= len(piece)
    return hasher.hexdigest()


def _escaped(path: str) -> str:
    """A path in tablespace_map: a backslash goes before line breaks and backslashes (PostgreSQL xlog.c)."""
    return path.replace("\\", "\\\\").replace("\n", "\\\n").replace("\r", "\\\r")


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make everything below a directory durable: one syncfs(2) for each file system found below it."""
    syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    for place in _file_systems(directory):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(place))
        finally:
            os.close(descriptor)


def _file_systems(directory: Path) -> Iterable[Path]:
    places = [directory, *(link.resolve() for link in (directory / "pg_tblspc").glob("*") if link.is_dir())]
    return {place.stat().st_dev: place for place in places}.values()


def _translated(error: OSError, destination: Path) -> RestoreError | StorageFull | StorageDenied:
    where = error.filename or destination
    if error.errno in (28, 122):
        return StorageFull(
            f"{where}: no space left in the destination", hint="Free space and run it again with --delta."
        )
    if error.errno in (1, 13, 30):
        return StorageDenied(f"{where}: {error.strerror}")
    return RestoreError(f"{where}: {error.strerror}")
