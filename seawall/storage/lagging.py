"""A storage whose lists lag behind, for tests of everything that finds things by listing.

Object stores have promised no more than this: what was put can be read at once, but a list shows it, or shows that it
is gone, only some time later, and each name at a time of its own. Time is counted in calls, so that tests repeat.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from seawall.storage.base import Bytes, Capabilities, Stat, Storage, checked_folder, checked_prefix
from seawall.storage.wrappers import Wrapper


@dataclass(frozen=True, slots=True)
class _Change:
    """What became of a name, and from which call on lists show it; no stat when it was deleted."""

    shown_from: int
    stat: Stat | None


class Lagging(Wrapper):
    """Hands calls on; lists and children show each put and delete up to `lag` calls late.

    Put, get, stat and delete are exact, as for every store that Seawall can use: creating an object must decide between
    two writers.

    Args:
        lag: the most calls that pass before a list shows a change; each takes a random number of them.
        randomness: seeded by the test.
    """

    def __init__(self, inner: Storage, lag: int, randomness: random.Random) -> None:
        super().__init__(inner)
        self._lag = lag
        self._randomness = randomness
        self._lock = threading.Lock()
        self._calls = 0
        self._listed = {stat.name: stat for stat in inner.list()}
        self._changes: dict[str, list[_Change]] = {}

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, consistent_list=False)

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        stat = self.inner.put(name, chunks)
        self._changed(name, stat)
        return stat

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._tick()
        return self.inner.get(name, offset, length)

    def stat(self, name: str) -> Stat:
        self._tick()
        return self.inner.stat(name)

    def delete(self, name: str) -> None:
        self.inner.delete(name)
        self._changed(name, None)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        checked_prefix(prefix)
        shown = self._shown()
        yield from (shown[name] for name in sorted(shown) if name.startswith(prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        checked_folder(folder)
        below = (name.removeprefix(folder) for name in self._shown() if name.startswith(folder))
        return tuple(sorted({name.partition("/")[0] for name in below}))

    def settle(self) -> None:
        """Let so much time pass that lists show everything."""
        with self._lock:
            self._calls += self._lag + 1

    def _tick(self) -> None:
        with self._lock:
            self._calls += 1

    def _changed(self, name: str, stat: Stat | None) -> None:
        with self._lock:
            self._calls += 1
            change = _Change(self._calls + self._randomness.randint(0, self._lag), stat)
            self._changes.setdefault(name, []).append(change)

    def _shown(self) -> dict[str, Stat]:
        with self._lock:
            self._calls += 1
            for name, changes in list(self._changes.items()):
                self._catch_up(name, changes)
            return dict(self._listed)

    def _catch_up(self, name: str, changes: Sequence[_Change]) -> None:
        # The newest change that is shown hides the older ones, however long those would have taken.
        due = [number for number, change in enumerate(changes) if change.shown_from <= self._calls]
        if not due:
            return
        stat = changes[due[-1]].stat
        if stat is None:
            self._listed.pop(name, None)
        else:
            self._listed[name] = stat
        self._changes[name] = [*changes[due[-1] + 1 :]]
        if not self._changes[name]:
            del self._changes[name]
