"""A local file that is written under a temporary name and then appears under its own, whole or not at all.

Invariants: the final name never holds a part of an object, and nothing that it holds is ever replaced. The order is
write → fsync the file → create-only publication → fsync the folder; a kill or a power cut between any two steps leaves
at most a file that begins with `.tmp-` or `.claim-`, which no object name does.

Not guaranteed: that such leftovers go away by themselves; `LocalStorage.sweep` removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence

from seawall.storage.base import Bytes
from seawall.storage.folders import sync_folder

TEMPORARY = ".tmp-"
CLAIM = ".claim-"

# Write-back is asked for after this many bytes, so that the fsync at the end finds little left to do and a backup
# does not push the database's own pages out of the cache.
_WRITE_BACK_BYTES = 8 * 1024 * 1024

# linux/fs.h: RENAME_NOREPLACE
_RENAME_NOREPLACE = 1

# What a file system answers to a way of publishing that it does not have (FAT says EPERM to link, CIFS and FUSE
# EOPNOTSUPP or ENOSYS, an unknown rename flag is EINVAL). A true denial comes again from the last way.
_NO_SUCH_WAY = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})

Publish = Callable[[int, str, str], None]


def by_link(folder: int, temporary: str, leaf: str) -> None:
    """link(2), then remove the temporary name: create-only on every POSIX file system, NFS included.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # NFS: the answer to our own successful request may be lost and the repetition be told that the name exists
        # (open(2) and link(2), BUGS). Only then are both names the same file.
        if not _same_file(folder, temporary, leaf):
            raise
    # The object stands; a leftover second name is invisible, and swept later.
    with contextlib.suppress(OSError):
        os.unlink(temporary, dir_fd=folder)


def by_rename(folder: int, temporary: str, leaf: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, for file systems without hard links (FAT, exFAT, CIFS, many FUSE ones).

    Raises:
        FileExistsError: the name is taken.
    """
    import ctypes  # noqa: PLC0415 - costs milliseconds that the WAL path has not, and few file systems need it

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if rename(folder, os.fsencode(temporary), folder, os.fsencode(leaf), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), leaf)


def by_claim(folder: int, temporary: str, leaf: str) -> None:
    """A claim file made with O_EXCL admits one writer at a time, who looks and then renames.

    A writer that is killed in between leaves its claim, and later puts of this name fail until `sweep` removes it:
    waiting is safe, taking a claim over is not.

    Raises:
        FileExistsError: the name is taken.
        BlockingIOError: another writer holds the claim, or was killed while it did.
    """
    claim = CLAIM + leaf
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=folder))
    except FileExistsError as error:
        raise BlockingIOError(errno.EBUSY, "another writer claims this name, or was killed while it did") from error
    try:
        if _exists(folder, leaf):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), leaf)
        os.rename(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(claim, dir_fd=folder)


WAYS: tuple[Publish, ...] = (by_link, by_rename, by_claim)


class Draft:
    """One file on its way to becoming an object; `folder` is a descriptor that the draft owns from now on."""

    def __init__(self, folder: int, leaf: str) -> None:
        """Make the temporary file.

        Raises:
            FileNotFoundError: somebody removed the folder since it was opened; it is still the caller's to close.
        """
        self._temporary = f"{TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
        self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=folder)
        self._folder = folder
        self._leaf = leaf
        self._asked_back = 0
        self.size_bytes = 0

    def taken(self) -> bool:
        """Whether something lies under the final name already."""
        return _exists(self._folder, self._leaf)

    def write(self, chunk: Bytes) -> None:
        """Append a chunk; the kernel may take it in several parts."""
        size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
        written = os.write(self._file, chunk)
        while written < size:
            written += os.write(self._file, memoryview(chunk).cast("B")[written:])
        self.size_bytes += size
        if self.size_bytes - self._asked_back >= _WRITE_BACK_BYTES:
            self._write_back()

    def sync(self) -> os.stat_result:
        """Make the content durable. A failure is final: after it the kernel may drop the pages it could not write."""
        os.fsync(self._file)
        return os.fstat(self._file)

    def publish(self, ways: Sequence[Publish]) -> None:
        """Give the file its final name by the first way that this file system has.

        Raises:
            FileExistsError: the name is taken; nothing was changed.
        """
        for way in ways[:-1]:
            try:
                way(self._folder, self._temporary, self._leaf)
            except OSError as error:
                if error.errno not in _NO_SUCH_WAY:
                    raise
            else:
                return
        ways[-1](self._folder, self._temporary, self._leaf)

    def settle(self) -> None:
        """Make the folder's entry durable: before this, a power cut takes the name away again."""
        sync_folder(self._folder)

    def withdraw(self) -> None:
        """Take the final name away again, because it could not be made durable."""
        with contextlib.suppress(OSError):
            os.unlink(self._leaf, dir_fd=self._folder)

    def close(self) -> None:
        """Remove what is left under the temporary name."""
        # What matters was synced before it was published, so no failure here takes anything away.
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._folder)
        os.close(self._folder)

    def _write_back(self) -> None:
        # Advice: a file system that does not take it only syncs later.
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._file, 0, self.size_bytes, os.POSIX_FADV_DONTNEED)
        self._asked_back = self.size_bytes


def _exists(folder: int, leaf: str) -> bool:
    try:
        os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _same_file(folder: int, temporary: str, leaf: str) -> bool:
    one = os.stat(temporary, dir_fd=folder, follow_symlinks=False)
    other = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    return os.path.samestat(one, other)
