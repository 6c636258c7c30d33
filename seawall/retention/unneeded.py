"""Which WAL nothing needs: no kept set, no hold, and no moment of the point-in-time window. Pure.

Replay may begin at any kept set from which the window is reached: everything from the oldest such start on stays, on
its timeline and on every later one. An older kept set needs only its own start to stop, and what its holds cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from seawall.archive.continuity import Window
from seawall.model import Head, Health, Hold
from seawall.wal import Segment


@dataclass(frozen=True, slots=True)
class WalRange:
    """Segments of one timeline, first and last included."""

    timeline: int
    first: str
    last: str
    count: int


def window_bases(ordered: Sequence[Head], begins: datetime) -> list[Head]:
    """The sets that the first moments of a window are restored from.

    The newest from before it, or the oldest of all if none is so old; and the same of the good ones, because a
    degraded one does not take the place of those.
    """
    good = [head for head in ordered if head.health is Health.GOOD]
    bases = {}
    for sets in (ordered, good):
        before = [head for head in sets if head.stopped_at < begins]
        bases.update({head.label: head for head in before[-1:] or sets[:1]})
    return list(bases.values())


def leads_into_window(ordered: Sequence[Head], begins: datetime) -> list[Head]:
    """The sets from which moments of the window are restored; behind these alone, WAL must have no gap."""
    return [head for head in ordered if head.stopped_at >= begins] + window_bases(ordered, begins)


def promised(found: Iterable[Window], heads: Sequence[Head], window: timedelta, now: datetime) -> tuple[Window, ...]:
    """Recoverability windows without the gaps that retention itself made.

    Behind a backup that is older than the point-in-time window, WAL is let go: that no later moment can be reached from
    it is what the policy says, and no loss.

    Args:
        found: of `archive.continuity.windows`.
        heads: of the same sets.
        window: of the policy.
    """
    ordered = sorted(heads, key=lambda head: head.stopped_at)
    leading = {str(head.label) for head in leads_into_window(ordered, now - window)}
    return tuple(one if one.label in leading else replace(one, gap=None) for one in found)


def unneeded_wal(
    kept: Sequence[Head],
    holds: Sequence[Hold],
    window: timedelta,
    now: datetime,
    names: Iterable[str],
    *,
    waiting: Sequence[Head] = (),
) -> Iterator[WalRange]:
    """Runs of stored segments that may go.

    Args:
        kept: the sets that stay, in the order in which they stopped.
        holds: those in force.
        names: the segments of which anything is stored, of all timelines.
        waiting: sets whose manifest is missing. Nothing is restored from them; but it may be brought back, and then
            they lead on to what comes after them.
    """
    if not kept:
        return
    begins = now - window
    oldest = min([*leads_into_window(kept, begins), *waiting], key=lambda head: (head.timeline, head.start_lsn))
    first = Segment.containing(oldest.start_lsn, oldest.timeline, oldest.segment_bytes)
    needed = Needed([*kept, *waiting], holds)
    run: list[str] = []
    for name in sorted(names):
        segment = Segment.parse(name, oldest.segment_bytes)
        # Positions are compared too: a later timeline's segment below the first position was never written.
        free = segment.timeline <= first.timeline and segment.number < first.number
        free = free and not needed.covers(segment)
        if run and (not free or run[-1][:8] != name[:8]):
            yield _range(run)
            run = []
        if free:
            run.append(name)
    if run:
        yield _range(run)


def _range(run: Sequence[str]) -> WalRange:
    return WalRange(int(run[0][:8], 16), run[0], run[-1], len(run))


def own_wal(head: Head) -> Iterator[str]:
    """Names of the segments that make a set consistent."""
    first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
    last = Segment.ending_at(head.stop_lsn, head.timeline, head.segment_bytes)
    return (Segment(head.timeline, n, head.segment_bytes).name for n in range(first.number, last.number + 1))


class Needed:
    """The WAL that sets and holds need wherever the window lies.

    Args:
        heads: of the sets; a hold on another set covers nothing.
        holds: those in force; one with `through` covers the WAL from its set's start to that segment.
    """

    def __init__(self, heads: Iterable[Head], holds: Iterable[Hold]) -> None:
        by_label = {head.label: head for head in heads}
        self._own = {name for head in by_label.values() for name in own_wal(head)}
        self._held = [
            (by_label[hold.label], Segment.parse(hold.through, by_label[hold.label].segment_bytes))
            for hold in holds
            if hold.through and hold.label in by_label
        ]

    def covers(self, segment: Segment) -> bool:
        if segment.name in self._own:
            return True
        for head, last in self._held:
            first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
            if first.timeline <= segment.timeline <= last.timeline and first.number <= segment.number <= last.number:
                return True
        return False
