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
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from seawall.storage.base import Bytes
from seawall.wal import Lsn

BLOCK_BYTES = 8192
FRAME_BYTES = 2 * 1024 * 1024
_LANES = 32
# Arrays without dimensions: numpy takes them as operands without converting them at each call.
_PRIME = np.array(16777619, np.uint32)
_SHIFT = np.array(17, np.uint32)
_CHECKSUM_MASK = np.uint32(0xFFFF)
_FLAGS_MASK = np.uint32(0xFFFF0000)
_LOWER_MASK = np.uint32(0xFFFF)
# checksumBaseOffsets of checksum_impl.h, one for each lane.
_OFFSETS = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    dtype=np.uint32,
)  # fmt: skip
# What all lanes of a page take in in one round, moved as one thing.
_ROUND = np.dtype((np.void, 4 * _LANES))
_Words: TypeAlias = npt.NDArray[np.uint32]
# Fewer pages make numpy's cost of each call count, more no longer stay in the CPU's cache; measured.
_BATCH_PAGES = 512


class PageChecker:
    """Checks pages of frames of up to `frame_bytes`; not shared between threads.

    Args:
        frame_bytes: the most that one call of `check` gets; larger calls work, in several steps.
        block_bytes: the cluster's block size.
    """

    def __init__(self, frame_bytes: int = FRAME_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._rounds = block_bytes // (4 * _LANES)
        pages = max(1, min(_BATCH_PAGES, frame_bytes // block_bytes))
        self._pages = pages
        self._state = np.empty((pages, _LANES), np.uint32)
        self._mixed = np.empty((pages, _LANES), np.uint32)
        # The pages' words, those of one round side by side: numpy works on long runs several times faster.
        self._turned = np.empty(self._rounds * pages, _ROUND)
        self._numbers = np.arange(pages, dtype=np.uint32)

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
        count = len(view) // self._block_bytes
        words = np.frombuffer(view, dtype=np.uint32, count=count * self._block_bytes // 4)
        pages = words.reshape(count, self._rounds, _LANES)
        bad: list[int] = []
        for at in range(0, count, self._pages):
            batch = pages[at : at + self._pages]
            numbers = self._numbers[: len(batch)] + np.uint32(first_block + at)
            bad += [first_block + at + wrong for wrong in self._wrong(batch, numbers)]
        if skip_after is None or not bad:
            return bad
        return [block for block in bad if self._lsn(words, block - first_block) < skip_after]

    def check_scattered(self, view: Bytes, blocks: Sequence[int]) -> list[int]:
        """The positions of the pages in `view` whose checksum is wrong, where each is of a file of its own.

        Args:
            view: pages, and perhaps more.
            blocks: the number of each within its relation's fork.
        """
        count, bad = len(blocks), list[int]()
        words = np.frombuffer(view, dtype=np.uint32, count=count * self._block_bytes // 4)
        pages, numbers = words.reshape(count, self._rounds, _LANES), np.array(blocks, np.uint32)
        for at in range(0, count, self._pages):
            end = at + self._pages
            bad += [at + wrong for wrong in self._wrong(pages[at:end], numbers[at:end])]
        return bad

    def _wrong(self, pages: npt.NDArray[np.uint32], numbers: npt.NDArray[np.uint32]) -> list[int]:
        rounds = self._rounds_of(pages)
        stored = rounds[0][:, 2] & _CHECKSUM_MASK
        wrong = rounds[0][:, 3] <= _LOWER_MASK  # pd_upper is zero: never initialised, whatever its checksum says
        wrong |= self._checksums(rounds, numbers) != stored
        suspects = np.flatnonzero(wrong)
        if not suspects.size:
            return []
        nonzero = pages[suspects].reshape(suspects.size, -1).any(axis=1)
        return [int(i) for i in suspects[nonzero]]

    def _rounds_of(self, pages: npt.NDArray[np.uint32]) -> _Words:
        """The words of all pages by round, in a buffer of our own."""
        count = len(pages)
        turned = self._turned[: self._rounds * count].reshape(self._rounds, count)
        np.copyto(turned, pages.reshape(count, -1).view(_ROUND).T)
        return turned.view(np.uint32).reshape(self._rounds, count, _LANES)

    def _checksums(self, rounds: _Words, numbers: npt.NDArray[np.uint32]) -> _Words:
        count = rounds.shape[1]
        state, mixed = self._state[:count], self._mixed[:count]
        rounds[0][:, 2] &= _FLAGS_MASK  # the checksum is computed as if its own two bytes were zero
        state[:] = _OFFSETS
        for words in rounds:
            np.bitwise_xor(state, words, out=mixed)
            _mix(state, mixed)
        for _ in range(2):
            np.copyto(mixed, state)
            _mix(state, mixed)
        folded: _Words = np.bitwise_xor.reduce(state, axis=1)
        folded ^= numbers
        return folded % np.uint32(65535) + np.uint32(1)

    def _lsn(self, words: _Words, page: int) -> Lsn:
        at = page * self._block_bytes // 4
        return Lsn((int(words[at]) << 32) | int(words[at + 1]))


def _mix(state: _Words, mixed: _Words) -> None:
    """One round of CHECKSUM_COMP on all lanes, `mixed` being `state ^ value`: `state = mixed * prime ^ mixed >> 17`."""
    np.multiply(mixed, _PRIME, out=state)
    np.right_shift(mixed, _SHIFT, out=mixed)
    np.bitwise_xor(state, mixed, out=state)


def recheck(
    descriptor: int,
    block: int,
    first: Bytes,
    *,
    file_first_block: int = 0,
    pause: Callable[[], None] = lambda: time.sleep(0.005),
) -> bool:
    """Whether a page with a wrong checksum is corrupt: read again and still the same wrong bytes.

    Changed bytes mean that PostgreSQL was writing the page; WAL repairs it at restore (rule 9 of the repository's
    rules that protect data). The file may also have been truncated meanwhile, which is fine, too.

    Args:
        descriptor: the open relation file.
        block: the number that `PageChecker.check` reported.
        first: the page as it was read at first; its length is the block size.
        file_first_block: the number of the file's first block (`CopyEntry.first_block`).
        pause: called before reading again, so that a write in progress ends.
    """
    pause()
    again = os.pread(descriptor, len(first), (block - file_first_block) * len(first))
    return again == bytes(first)


def page_lsn(page: Bytes) -> Lsn:
    """The position of the last WAL record that changed the page (`bufpage.h`, PageXLogRecPtr)."""
    high, low = struct.unpack_from("=II", page)
    return Lsn((high << 32) | low)
