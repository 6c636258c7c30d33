"""The folders of a local storage: opened one from another, made durably, removed when they are empty.

Invariants: no path leaves the root, because each folder is opened from the one above it and no symbolic link below the
root is followed. A root that vanished, or that became another folder on another file system since it was first used (an
unmounted share), is an unreachable storage and never an empty one; one that never was there is no repository.

Not guaranteed: that a folder still exists once its descriptor is in hand; who makes a file in it looks again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat as modes
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from seawall.errors import NotARepository, SeawallError, StorageUnreachable
from seawall.storage.base import is_object_name

logger = logging.getLogger(__name__)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FOLDER_MODE = 0o750

# Made by mkfs.ext4 at the top of a file system, closed to everyone but root, and never Seawall's.
_NOT_OURS = "lost+found"


class Folders:
    """Every folder at and below `root`, named by the parts of its path; safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._first_seen: tuple[int, int] | None = None
        self._lasting: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def open_root(self) -> int:
        """A descriptor of the root.

        Raises:
            NotARepository: it does not exist and never did in this object's time; retrying would not help.
            StorageUnreachable: it vanished, or is not the one that was first seen.
            OSError: it cannot be opened.
        """
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise self._absent() from error
        found = os.fstat(root)
        first = self._first_seen = self._first_seen or (found.st_dev, found.st_ino)
        # A share that is mounted again may get a new device number but keeps its inode; what lies under an unmounted
        # one differs in both.
        if found.st_dev != first[0] and found.st_ino != first[1]:
            os.close(root)
            raise StorageUnreachable(
                f"the folder {self.root} is on another file system than before",
                hint="Mount the disk or share again; if it was replaced on purpose, start Seawall anew.",
            )
        return root

    def never_made(self) -> bool:
        """Whether the root was not there when somebody first looked, so that nothing can lie in it yet."""
        return self._first_seen is None and not os.path.lexists(self.root)

    def open(self, parts: Sequence[str]) -> int | None:
        """A descriptor of the folder, or None where it is proved absent below a root that is there.

        Raises:
            NotARepository, StorageUnreachable: see `open_root`.
            OSError: it cannot be opened; ELOOP for a symbolic link on the way.
        """
        folder = self.open_root()
        for part in parts:
            try:
                inner = enter(folder, part)
            except (FileNotFoundError, NotADirectoryError):
                return None
            finally:
                os.close(folder)
            folder = inner
        return folder

    def make(self, parts: Sequence[str]) -> int:
        """A descriptor of the folder, made where it was missing, every entry on the way to it durable.

        Raises:
            StorageUnreachable: see `open_root`; a root that was never seen is made instead.
            NotADirectoryError: an object has the name of a folder on the way.
            OSError: it cannot be made.
        """
        self._make_root()
        folder = self.open_root()
        path = ""
        for part in parts:
            path = f"{path}/{part}"
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, _FOLDER_MODE, dir_fd=folder)
                inner = enter(folder, part)
                self._make_lasting(path, folder, inner)
            finally:
                os.close(folder)
            folder = inner
        return folder

    def remove_empty(self, parts: Sequence[str]) -> None:
        """Remove the folder and those above it as long as they are empty; the root stays."""
        for depth in range(len(parts), 0, -1):
            above = self.open(parts[: depth - 1])
            if above is None:
                continue
            with closing(above):
                try:
                    os.rmdir(parts[depth - 1], dir_fd=above)
                except FileNotFoundError:
                    continue
                except OSError:  # not empty, or not permitted: an empty folder harms nobody
                    return

    def _absent(self) -> SeawallError:
        if self._first_seen is not None:
            return StorageUnreachable(f"the folder {self.root} is gone", hint="Is the disk or share still mounted?")
        return NotARepository(
            f"the folder {self.root} does not exist",
            hint="Mount the disk or share that holds it, or make a new repository with `seawall init`.",
        )

    def _make_root(self) -> None:
        if self._first_seen is not None:
            return
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(_FOLDER_MODE, exist_ok=True)
            with closing(os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)) as above:
                sync_folder(above)

    def _make_lasting(self, path: str, above: int, folder: int) -> None:
        # A folder that another process has just made may not be durable yet, so each process syncs it once itself.
        key = (path, os.fstat(folder).st_ino)
        with self._lock:
            known = key in self._lasting
        if not known:
            sync_folder(above)
            with self._lock:
                self._lasting.add(key)


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """The descriptor, closed at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enter(folder: int, part: str) -> int:
    """Open a folder inside a folder.

    Raises:
        OSError: ELOOP for a symbolic link; the kernel says ENOTDIR, which would read as "proved absent".
    """
    try:
        return os.open(part, _FOLDER, dir_fd=folder)
    except NotADirectoryError as error:
        if modes.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, f"{part} is a symbolic link") from error
        raise


def entries(folder: int, *, top: bool) -> list[os.DirEntry[str]]:
    """Folders and regular files that can be objects; everything else is not Seawall's and stays unseen.

    The entries may ask the kernel for more, so `folder` must stay open as long as they are used.
    """
    found = []
    with os.scandir(folder) as everything:
        for entry in everything:
            if not is_object_name(entry.name) or (top and entry.name == _NOT_OURS):
                continue
            if is_folder(entry) or entry.is_file(follow_symlinks=False):
                found.append(entry)
            else:
                logger.warning("%s is neither a file nor a folder and is ignored", entry.name)
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def sync_folder(folder: int) -> None:
    """fsync a folder, so that the names made or removed in it last."""
    try:
        os.fsync(folder)
    except OSError as error:
        # fsync(2): a file system that has no such operation for folders (CIFS, some FUSE) writes names at once.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
