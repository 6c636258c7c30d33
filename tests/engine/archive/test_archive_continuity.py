"""Proof of continuity, recoverability windows, and closing the open segment of an idle server."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.archive.continuity import examine, history_of, prove, reachable_until, switch_wal, windows
from seawall.errors import PrivilegeMissing, TargetUnreachable, UsageError, WalGap
from seawall.repository import Sealing, SourceArea
from seawall.wal import Branch, Lsn, Segment, TimelineHistory, segments_between

SMALL = 1 << 20
SECOND = TimelineHistory(2, (Branch(1, Lsn(10 * SMALL + 500)),))


def segments(timeline: int, *numbers: int) -> list[Segment]:
    return [Segment(timeline, number, SMALL) for number in numbers]


@pytest.fixture
def store(area: SourceArea, sealing: Sealing) -> Callable[..., None]:
    def put(*wanted: Segment) -> None:
        for segment in wanted:
            area.wal.put_segment(segment.name, segment.name.encode(), sealing)

    return put


@given(st.integers(0, 40), st.integers(0, 40), st.sets(st.integers(0, 40)))
def test_every_segment_is_either_stored_or_missing_and_in_one_run(first: int, length: int, lost: set[int]) -> None:
    start, stop = Lsn(first * SMALL + 7), Lsn((first + length) * SMALL + 99)
    needed = list(segments_between(start, stop, SECOND, SMALL))
    present = frozenset(s.name for s in needed if s.number not in lost)
    report = examine(present, start, stop, needed)
    for runs, expected in (
        (report.stored, [s for s in needed if s.number not in lost]),
        (report.missing, [s for s in needed if s.number in lost]),
    ):
        expanded = [
            Segment(run.timeline, n, SMALL) for run in runs for n in range(run.first.number, run.last.number + 1)
        ]
        assert expanded == expected
        for left, right in itertools.pairwise(runs):
            assert left.last.next() != right.first
    assert report.good == (not report.missing)


def test_a_gap_is_named(area: SourceArea, store: Callable[..., None]) -> None:
    store(*segments(1, 3, 4, 7))
    report = prove(area.wal, Lsn(3 * SMALL + 1), Lsn(8 * SMALL), TimelineHistory(1), segment_bytes=SMALL)
    assert [str(run) for run in report.missing] == ["000000010000000000000005 to 000000010000000000000006"]
    with pytest.raises(WalGap, match="000000010000000000000005 to 000000010000000000000006 is not stored"):
        report.refuse_gap()


def test_the_segment_of_a_switch_is_needed_on_the_newer_timeline(area: SourceArea, store: Callable[..., None]) -> None:
    store(*segments(1, 8, 9, 10))
    start, stop = Lsn(8 * SMALL), Lsn(12 * SMALL)
    report = prove(area.wal, start, stop, SECOND, segment_bytes=SMALL)
    assert [run.first for run in report.missing] == segments(2, 10)
    store(*segments(2, 10, 11))
    report = prove(area.wal, start, stop, SECOND, segment_bytes=SMALL)
    assert report.good
    assert [(run.first, run.last) for run in report.stored] == [
        tuple(segments(1, 8, 9)),
        tuple(segments(2, 10, 11)),
    ]


def test_recovery_reaches_the_end_of_the_last_segment_and_then_its_tail(
    area: SourceArea, store: Callable[..., None], sealing: Sealing
) -> None:
    store(*segments(1, 3, 4, 5))
    first = TimelineHistory(1)
    assert reachable_until(area.wal, Lsn(3 * SMALL), first, segment_bytes=SMALL) == (Lsn(6 * SMALL), None)
    (still_open,) = segments(1, 6)
    area.wal.put_tail(still_open, still_open.start + 777, bytes(777), sealing)
    assert reachable_until(area.wal, Lsn(3 * SMALL), first, segment_bytes=SMALL) == (still_open.start + 777, None)


def test_recovery_reaches_only_up_to_a_gap_even_if_there_is_a_tail(
    area: SourceArea, store: Callable[..., None], sealing: Sealing
) -> None:
    store(*segments(1, 3, 5))
    (hole,) = segments(1, 4)
    area.wal.put_tail(hole, hole.start + 777, bytes(777), sealing)
    reached = reachable_until(area.wal, Lsn(3 * SMALL), TimelineHistory(1), segment_bytes=SMALL)
    assert reached == (Lsn(4 * SMALL), hole)


def a_head(timeline: int, start: int, stop: int) -> Any:
    return SimpleNamespace(
        label=f"{timeline}-{start}", timeline=timeline, start_lsn=Lsn(start), stop_lsn=Lsn(stop), segment_bytes=SMALL
    )


def test_each_backup_has_a_window_on_each_timeline_that_it_leads_to(
    area: SourceArea, store: Callable[..., None], sealing: Sealing
) -> None:
    area.wal.put_history("00000002.history", b"1\t0/A001F4\tno reason\n", sealing)
    store(*segments(1, 8, 9, 10, 11), *segments(2, 10, 11, 12))
    before, after = a_head(1, 8 * SMALL, 9 * SMALL + 5), a_head(1, 10 * SMALL + 900, 11 * SMALL + 5)
    found = {(w.label, w.timeline): (w.since, w.until) for w in windows(area.wal, [before, after])}
    assert found == {
        (before.label, 1): (before.stop_lsn, Lsn(12 * SMALL)),
        (before.label, 2): (before.stop_lsn, Lsn(13 * SMALL)),
        (after.label, 1): (after.stop_lsn, Lsn(12 * SMALL)),
    }


def test_a_backup_without_its_wal_has_no_window(area: SourceArea, store: Callable[..., None]) -> None:
    store(*segments(1, 8))
    assert not windows(area.wal, [a_head(1, 8 * SMALL, 9 * SMALL + 5)])


def test_a_missing_history_is_an_error_with_what_to_do() -> None:
    assert history_of(1, {}) == TimelineHistory(1)
    assert history_of(2, {2: SECOND}) is SECOND
    with pytest.raises(TargetUnreachable, match="history of timeline 3") as error:
        history_of(3, {2: SECOND})
    assert "00000003.history" in error.value.hint


# ---- closing the open segment


@dataclass
class Answers:
    """A server that answers the three questions of `switch_wal`."""

    recovery: bool = False
    permitted: bool = True
    position: str = "0/500028"
    switched: str = "0/600000"
    asked: list[str] = field(default_factory=list)

    def execute(self, query: str, /) -> Any:
        self.asked.append(query)
        if "pg_is_in_recovery" in query:
            row: tuple[object, ...] = (self.recovery, self.permitted, SMALL)
        elif "insert_lsn" in query:
            row = (self.position, "00000001")
        else:
            row = (self.switched,)
        return SimpleNamespace(fetchone=lambda: row)


def test_an_untouched_segment_is_left_open_and_the_one_before_is_what_to_wait_for() -> None:
    server = Answers(position="0/500028")
    assert switch_wal(server) == Segment(1, 4, SMALL)
    assert not any("pg_switch_wal()::text" in query for query in server.asked)


@pytest.mark.parametrize(("position", "switched"), [("0/500060", "0/500078"), ("0/5FFFF8", "0/600000")])
def test_a_written_segment_is_closed(position: str, switched: str) -> None:
    assert switch_wal(Answers(position=position, switched=switched)) == Segment(1, 5, SMALL)


def test_a_standby_and_a_user_without_the_right_are_refused() -> None:
    with pytest.raises(UsageError):
        switch_wal(Answers(recovery=True))
    with pytest.raises(PrivilegeMissing, match="may not switch"):
        switch_wal(Answers(permitted=False))


def test_reachability_agrees_with_proof(area: SourceArea, store: Callable[..., None]) -> None:
    chosen = random.Random(3)
    stored = [s for s in (*segments(1, *range(4, 11)), *segments(2, *range(10, 16))) if chosen.random() < 0.85]
    store(*stored)
    for number in range(4, 15):
        start = Lsn(number * SMALL + 9)
        until, _gap = reachable_until(area.wal, start, SECOND, segment_bytes=SMALL)
        if until > start:
            assert prove(area.wal, start, until, SECOND, segment_bytes=SMALL).good
        assert not prove(area.wal, start, until + SMALL, SECOND, segment_bytes=SMALL).good
