"""Parts of files from objects other than the one that leads: fetched many at once, each frame opened once for them."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from seawall.codec import FRAME_BYTES, Entry, Index
from seawall.repository.wanted import Part

# `(object, extents) -> (path, offset, bytes)…`: pieces of extents in the order of the object, proved at the end.
Fetch: TypeAlias = Callable[[str, Sequence[Entry]], Iterable[tuple[str, int, memoryview]]]

# How many extents the kept indexes may list together, some 300 bytes each.
_KEPT_EXTENTS = 64 * 1024


class Indexes:
    """Indexes of bundles, read once for all workers: objects one after the other lead to the same others.

    Args:
        read: reads the index of an object.
    """

    def __init__(self, read: Callable[[str], Index]) -> None:
        self._read = read
        self._kept: dict[str, Index] = {}
        self._extents = 0
        self._lock = threading.Lock()

    def take(self, name: str) -> Index:
        """The index of an object, for the calling thread alone.

        Raises:
            ObjectMissing, Damaged, KeyMissing: from reading it.
        """
        with self._lock:
            found = self._kept.get(name)
        if found is None:
            found = self._read(name)
        self._keep(name, found)
        return replace(found, decoder=found.decoder.twin())

    def _keep(self, name: str, index: Index) -> None:
        """Keep what was asked for last, as much as there is room for."""
        with self._lock:
            if self._kept.pop(name, None) is None:
                self._extents += len(index.entries)
            self._kept[name] = index
            while self._extents > _KEPT_EXTENTS and len(self._kept) > 1:
                oldest = next(iter(self._kept))
                self._extents -= len(self._kept.pop(oldest).entries)


def fetched(parts: Sequence[Part], fetch: Fetch, room_bytes: int) -> Iterator[memoryview]:
    """The bytes of each part, in their order, proved by its hash.

    Args:
        fetch: reads extents of an object.
        room_bytes: how much of them is held at most, or one part.

    Raises:
        Damaged: one is not what its hash says.
    """
    patches = _Patches(parts, fetch, room_bytes)
    for number in range(len(parts)):
        yield patches.take(number)


class _Patches:
    def __init__(self, parts: Sequence[Part], fetch: Fetch, room_bytes: int) -> None:
        self._parts, self._fetch, self._room_bytes = parts, fetch, room_bytes
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._last_frames = [(part.entry.plain_offset + part.entry.length - 1) // FRAME_BYTES for part in parts]
        self._waiting: defaultdict[str, deque[int]] = defaultdict(deque)
        for number, part in enumerate(parts):
            self._waiting[part.object].append(number)

    def take(self, number: int) -> memoryview:
        if number not in self._held:
            for name, numbers in self._chosen(number).items():
                self._read(name, numbers)
        found = self._held.pop(number)
        self._held_bytes -= len(found)
        return memoryview(found)

    def _chosen(self, first: int) -> dict[str, list[int]]:
        """What to fetch now, by object: from a part on as much as there is room for."""
        chosen: defaultdict[str, list[int]] = defaultdict(list)
        room = self._room_bytes - self._held_bytes
        for number in range(first, len(self._parts)):
            name, entry = self._parts[number]
            if number not in self._held:
                room -= entry.length
                if room < 0 and number > first:
                    break
                chosen[name].append(self._waiting[name].popleft())
        for name, numbers in chosen.items():
            self._complete(name, numbers)
        return chosen

    def _complete(self, name: str, numbers: list[int]) -> None:
        """What the last frame still has for later goes along: it is opened anyway, and would be opened again."""
        waiting = self._waiting[name]
        last = self._last_frames[numbers[-1]]
        while waiting and self._last_frames[waiting[0]] == last:
            numbers.append(waiting.popleft())

    def _read(self, name: str, numbers: Iterable[int]) -> None:
        ordered = sorted(numbers, key=lambda number: self._parts[number].entry.plain_offset)
        pieces = iter(self._fetch(name, [self._parts[number].entry for number in ordered]))
        for number in ordered:
            found = b""
            while len(found) < self._parts[number].entry.length:
                found += next(pieces)[2]
            self._held[number] = found
            self._held_bytes += len(found)
        # At their end the last of them is proved.
        for _ in pieces:
            pass
