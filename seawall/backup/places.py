"""Where the rows of each path lie, in sixteen bytes for each: a cluster may have a million files."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Places:
    """Places by path. They are found by a hash, so whoever reads one must see that it is of the path.

    All are added before the first is looked for; then several threads may look.
    """

    def __init__(self) -> None:
        self._hashes, self._places = array("q"), array("Q")
        self._sorted: tuple[array[int], array[int]] | None = None

    def add(self, path: str, place: int) -> None:
        """Note a place of a path, perhaps one of several."""
        self._hashes.append(hash(path))
        self._places.append(place)
        self._sorted = None

    def of(self, path: str) -> array[int]:
        """The places that may be of a path, in the order in which they were added."""
        if self._sorted is None:
            self._sorted = self._by_hash()
        hashes, places = self._sorted
        wanted = hash(path)
        begin = bisect_left(hashes, wanted)
        return places[begin : bisect_right(hashes, wanted, begin)]

    def __iter__(self) -> Iterator[int]:
        """All places in the order in which they were added."""
        return iter(self._places)

    def _by_hash(self) -> tuple[array[int], array[int]]:
        if not self._places:
            return array("q"), array("Q")
        import numpy as np  # noqa: PLC0415 - its import takes 0.1 s, which a command has while it waits for a server

        hashes, places = np.frombuffer(self._hashes, np.int64), np.frombuffer(self._places, np.uint64)
        order = np.argsort(hashes, kind="stable")
        return array("q", hashes[order].tobytes()), array("Q", places[order].tobytes())
