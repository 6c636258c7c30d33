"""Temporary directories that a killed process does not leave behind for ever.

Whoever makes one holds a lock on a file in it, which the kernel gives up with the process, however that ends. Whoever
makes the next one of the same name removes those of its own account that nobody holds.

Not guaranteed: that the last one ever made goes when its process is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_LOCK = ".held"
# Between its making and its lock a directory is held by nobody.
_FRESH_SECONDS = 60.0


class Temporary:
    """A new directory with mode 0700 that is held until `close`.

    Args:
        prefix: names what it is for; only directories with the same one are swept.
        parent: where it is made.
    """

    def __init__(self, prefix: str, parent: Path) -> None:
        _sweep(prefix, parent)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._held = _locked(self.path)

    def close(self) -> None:
        """Remove the directory and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(directory: Path) -> int | None:
    """A descriptor that holds the directory; None if somebody else does, or it is gone."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(prefix: str, parent: Path) -> None:
    for place in parent.glob(f"{prefix}*"):
        if not _is_old_and_ours(place):
            continue
        held = _locked(place)
        if held is not None:
            shutil.rmtree(place, ignore_errors=True)
            os.close(held)


def _is_old_and_ours(place: Path) -> bool:
    """In a directory that all may write to, others' directories and links are none of our business."""
    try:
        status = place.lstat()
    except OSError:
        return False
    is_directory = place.is_dir() and not place.is_symlink()
    return is_directory and status.st_uid == os.geteuid() and time.time() - status.st_mtime > _FRESH_SECONDS
