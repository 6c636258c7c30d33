"""PostgreSQL's page checksums over many pages at once.

Algorithm: PostgreSQL `src/include/storage/checksum_impl.h` (32 parallel FNV-1a lanes, mixed with the block
number). numpy computes whole frames in buffers that are allocated once and reused; it releases the GIL, so
several checkers run side by side, one for each thread.

Not guaranteed: that a page with the right checksum has sensible content.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from seawall.storage.base import Bytes
from seawall.wal import Lsn

BLOCK_BYTES = 8192
FRAME_BYTES = 2 * 1024 * 1024


class PageChecker:
    """Checks pages of frames of up to `frame_bytes`; not shared between threads.

    Args:
        frame_bytes: the most that one call of `check` gets; memory of about 1.5 times the block of work below.
        block_bytes: the cluster's block size.
    """

    def __init__(self, frame_bytes: int = FRAME_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        raise NotImplementedError

    def check(self, view: Bytes, first_block: int, skip_after: Lsn | None = None) -> list[int]:
        """The numbers of the pages in `view` whose checksum is wrong.

        A page that was never initialised (`pd_upper` 0) is right only if it is wholly zero. Bytes after the last
        whole block are not judged.

        Args:
            view: consecutive pages.
            first_block: the number of the first one within its relation's fork (over all its files).
            skip_after: do not report pages whose LSN is at or after this: when it is the backup's start, WAL holds
                a full image of them. A flipped bit in the LSN itself can hide there, so prefer None and `recheck`.
        """
        raise NotImplementedError


def recheck(
    descriptor: int,
    block: int,
    first: Bytes,
    *,
    file_first_block: int = 0,
    pause: Callable[[], None] = lambda: time.sleep(0.05),
) -> bool:
    """Whether a page with a wrong checksum is corrupt: read again and still the same wrong bytes.

    Changed bytes mean that PostgreSQL was writing the page; WAL repairs it at restore (rule 9 of the repository's
    rules that protect data). The file may also have been truncated meanwhile, which is fine, too.

    Args:
        descriptor: the open relation file.
        block: the number that `PageChecker.check` reported.
        first: the page as it was read at first.
        file_first_block: the number of the file's first block (`CopyEntry.first_block`).
        pause: called before reading again, so that a write in progress ends.
    """
    raise NotImplementedError


def page_lsn(page: Bytes) -> Lsn:
    """The position of the last WAL record that changed the page (`bufpage.h`, PageXLogRecPtr)."""
    high, low = struct.unpack_from("=II", page)
    return Lsn((high << 32) | low)
