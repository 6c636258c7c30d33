"""How a cluster's files are packed into bundles: pure, so that it can be shown and tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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

    @classmethod
    def whole(cls, entry: CopyEntry) -> Part:
        return cls(entry, 0, entry.size)


def pack(parts: Sequence[Part], workers: int) -> list[tuple[Part, ...]]:
    """Every byte of every part exactly once, in loads for one bundle each, the largest loads first.

    A load is smaller than a full bundle where there is little to store, so that all workers end at about the same
    time. Parts are cut at multiples of the load, which are multiples of every page size and run; relation files come
    before others in a load, so that pages lie aligned in the frames.
    """
    total = sum(part.length for part in parts)
    target = _target(total, workers)
    loads: list[tuple[Part, ...]] = [(piece,) for part in parts for piece in _whole_pieces(part, target)]
    rests = sorted(_rests(parts, target), key=lambda part: (not part.entry.is_relation, part.entry.path, part.offset))
    loads.extend(_grouped(rests, target))
    return sorted(loads, key=lambda load: -sum(part.length for part in load))


def _target(total: int, workers: int) -> int:
    share = total // (workers * 8)
    size = max(_LEAST_BYTES, min(BUNDLE_BYTES, share))
    return size - size % _LEAST_BYTES


def _whole_pieces(part: Part, target: int) -> Iterator[Part]:
    for number in range(part.length // target):
        yield replace(part, offset=part.offset + number * target, length=target)


def _rests(parts: Iterable[Part], target: int) -> Iterator[Part]:
    for part in parts:
        rest = part.length % target
        if rest:
            yield replace(part, offset=part.offset + part.length - rest, length=rest)


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
