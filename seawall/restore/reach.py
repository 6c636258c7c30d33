"""How far the stored WAL carries a backup along one timeline's ancestry, and whether a target lies within.

PostgreSQL takes a missing segment for the end of WAL and starts without a word, so everything is proved here.
The rules of `xlogrecovery.c` (XLogFileReadAnyTLI) are followed: a segment is read under its newest timeline on the
path. Only the segment in which a timeline was left may come from the older one, and counts up to the switch.
"""

from __future__ import annotations

from datetime import datetime

from seawall.errors import ObjectMissing, TargetUnreachable, WalGap
from seawall.model import Head, RecoveryTarget, TargetKind
from seawall.repository import SourceArea
from seawall.wal import Lsn, Segment, TimelineHistory


class Reach:
    """The unbroken WAL that is stored from a backup's start on.

    `first` and `last` are segments of it, `end` is its end, `missing` the first segment that is not stored whole, and
    `has_gap` says whether later segments of the path are stored behind that.
    """

    def __init__(self, area: SourceArea, head: Head, history: TimelineHistory) -> None:
        self._area, self._head, self._history = area, head, history
        self._names = area.wal.names()
        self.first = self._on_path(head.start_lsn.value // head.segment_bytes)
        self.last, self.end, number = self.first, head.start_lsn, self.first.number
        while (segment := self._on_path(number)).name in self._names:
            self.last, self.end, number = segment, segment.end, number + 1
        self.missing = segment
        self._newest = area.layout.segment(self.last.name)
        self._extend()
        self.has_gap = any(self._is_later(name) for name in self._names)

    def _on_path(self, number: int) -> Segment:
        """The segment of that number under the name that recovery asks for first."""
        size = self._head.segment_bytes
        timeline = self._history.timeline_at(Lsn((number + 1) * size - 1))
        return Segment(max(timeline, self._head.timeline), number, size)

    def _is_later(self, name: str) -> bool:
        segment = Segment.parse(name, self._head.segment_bytes)
        return segment.number > self.missing.number and self._on_path(segment.number) == segment

    def _extend(self) -> None:
        """Count the beginning of the first segment that is not whole: its tail, or what an older timeline has of it."""
        layout, wal = self._area.layout, self._area.wal
        found = [(end, layout.tail(self.missing, end.value)) for end in wal.tails(self.missing)]
        if self._is_stored(layout.partial(self.missing.name)):
            found.append((self._partial_end(), layout.partial(self.missing.name)))
        for branch in self._history.branches:
            if branch.timeline >= self._head.timeline and self.missing.start < branch.switch_at < self.missing.end:
                found += self._of_older(self.missing.on(branch.timeline), branch.switch_at)
        if found and max(found)[0] > self.end:
            self.end, self._newest = max(found)
            self.last = self.missing

    def _partial_end(self) -> Lsn:
        """A closed partial ends where its timeline was left, if a history says so; else only its start is certain."""
        left = [h.switched_from(self.missing.timeline) for h in self._area.wal.histories().values()]
        inside = [lsn for lsn in left if lsn is not None and self.missing.start <= lsn <= self.missing.end]
        return max(inside, default=self.missing.start)

    def _of_older(self, segment: Segment, switch_at: Lsn) -> list[tuple[Lsn, str]]:
        layout = self._area.layout
        whole = [layout.segment(segment.name), layout.partial(segment.name)]
        found = [(switch_at, name) for name in whole if self._is_stored(name)]
        tails = self._area.wal.tails(segment)
        return found + [(min(end, switch_at), layout.tail(segment, end.value)) for end in tails]

    def _is_stored(self, name: str) -> bool:
        try:
            self._area.storage.stat(name)
        except ObjectMissing:
            return False
        return True

    def count(self, target: RecoveryTarget) -> int:
        """How many segments replay reads at most."""
        end = target.lsn if target.lsn is not None else self.end
        if target.kind is TargetKind.IMMEDIATE:
            end = self._head.stop_lsn
        return max(1, -(-(end - self.first.start) // self._head.segment_bytes))

    def prove(self, target: RecoveryTarget) -> None:
        """Refuse a target that replay cannot reach with what is stored.

        Raises:
            WalGap: a segment before the target is missing, while later ones are stored; or the backup's own WAL is.
            TargetUnreachable: the target lies after all that is stored.
        """
        if self.end < self._head.stop_lsn:
            raise WalGap(
                f"{self.missing.name} is missing: backup {self._head.label} needs WAL up to {self._head.stop_lsn}"
            )
        if target.lsn is not None and target.lsn > self.end:
            self._refuse(f"the target {target.lsn} lies after it")
        if target.moment is not None and target.moment > self._stored_at():
            self._refuse(f"the target {target.moment.isoformat()} lies after what is stored before it")
        if target.kind is TargetKind.LATEST and self.has_gap:
            self._refuse(
                "later segments are stored, so `latest` would silently lose what comes after the gap; the backup "
                "itself can be restored to its own end (`--immediate`)"
            )

    def _refuse(self, why: str) -> None:
        if self.has_gap:
            raise WalGap(f"{self.missing.name} is missing on timeline {self.missing.timeline}, and {why}")
        raise TargetUnreachable(
            f"WAL is stored up to {self.end} (in {self.last.name}), and {why}",
            hint="Let the source switch its WAL (`seawall wal switch`), or restore to `latest`.",
        )

    def _stored_at(self) -> datetime:
        """When the newest WAL of the run was stored: no commit in it is later, clocks agreeing."""
        layout, storage = self._area.layout, self._area.storage
        try:
            return storage.stat(self._newest).modified_at
        except ObjectMissing:
            # A tail is replaced by a longer one, or by its segment, at any moment.
            return storage.stat(layout.segment(self.last.name)).modified_at
