"""How a cluster's files are packed into bundles: pure, so that it can be shown and tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from seawall.codec import BUNDLE_BYTES
from seawall.postgres.scan import CopyEntry

_LEAST_BYTES = 4 * 1024 * 1024
_MOST_PARTS = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """`length` bytes of a file from `offset`."""

    entry: CopyEntry
    offset: int
    length: int


def pack(files: Sequence[CopyEntry], workers: int) -> list[tuple[Part, ...]]:
    """Every byte of every file exactly once, in loads for one bundle each, the largest loads first.

    A load is smaller than a full bundle where the cluster is small, so that all workers end at about the same
    time. Files are cut at multiples of the load, which are multiples of every page size; relation files come
    before others in a load, so that pages lie aligned in the frames.
    """
    total = sum(file.size for file in files)
    target = _target(total, workers)
    loads: list[tuple[Part, ...]] = [(part,) for file in files for part in _whole_parts(file, target)]
    rests = sorted(_rests(files, target), key=lambda part: (not part.entry.is_relation, part.entry.path))
    loads.extend(_grouped(rests, target))
    return sorted(loads, key=lambda load: -sum(part.length for part in load))


def _target(total: int, workers: int) -> int:
    share = total // (workers * 8)
    size = max(_LEAST_BYTES, min(BUNDLE_BYTES, share))
    return size - size % _LEAST_BYTES


def _whole_parts(file: CopyEntry, target: int) -> Iterator[Part]:
    for number in range(file.size // target):
        yield Part(file, number * target, target)


def _rests(files: Iterable[CopyEntry], target: int) -> Iterator[Part]:
    for file in files:
        if file.size % target:
            yield Part(file, file.size - file.size % target, file.size % target)


def _grouped(parts: Iterable[Part], target: int) -> Iterator[tuple[Part, ...]]:
    group: list[Part] = []
    length = 0
    for part in parts:
        if group and (length + part.length > target or len(group) >= _MOST_PARTS):
            yield tuple(group)
            group, length = [], 0
        group.append(part)
        length += part.length
    if group:
        yield tuple(group)
