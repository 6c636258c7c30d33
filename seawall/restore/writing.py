"""Writing the files of a restore: neighbouring pieces become one large write, past the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from seawall.restore.tree import Tree
from seawall.storage.direct import ALIGNMENT, BUFFER_BYTES, Behind, open_direct

_WRITING = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# Less is written through the page cache: there the disk's time for each write would count.
_LARGE_BYTES = 32 * 1024


class FileWriter:
    """The one file that a worker writes to at the moment; used by one thread.

    Args:
        written: called with the number of bytes of each write.
    """

    def __init__(self, tree: Tree, written: Callable[[int], None]) -> None:
        self._tree, self._written = tree, written
        self._behind = Behind()
        self._buffer = self._behind.buffer()
        self._path, self._modified_at = "", 0.0
        self._descriptor = self._direct = -1
        self._begin = self._used = self._room = 0
        self._is_behind = False

    def write(self, path: str, offset: int, piece: memoryview, modified_at: float) -> None:
        """Write a piece; what follows it in the file is written together with it.

        Args:
            modified_at: when the file was, in seconds of Unix time.
        """
        if path != self._path:
            self.finish()
            self._descriptor = os.open(self._tree.path(path), _WRITING)
            self._path, self._modified_at = path, modified_at
        if offset != self._begin + self._used:
            self._flush()
        while piece:
            if not self._used:
                self._take_buffer(offset)
            taken = min(self._room - self._used, len(piece))
            self._buffer[self._used : self._used + taken] = piece[:taken]
            self._used += taken
            piece, offset = piece[taken:], offset + taken
            if self._used == self._room:
                self._flush()

    def _take_buffer(self, offset: int) -> None:
        self._buffer = self._behind.buffer()
        # A write that begins within a page ends where one does, so that the next is aligned.
        self._begin, self._room = offset, BUFFER_BYTES - offset % ALIGNMENT

    def _flush(self) -> None:
        used, self._used = self._used, 0
        if not used:
            return
        is_large = used >= _LARGE_BYTES and self._begin % ALIGNMENT == 0
        length = used // ALIGNMENT * ALIGNMENT if is_large else 0
        rest, offset = self._buffer[length:used], self._begin + length
        while rest:
            done = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[done:], offset + done
        if length:
            if self._direct < 0:
                self._direct = open_direct(self._tree.path(self._path), _WRITING)
            self._behind.write(self._direct, self._descriptor, length, self._begin)
            self._is_behind = True
        self._begin += used
        self._written(used)

    def finish(self) -> None:
        """The open file gets its time and is closed, once all of it that was begun is written."""
        if self._descriptor < 0:
            return
        self._flush()
        # Every worker that wrote a part sets the time, so the last one leaves it right.
        close = partial(_closed, self._descriptor, self._direct, self._modified_at)
        is_behind, self._is_behind = self._is_behind, False
        self._path, self._descriptor, self._direct, self._begin = "", -1, -1, 0
        if is_behind:
            self._behind.then(close)
        else:
            # Small files must not wait for a large one's write: there may be more of them than may be open.
            close()

    def settle(self) -> None:
        """Wait until all files are written and closed.

        Raises:
            OSError: something could not be written.
        """
        self.finish()
        self._behind.settle()

    def close(self) -> None:
        """End, also after an error: nothing is under way any more, and nothing is open."""
        self._behind.close()
        for descriptor in (self._descriptor, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._direct = -1


def _closed(descriptor: int, direct: int, modified_at: float) -> None:
    try:
        os.utime(descriptor, (modified_at, modified_at))
    finally:
        os.close(descriptor)
        if direct >= 0:
            os.close(direct)
