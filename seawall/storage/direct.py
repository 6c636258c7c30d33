"""Writing large files past the page cache (O_DIRECT), behind the thread that makes their content.

What a backup or a restore writes is not read again soon: copying it into the kernel's cache takes more processor time
than the rest of the way to the disk, and pushes out what the database needs. Two buffers and one thread hide the
disk's time. Where a file system has no direct writing (some network and memory ones), the same buffers are written
in the ordinary way.

Not guaranteed: durability, before the caller synced the file.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

# What every file system accepts for offsets, lengths and addresses: a page.
ALIGNMENT = 4096
BUFFER_BYTES = 2 * 1024 * 1024


def open_direct(path: str | os.PathLike[str], flags: int, *, dir_fd: int | None = None) -> int:
    """A descriptor for direct writing, or -1 where the file system has none."""
    try:
        return os.open(path, flags | os.O_DIRECT, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1


class Behind:
    """Writes of one thread, done by another, one after the other; used by one thread.

    Take `buffer`, fill it, `write` it; `settle` before a descriptor is closed or synced, or close it by `then`.
    """

    def __init__(self) -> None:
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(2)]
        self._under_way: list[Future[None] | None] = [None, None]
        self._jobs: deque[Future[None]] = deque()
        self._turn = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")

    def buffer(self) -> memoryview:
        """The buffer to fill next; waits until what was in it is written.

        Raises:
            OSError: that could not be written.
        """
        self._done(self._turn)
        return self._buffers[self._turn]

    def write(self, direct: int, ordinary: int, length: int, offset: int) -> None:
        """Begin to write the first `length` bytes of `buffer`, a multiple of `ALIGNMENT`, to an aligned offset.

        Args:
            direct: a descriptor of `open_direct`, perhaps -1.
            ordinary: another one of the same file.
        """
        view = self._buffers[self._turn][:length]
        self._under_way[self._turn] = self._thread.submit(_written, direct, ordinary, view, offset)
        self._turn = 1 - self._turn

    def then(self, job: Callable[[], None]) -> None:
        """Do something once all that was begun is done, such as closing the file; at once where nothing is under way.

        Raises:
            OSError: from `job` or from an earlier one.
        """
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        if not self._jobs and all(future is None or future.done() for future in self._under_way):
            job()
        else:
            self._jobs.append(self._thread.submit(job))

    def settle(self) -> None:
        """Wait until nothing is under way any more.

        Raises:
            OSError: some of what was begun could not be done.
        """
        wait([*self._jobs, *(future for future in self._under_way if future is not None)])
        self._done(self._turn)
        self._done(1 - self._turn)
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        """End the thread; what was begun is finished first, whatever becomes of it."""
        self._thread.shutdown(wait=True)

    def _done(self, number: int) -> None:
        future, self._under_way[number] = self._under_way[number], None
        if future is not None:
            future.result()


def _written(direct: int, ordinary: int, view: memoryview, offset: int) -> None:
    while view:
        count = _at_once(direct, ordinary, view, offset)
        view, offset = view[count:], offset + count


def _at_once(direct: int, ordinary: int, view: memoryview, offset: int) -> int:
    aligned = offset % ALIGNMENT == 0 and len(view) % ALIGNMENT == 0
    if direct < 0 or not aligned:
        return os.pwrite(ordinary, view, offset)
    try:
        return os.pwrite(direct, view, offset)
    except OSError as error:
        # A device of larger sectors, or a file system that only said that it can.
        if error.errno != errno.EINVAL:
            raise
        return os.pwrite(ordinary, view, offset)
