"""The files of a restore on disk: made, compared, removed and synced without ever leaving the destination.

Every directory on the way to a file is a real one that this restore made or proved; a link that lies where a
directory belongs is replaced, never followed. The only links passed are those to the tablespaces of the plan.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from seawall.codec import RunHasher
from seawall.errors import Damaged, RestoreError, StorageDenied, StorageFull
from seawall.model import Extent, FileEntry
from seawall.postgres.binaries import Account
from seawall.restore.destination import MARKER

CONTROL = "global/pg_control"
HELD_CONTROL = "global/pg_control.seawall"
_PIECE_BYTES = 1024 * 1024
_LARGE_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EPERM, errno.EACCES, errno.EROFS)


class Tree:
    """A data directory in the making, with its tablespaces.

    Args:
        root: the data directory.
        spaces: path below the data directory (`pg_tblspc/<oid>`) → where that tablespace goes.
        account: owns everything.
    """

    def __init__(self, root: Path, spaces: Mapping[str, Path], account: Account) -> None:
        self.root = root
        self.spaces = dict(spaces)
        self._account = account
        self._real: set[Path] = set()

    def path(self, path: str) -> Path:
        """Where an entry of the manifest lies; pg_control waits under another name until `reveal_control`."""
        if path == CONTROL:
            return self.root / HELD_CONTROL
        for prefix, place in self.spaces.items():
            if path.startswith(f"{prefix}/"):
                return place / path.removeprefix(f"{prefix}/")
        return self.root / path

    def begin(self) -> None:
        """Make the roots, and whatever is missing on the way to them."""
        for place in (self.root, *self.spaces.values()):
            missing = [folder for folder in reversed(place.parents) if not folder.exists()]
            for folder in missing:
                folder.mkdir(mode=0o755)
                self._account.own(folder)
            self._own_directory(place, 0o700)

    def directory(self, path: str, mode: int = 0o700) -> None:
        """A directory of the manifest."""
        place = self.path(path)
        self._pass(place.parent)
        self._own_directory(place, mode)

    def _own_directory(self, place: Path, mode: int) -> None:
        if place.is_symlink() or not place.is_dir():
            place.unlink(missing_ok=True)
            place.mkdir(mode=0o700)
        place.chmod(mode & 0o777 or 0o700)
        self._account.own(place)
        self._real.add(place)

    def _pass(self, folder: Path) -> None:
        """Prove that `folder` and all above it are real directories of this restore, making them where missing."""
        if folder in self._real:
            return
        self._pass(folder.parent)
        self._own_directory(folder, 0o700)

    def link(self, path: str, target: str) -> None:
        """A link of the manifest; nothing is ever laid down behind it, except for tablespaces."""
        place = self.root / path
        self._pass(place.parent)
        if place in self._real:
            raise Damaged(f"the manifest has {path!r} both as a directory and as a link")
        if place.is_dir() and not place.is_symlink():
            remove_tree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(target)

    def new_file(self, entry: FileEntry) -> None:
        """An empty file with its mode and owner, in the place of whatever lies there."""
        place = self.path(entry.path)
        self._pass(place.parent)
        if place.is_dir() and not place.is_symlink():
            remove_tree(place)
        place.unlink(missing_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb", buffering=0):
            self._dress(descriptor, entry)
            if entry.size_bytes >= _LARGE_BYTES:
                # Several workers write parts of it: none has to make it longer.
                os.ftruncate(descriptor, entry.size_bytes)

    def _dress(self, descriptor: int, entry: FileEntry) -> None:
        if not self._account.is_current:
            os.fchown(descriptor, self._account.uid, self._account.gid)
        os.fchmod(descriptor, entry.mode & 0o777 or 0o600)
        if not entry.extents:
            os.utime(descriptor, (entry.modified_at, entry.modified_at))

    def text(self, name: str, text: str) -> None:
        """A small file of the restore's own, directly below the root."""
        place = self.root / name
        place.unlink(missing_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        self._account.own(place)

    def is_kept(self, entry: FileEntry) -> bool:
        """Whether an old file lies there that may be repaired in place.

        A file with several names (`pg_upgrade --link`) is not: the other name may be another cluster's.
        """
        place = self.path(entry.path)
        self._pass(place.parent)
        if entry.path == CONTROL or place.is_symlink() or not place.is_file():
            return False
        return place.stat().st_nlink == 1

    def wrong_extents(self, entry: FileEntry) -> list[tuple[int, Extent]]:
        """(offset in the file, extent) for all that an old file has otherwise; its size is made right."""
        descriptor = os.open(self.path(entry.path), os.O_RDWR | os.O_NOFOLLOW)
        with open(descriptor, "rb+", buffering=0):
            self._dress(descriptor, entry)
            if os.fstat(descriptor).st_size != entry.size_bytes:
                os.ftruncate(descriptor, entry.size_bytes)
            wrong, offset = [], 0
            for extent in entry.extents:
                if _digest(descriptor, offset, extent) != extent.blake3:
                    wrong.append((offset, extent))
                offset += extent.length
            return wrong

    def remove_strangers(self, paths: Iterable[str]) -> None:
        """Remove what the backup does not have; never a root, never through a link, never pg_wal."""
        kept = {"pg_wal", MARKER, HELD_CONTROL}
        for path in paths:
            while path and path not in kept:
                kept.add(path)
                path = path.rpartition("/")[0]  # noqa: PLW2901 - the parents of an entry belong as well
        for root, prefix in ((self.root, ""), *((place, f"{path}/") for path, place in self.spaces.items())):
            self._remove_below(root, prefix, kept)

    def _remove_below(self, folder: Path, prefix: str, kept: set[str]) -> None:
        with os.scandir(folder) as listing:
            entries = list(listing)
        for entry in entries:
            path = prefix + entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            if path in kept:
                if is_directory and path != "pg_wal":
                    self._remove_below(Path(entry.path), f"{path}/", kept)
            elif is_directory:
                remove_tree(Path(entry.path))
            else:
                Path(entry.path).unlink()


def remove_tree(folder: Path) -> None:
    """Remove a directory and all below it; links are removed, not followed."""
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            Path(entry.path).unlink()
    folder.rmdir()


def _digest(descriptor: int, offset: int, extent: Extent) -> str:
    hasher, end = RunHasher(extent.run_bytes), offset + extent.length
    while offset < end:
        piece = os.pread(descriptor, min(end - offset, _PIECE_BYTES), offset)
        if not piece:
            break
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


def reveal_control(root: Path) -> None:
    """Put pg_control in place when everything else is written and synced, and take the marker away."""
    sync_tree(root)
    (root / HELD_CONTROL).rename(root / CONTROL)
    sync_directory(root / "global")
    (root / MARKER).unlink()
    sync_directory(root)
    sync_directory(root.parent)


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


def translated(error: OSError, destination: Path) -> RestoreError | StorageFull | StorageDenied:
    """An error of the destination's file system as one of Seawall's."""
    where = error.filename or destination
    if error.errno in _FULL:
        hint = "Free space, then go on with a delta restore into the same directory."
        return StorageFull(f"{where}: no space left in the destination", hint=hint)
    if error.errno in _DENIED:
        return StorageDenied(f"{where}: {error.strerror}")
    return RestoreError(f"{where}: {error.strerror}")
