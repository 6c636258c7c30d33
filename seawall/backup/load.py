"""How a cluster's files are packed into bundles: pure, so that it can be shown and tested.

A cluster may have a million files, so parts are numbers in arrays until a worker asks for them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from seawall.codec import BUNDLE_BYTES
from seawall.postgres.scan import CopyEntry

# Each object costs a sync, a request and an entry in the log, and a restore of a chain reads the index of each.
_LEAST_BYTES = 16 * 1024 * 1024
_MOST_PARTS = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """`length` bytes of a file from `offset`."""

    entry: CopyEntry
    offset: int
    length: int

    @classmethod
    def whole(cls, entry: CopyEntry) -> Part:
        return cls(entry, 0, entry.size)


class WholeFiles(Sequence[Part]):
    """All bytes of some of the entries of a listing.

    Args:
        numbers: which of them, in their order.
    """

    def __init__(self, entries: Sequence[CopyEntry], numbers: array[int]) -> None:
        self._entries, self._numbers = entries, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Part: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Part]: ...

    def __getitem__(self, number: int | slice) -> Part | Sequence[Part]:
        if isinstance(number, slice):
            return WholeFiles(self._entries, self._numbers[number])
        return Part.whole(self._entries[self._numbers[number]])


class Pieces(Sequence[Part]):
    """Parts of some of the entries of a listing; to be sorted when all are there."""

    def __init__(self, entries: Sequence[CopyEntry]) -> None:
        self._entries = entries
        self._numbers, self._offsets, self._lengths = array("Q"), array("Q"), array("Q")

    def add(self, number: int, offset: int, length: int) -> None:
        """Take `length` bytes of an entry in, from its byte `offset` on."""
        self._numbers.append(number)
        self._offsets.append(offset)
        self._lengths.append(length)

    def sort(self) -> None:
        """Into the order of entries, and in each of them of its bytes."""
        order = np.lexsort((self._offsets, self._numbers))
        for column in (self._numbers, self._offsets, self._lengths):
            column[:] = array("Q", np.frombuffer(column, np.uint64)[order].tobytes())

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Part: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Part]: ...

    def __getitem__(self, number: int | slice) -> Part | Sequence[Part]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        return Part(self._entries[self._numbers[number]], self._offsets[number], self._lengths[number])


class Load:
    """What one bundle holds: pieces of parts, each made when it is asked for."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._numbers, self._begins, self._lengths = array("Q"), array("Q"), array("Q")
        self.total_bytes = 0

    def add(self, number: int, begin: int, length: int) -> None:
        """Take `length` bytes of a part in, from its byte `begin` on."""
        self._numbers.append(number)
        self._begins.append(begin)
        self._lengths.append(length)
        self.total_bytes += length

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Part]:
        for number, begin, length in zip(self._numbers, self._begins, self._lengths, strict=True):
            part = self._parts[number]
            yield part if length == part.length else replace(part, offset=part.offset + begin, length=length)


def pack(parts: Sequence[Part], workers: int) -> list[Load]:
    """Every byte of every part exactly once, in loads for one bundle each, the largest loads first.

    A load is smaller than a full bundle where there is little to store, so that all workers end at about the same
    time. Parts are cut at multiples of the load, which are multiples of every page size and run; relation files come
    before others in a load, so that pages lie aligned in the frames.

    Args:
        parts: in the order of their paths, as a restore will write them; gone through once, and then by number.
    """
    lengths = array("Q")
    relations, others = array("Q"), array("Q")
    for number, part in enumerate(parts):
        lengths.append(part.length)
        (relations if part.entry.is_relation else others).append(number)
    target = _target(sum(lengths), workers)
    loads: list[Load] = []
    for number, length in enumerate(lengths):
        for begin in range(0, length - length % target, target):
            loads.append(Load(parts))
            loads[-1].add(number, begin, target)
    loads += _grouped(parts, relations + others, lengths, target)
    return sorted(loads, key=lambda load: -load.total_bytes)


def _target(total: int, workers: int) -> int:
    share = total // (workers * 8)
    size = max(_LEAST_BYTES, min(BUNDLE_BYTES, share))
    return size - size % _LEAST_BYTES


def _grouped(parts: Sequence[Part], numbers: Sequence[int], lengths: array[int], target: int) -> Iterator[Load]:
    """What is left of parts when whole pieces are cut off, many in one load."""
    group = Load(parts)
    for number in numbers:
        rest = lengths[number] % target
        if not rest:
            continue
        if len(group) and (group.total_bytes + rest > target or len(group) >= _MOST_PARTS):
            yield group
            group = Load(parts)
        group.add(number, lengths[number] - rest, rest)
    if len(group):
        yield group
