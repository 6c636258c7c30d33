"""The getting side of the agent: serves WAL to a recovering server and fetches ahead of it.

Three answers exist, and they are never confused: here it is; proved absent; not known (the storage did not answer,
a key is missing, an object is damaged, or segments on both sides of the asked one exist, which is a gap). Recovery
takes "absent" for the end of WAL, so only a proof may say it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.archive.intake import read_header
from seawall.archive.store import WalStore
from seawall.errors import ObjectMissing, UsageError, WalGap
from seawall.events import Noticed, Observer
from seawall.wal import DEFAULT_SEGMENT_BYTES, Segment, is_archive_name

if TYPE_CHECKING:
    from seawall.keys import KeyRing

_log = logging.getLogger(__name__)
_LIST_AGAIN_SECONDS = 1.0
_FALLBACK_SUFFIX = ".partial"


class Prefetcher:
    """Answers gets.

    Args:
        wal: where WAL is stored.
        ring: opens it.
        directory: on this host, where fetched segments wait, unnamed: they vanish with the process.
        workers: segments fetched at once.
        depth: how many segments wait at most.
        gap_patience_seconds: how long a segment may be missing between others before that is a gap; parallel
            archiving may store a later one first.
    """

    def __init__(
        self,
        wal: WalStore,
        ring: KeyRing,
        directory: Path,
        *,
        workers: int,
        depth: int,
        observe: Observer,
        gap_patience_seconds: float = 10.0,
    ) -> None:
        self._wal = wal
        self._ring = ring
        self._directory = directory
        self._depth = depth
        self._observe = observe
        self._gap_patience_seconds = gap_patience_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="archive-fetch")
        self._queue: dict[str, Future[int]] = {}
        self._lock = threading.Lock()
        self._listed: dict[int, tuple[float, frozenset[str]]] = {}
        self._segment_bytes = DEFAULT_SEGMENT_BYTES
        self._told: set[str] = set()

    def stop(self) -> None:
        """Forget what was fetched ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._drop(list(self._queue))

    def open(self, name: str) -> int:
        """A descriptor of the verified file, which the caller closes.

        Raises:
            ObjectMissing: proved absent, and nothing takes its place.
            WalGap: absent, but earlier and later segments of its timeline are stored.
            SeawallError: whether it exists, or what it holds, is not known.
        """
        if not is_archive_name(name):
            raise UsageError(f"{name!r} is not the name of a WAL file")
        if name.endswith(".backup"):
            raise ObjectMissing(f"{name} is never kept")
        if len(name) != 24:
            return self._laid_down(self._wal.fetch(name, self._ring))
        try:
            descriptor = self._take(name)
        except ObjectMissing:
            return self._instead_of(name)
        self._ahead_of(Segment.parse(name, self._segment_bytes))
        return descriptor

    def _take(self, name: str) -> int:
        with self._lock:
            fetched = self._queue.pop(name, None)
        return fetched.result() if fetched is not None else self._fetch(name)

    def _fetch(self, name: str) -> int:
        data = self._wal.fetch(name, self._ring)
        self._segment_bytes = read_header(data, name).segment_bytes
        return self._laid_down(data)

    def _laid_down(self, data: bytes) -> int:
        # A file without a name: it needs no cleaning up after a kill, and no permissions for the server's account.
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            return os.dup(file.fileno())

    # ---- ahead

    def _ahead_of(self, segment: Segment) -> None:
        """Refill the queue behind `segment` when it is half empty, and drop what recovery has passed."""
        with self._lock:
            passed = [name for name in self._queue if not _follows(name, segment)]
            waiting = len(self._queue) - len(passed)
        self._drop(passed)
        if waiting > self._depth // 2:
            return
        following = segment
        for _ in range(self._depth):
            following = following.next()
            if not self._is_listed(following):
                return
            with self._lock:
                if following.name not in self._queue:
                    self._queue[following.name] = self._pool.submit(self._fetch, following.name)

    def _is_listed(self, segment: Segment) -> bool:
        """Whether a listing shows the segment; asked again at most once a second when it does not."""
        listed_at, names = self._listed.get(segment.timeline, (float("-inf"), frozenset[str]()))
        if segment.name not in names and time.monotonic() - listed_at > _LIST_AGAIN_SECONDS:
            names = self._wal.names(segment.timeline)
            self._listed[segment.timeline] = (time.monotonic(), names)
        return segment.name in names

    def _drop(self, names: list[str]) -> None:
        for name in names:
            with self._lock:
                fetched = self._queue.pop(name, None)
            if fetched is not None and not fetched.cancel():
                fetched.add_done_callback(_close_result)

    # ---- when the whole segment is absent

    def _instead_of(self, name: str) -> int:
        """What is known of a segment that was never completed: the timeline's last, or the open one's saved beginning.

        Only the end of a timeline can be incomplete. With later segments stored, a beginning would make recovery
        end in the middle of the log without a word.
        """
        segment = Segment.parse(name, self._segment_bytes)
        self._refuse_gap(segment)
        if self._wal.stored(name):
            return self._fetch(name)
        try:
            data, what = self._wal.fetch(f"{name}{_FALLBACK_SUFFIX}", self._ring), "its closed partial"
        except ObjectMissing:
            tail = self._wal.fetch_tail(segment, self._ring)
            if tail is None:
                raise
            data, what = tail[1], f"its beginning up to {tail[0]}"
        data = self._up_to_switch(segment, data)
        size = read_header(data, name).segment_bytes
        self._tell(f"{name} was never completed; {what} is restored")
        return self._laid_down(data + bytes(size - len(data)))

    def _tell(self, what: str) -> None:
        """Once each: recovery asks for the last segment again when it ends."""
        with self._lock:
            is_new = what not in self._told
            self._told.add(what)
        if is_new:
            self._observe.hear(Noticed("low", "wal-incomplete", what))

    def _up_to_switch(self, segment: Segment, data: bytes) -> bytes:
        """Without what was written behind a switch to a timeline whose own copy of this segment is not stored.

        Recovery to that timeline asks for this segment in its place, and would replay what never happened there.
        """
        for history in self._wal.histories().values():
            left = history.switched_from(segment.timeline)
            if left is None or not segment.start < left < segment.end:
                continue
            newer = segment.on(history.timeline_at(left))
            if not self._wal.stored(newer.name) and not self._wal.tails(newer):
                data = data[: left - segment.start]
        return data

    def _refuse_gap(self, segment: Segment) -> None:
        give_up_at = time.monotonic() + self._gap_patience_seconds
        while (later := self._later_of_gap(segment)) is not None:
            if time.monotonic() >= give_up_at:
                raise WalGap(f"{segment.name} is not stored, but segments before it and {later} behind it are")
            time.sleep(min(0.5, self._gap_patience_seconds / 10))

    def _later_of_gap(self, segment: Segment) -> str | None:
        names = self._wal.names(segment.timeline)
        later = min((name for name in names if name > segment.name), default=None)
        gap = segment.name not in names and any(name < segment.name for name in names)
        return later if gap else None


def _follows(name: str, segment: Segment) -> bool:
    return name[:8] == segment.name[:8] and name > segment.name


def _close_result(fetched: Future[int]) -> None:
    if not fetched.cancelled() and fetched.exception() is None:
        os.close(fetched.result())
