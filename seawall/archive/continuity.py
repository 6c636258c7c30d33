"""Proof that stored WAL has no gap, how far recovery can reach, and closing a segment so that it can be stored.

Recovery passes over a gap without a word when no target lies behind it (it takes it for the end of WAL), so
continuity is proved before, from the names in the repository. What the segments hold is `seawall.verify`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import LiteralString, Protocol

from seawall.archive.store import WalStore
from seawall.errors import PrivilegeMissing, TargetUnreachable, UsageError, WalGap
from seawall.model import Head
from seawall.wal import DEFAULT_SEGMENT_BYTES, Lsn, Segment, TimelineHistory, gaps, segments_between

_LONG_HEADER_BYTES = 40


@dataclass(frozen=True, slots=True)
class Range:
    """A run of segments of one timeline, both ends included."""

    first: Segment
    last: Segment

    @property
    def timeline(self) -> int:
        return self.first.timeline

    def __str__(self) -> str:
        return self.first.name if self.first == self.last else f"{self.first.name} to {self.last.name}"


@dataclass(frozen=True, slots=True)
class ContinuityReport:
    """What was found of the WAL from `start` to `stop`.

    Args:
        stored: the runs that are there, in order.
        missing: the runs that are not.
    """

    start: Lsn
    stop: Lsn
    stored: tuple[Range, ...]
    missing: tuple[Range, ...]

    @property
    def good(self) -> bool:
        return not self.missing

    def refuse_gap(self) -> None:
        """Go on only if nothing is missing.

        Raises:
            WalGap: something is; the message names it.
        """
        if self.missing:
            named = ", ".join(str(run) for run in self.missing[:5]) + (" …" if len(self.missing) > 5 else "")
            raise WalGap(f"WAL from {self.start} to {self.stop} has gaps: {named} is not stored")


@dataclass(frozen=True, slots=True)
class Window:
    """How far one backup can be recovered along one timeline (its recoverability window).

    Args:
        label: the backup's.
        timeline: where recovery would end.
        since: the backup's stop position, the earliest point.
        until: up to where WAL is stored without a gap, exclusive; the open segment's tail included.
        gap: the first missing segment if WAL behind it is stored, else None.
    """

    label: str
    timeline: int
    since: Lsn
    until: Lsn
    gap: Segment | None


def examine(present: frozenset[str], start: Lsn, stop: Lsn, needed: Iterable[Segment]) -> ContinuityReport:
    """Compare needed segments with the names that are there; pure.

    Args:
        needed: in order, as `seawall.wal.segments_between` yields them.
    """
    wanted = tuple(needed)
    missing = frozenset(gaps(wanted, present))
    stored = (segment for segment in wanted if segment not in missing)
    return ContinuityReport(start, stop, _runs(stored), _runs(sorted(missing, key=lambda s: (s.number, s.timeline))))


def _runs(segments: Iterable[Segment]) -> tuple[Range, ...]:
    """Segments in order, drawn together into runs of consecutive ones on one timeline."""
    keyed = groupby(enumerate(segments), key=lambda pair: (pair[1].timeline, pair[1].number - pair[0]))
    runs = [[segment for _index, segment in members] for _key, members in keyed]
    return tuple(Range(run[0], run[-1]) for run in runs)


def prove(
    wal: WalStore, start: Lsn, stop: Lsn, history: TimelineHistory, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES
) -> ContinuityReport:
    """Whether every segment from `start` to `stop` (exclusive) along `history` is stored complete.

    Raises:
        StorageError: the repository could not be listed.
    """
    needed = tuple(segments_between(start, stop, history, segment_bytes))
    present = frozenset[str]().union(*(wal.names(timeline) for timeline in {s.timeline for s in needed}))
    return examine(present, start, stop, needed)


def history_of(timeline: int, histories: Mapping[int, TimelineHistory]) -> TimelineHistory:
    """The ancestry of a timeline; the first one has no file.

    Raises:
        TargetUnreachable: its history file is not stored.
    """
    if timeline == 1:
        return TimelineHistory(1)
    if timeline not in histories:
        raise TargetUnreachable(
            f"the history of timeline {timeline} is not stored",
            hint=f"Archive {timeline:08X}.history from pg_wal of a server on that timeline.",
        )
    return histories[timeline]


def reachable_until(
    wal: WalStore, start: Lsn, history: TimelineHistory, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES
) -> tuple[Lsn, Segment | None]:
    """Up to where WAL is stored without a gap from `start` along `history`, and the segment that a gap begins with.

    Behind the last complete segment counts what is saved of the open one. None for the segment when nothing is
    stored behind it: then it is the end, and no gap.
    """
    timelines = {branch.timeline for branch in history.branches} | {history.timeline}
    present = frozenset[str]().union(*(wal.names(timeline) for timeline in timelines))
    newest = max((Segment.parse(n, segment_bytes).number for n in present), default=-1)
    number = start.value // segment_bytes
    segment = _at(number, history, segment_bytes)
    while segment.name in present:
        number += 1
        segment = _at(number, history, segment_bytes)
    if number < newest and any(
        _at(later, history, segment_bytes).name in present for later in range(number, newest + 1)
    ):
        return max(start, segment.start), segment
    tails = wal.tails(segment)
    return max(start, segment.start, *tails), None


def _at(number: int, history: TimelineHistory, segment_bytes: int) -> Segment:
    """The segment of that number as recovery along `history` wants it: the timeline that wrote its last byte."""
    return Segment(history.timeline_at(Lsn((number + 1) * segment_bytes - 1)), number, segment_bytes)


def windows(wal: WalStore, heads: Iterable[Head]) -> tuple[Window, ...]:
    """The recoverability windows of backups: one for each timeline that a backup's own leads to.

    A timeline whose ancestry left the backup's timeline before the backup ended is not reachable from it.
    """
    histories = dict(wal.histories())
    found: list[Window] = []
    for head in heads:
        own = histories.get(head.timeline, TimelineHistory(head.timeline))
        lineages = [own, *(h for h in histories.values() if h.timeline != head.timeline)]
        for history in lineages:
            if not history.reaches(head.timeline, head.stop_lsn):
                continue
            until, gap = reachable_until(wal, head.start_lsn, history, segment_bytes=head.segment_bytes)
            if until >= head.stop_lsn:
                found.append(Window(str(head.label), history.timeline, head.stop_lsn, until, gap))
    return tuple(found)


# ---- closing the open segment


class _Row(Protocol):
    def fetchone(self) -> tuple[object, ...] | None: ...


class Queryable(Protocol):
    """What `switch_wal` needs of a connection; `psycopg.Connection` in autocommit is one."""

    def execute(self, query: LiteralString, /) -> _Row: ...


def switch_wal(connection: Queryable) -> Segment:
    """Close the open segment of a primary if anything was written into it.

    Run at the pace of the RPO, so that an idle server's last changes are archived too; an untouched segment is left
    open, so that a server where nothing happens writes no 16 MiB again and again.

    Returns:
        The last segment with anything in it: when that one is stored, so is everything written before the call.

    Raises:
        UsageError: the server is a standby, which writes no WAL of its own.
        PrivilegeMissing: the user may not call pg_switch_wal.
    """
    row = connection.execute(
        "SELECT pg_is_in_recovery(), has_function_privilege('pg_switch_wal()', 'EXECUTE'),"
        " (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')"
    ).fetchone()
    in_recovery, permitted, size = row if row is not None else (True, False, 0)
    if in_recovery:
        raise UsageError("a standby writes no WAL to switch", hint="Ask the primary.")
    if not permitted:
        raise PrivilegeMissing(
            "this user may not switch WAL", hint="GRANT EXECUTE ON FUNCTION pg_switch_wal() TO the backup user."
        )
    segment_bytes = int(str(size))
    position, timeline = _written(connection)
    if position.value % segment_bytes <= _LONG_HEADER_BYTES:
        # Nothing but the page header: what was written last ended the segment before.
        start = Segment.containing(position, timeline, segment_bytes)
        return start.previous() if start.number else start
    switched = connection.execute("SELECT pg_switch_wal()::text").fetchone()
    return Segment.ending_at(Lsn.parse(str(switched[0])) if switched else position, timeline, segment_bytes)


def _written(connection: Queryable) -> tuple[Lsn, int]:
    """The insert position and its timeline, which pg_walfile_name puts into the first 8 digits."""
    row = connection.execute(
        "SELECT lsn::text, left(pg_walfile_name(lsn), 8) FROM pg_current_wal_insert_lsn() AS lsn"
    ).fetchone()
    lsn, timeline = row if row is not None else ("0/0", "1")
    return Lsn.parse(str(lsn)), int(str(timeline), 16)
