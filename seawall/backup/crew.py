"""The writers of a copy: how many there are, and why one that waits for the storage holds nothing up.

A writer makes a bundle while the storage takes it. Only making one costs a processor, and for that there are as many
slots as processors; a writer has a slot while it reads, hashes, compresses and seals a piece, and none while the
storage takes it. So there can be more writers than slots, and what a slow put holds is a writer. Their number follows
what is measured: `next_crew` is pure, and `Crew` does as it says.

Memory is bounded by the number of writers, never by what they have to store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from seawall.backup.output import Output
from seawall.storage.base import Bytes

# Buffers of a writer and what a remote storage's driver has under way for it: some 40 MB each.
EXTRA_WRITERS = 4
_INTERVAL_SECONDS = 0.5
# From here on the processors are what limits, and another writer would only wait for a slot.
_BUSY_SHARE = 0.8
# A writer more has to bring so much, or it goes again.
_LEAST_GAIN = 1.05
# So many intervals later it is tried again: a line or a storage may have become another.
_REST_INTERVALS = 60


@dataclass(frozen=True, slots=True)
class Bounds:
    """The fewest writers, which is the number of slots, and the most."""

    slots: int
    most: int

    @classmethod
    def of(cls, workers: int, *, adapts: bool) -> Bounds:
        """As many writers as workers, and a few more where that may follow what is measured."""
        return cls(workers, workers + (EXTRA_WRITERS if adapts else 0))

    @property
    def first(self) -> int:
        """How many writers to begin with: where it may be, one more than slots, as every put ends with a flush."""
        return min(self.slots + 1, self.most)


@dataclass(frozen=True, slots=True)
class Measured:
    """An interval: which share of the slots' time was used, and how much was handed to the storage."""

    busy_share: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Crewing:
    """How many writers there shall be.

    Args:
        bytes_per_second: before the newest writer came; None where none is on trial.
        rest: intervals until another one is tried.
    """

    writers: int
    bytes_per_second: float | None = None
    rest: int = 0


def next_crew(now: Crewing, measured: Measured, bounds: Bounds) -> Crewing:
    """One writer more while processors are idle and the last one brought something; pure.

    Processors are idle when writers wait: for a storage far away, for one put that hangs, for a disk's flush.
    """
    if now.bytes_per_second is not None and measured.bytes_per_second < now.bytes_per_second * _LEAST_GAIN:
        return Crewing(max(now.writers - 1, bounds.slots), rest=_REST_INTERVALS)
    kept = replace(now, bytes_per_second=None, rest=max(now.rest - 1, 0))
    if measured.busy_share >= _BUSY_SHARE or now.writers >= bounds.most or now.rest:
        return kept
    return Crewing(now.writers + 1, bytes_per_second=measured.bytes_per_second)


class Slots:
    """Who may use a processor; knows how much these were used."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = count
        self._clock = clock
        self._free = threading.BoundedSemaphore(count)
        self._lock = threading.Lock()
        self._busy_seconds = 0.0
        self._made_bytes = 0
        self._looked_at = clock()

    def making(self, chunks: Iterator[Bytes]) -> Iterator[Bytes]:
        """The same chunks, each made with a slot, which is given back before whoever asked goes on with it."""
        while True:
            with self._free:
                begin = self._clock()
                chunk = next(chunks, None)
                seconds = self._clock() - begin
            with self._lock:
                self._busy_seconds += seconds
                self._made_bytes += 0 if chunk is None else len(chunk)
            if chunk is None:
                return
            yield chunk

    def measured(self) -> Measured:
        """What happened since this was asked last."""
        with self._lock:
            now = self._clock()
            seconds = max(now - self._looked_at, 1e-9)
            found = Measured(self._busy_seconds / seconds / self.count, self._made_bytes / seconds)
            self._busy_seconds, self._made_bytes, self._looked_at = 0.0, 0, now
        return found


class Crew:
    """Writers at work on a common stock of loads."""

    def __init__(self, bounds: Bounds, slots: Slots, output: Output) -> None:
        self._bounds, self._slots, self._output = bounds, slots, output
        self._crewing = Crewing(bounds.first)
        self._lock = threading.Lock()
        self._at_work = 0

    def run(self, work: Callable[[Callable[[], bool]], None], is_left: Callable[[], bool]) -> None:
        """Have everything done; the first error stops all writers and is the one that is raised.

        Args:
            work: what one writer does until nothing is left; it asks between two loads whether it shall go on.
            is_left: whether there is a load that nobody took.
        """
        with ThreadPoolExecutor(self._bounds.most, thread_name_prefix="copy") as pool:
            futures = {self._begin(pool, work) for _ in range(self._crewing.writers)}
            failed: Future[None] | None = None
            while futures and failed is None:
                done, futures = wait(futures, _INTERVAL_SECONDS, FIRST_EXCEPTION)
                failed = next((future for future in done if future.exception()), None)
                if failed is None and is_left():
                    self._crewing = next_crew(self._crewing, self._slots.measured(), self._bounds)
                    futures |= {self._begin(pool, work) for _ in range(self._crewing.writers - self._at_work)}
            if failed is not None:
                self._output.failed.set()
        if failed is not None:
            failed.result()

    def _begin(self, pool: ThreadPoolExecutor, work: Callable[[Callable[[], bool]], None]) -> Future[None]:
        with self._lock:
            self._at_work += 1
        return pool.submit(self._work, work)

    def _work(self, work: Callable[[Callable[[], bool]], None]) -> None:
        left = [False]

        def goes_on() -> bool:
            with self._lock:
                if self._at_work > self._crewing.writers:
                    self._at_work -= 1
                    left[0] = True
                    return False
            return True

        try:
            work(goes_on)
        finally:
            if not left[0]:
                with self._lock:
                    self._at_work -= 1
