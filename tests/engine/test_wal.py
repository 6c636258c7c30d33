"""WAL arithmetic: names, positions, ancestry and gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.wal import (
    Branch,
    Lsn,
    Segment,
    TimelineHistory,
    contiguous_until,
    gaps,
    is_archive_name,
    segments_between,
)

SEGMENT_BYTES = st.sampled_from([1 << 20, 1 << 24, 1 << 26, 1 << 30])
POSITIONS = st.integers(0, (1 << 44) - 1)
TIMELINES = st.integers(1, 0xFFFFFFFF)


@given(st.integers(0, (1 << 64) - 1))
def test_a_position_survives_its_notation(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == Lsn(value)


@pytest.mark.parametrize("text", ["", "16", "16/", "/1", "g/1", "1/123456789", "-1/0", "0x1/2", "1 /2", "1/2\n"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="LSN"):
        Lsn.parse(text)


@given(POSITIONS, TIMELINES, SEGMENT_BYTES)
def test_a_position_lies_in_the_segment_that_contains_it(value: int, timeline: int, size: int) -> None:
    segment = Segment.containing(Lsn(value), timeline, size)
    assert segment.start <= Lsn(value) < segment.end
    assert Segment.parse(segment.name, size) == segment
    assert segment.next().start == segment.end
    assert segment.next().previous() == segment


@given(st.integers(1, (1 << 44) - 1), SEGMENT_BYTES)
def test_a_stop_position_on_a_boundary_needs_only_the_segment_before_it(value: int, size: int) -> None:
    last = Segment.ending_at(Lsn(value), 1, size)
    assert last.start < Lsn(value) <= last.end


def test_names_follow_the_server() -> None:
    assert Segment.containing(Lsn.parse("16/B374D848"), 1).name == "0000000100000016000000B3"
    assert Segment.parse("00000001000000FF000000FF").next().name == "000000010000010000000000"


def test_a_name_that_cannot_exist_with_this_size_is_refused() -> None:
    Segment.parse("000000010000000000000FFF", 1 << 20)
    with pytest.raises(ValueError, match="does not exist"):
        Segment.parse("000000010000000000000FFF", 1 << 24)


def test_names_sort_as_the_server_wrote_them() -> None:
    segments = [Segment(1, 255), Segment(1, 256), Segment(2, 3)]
    assert sorted(segments, reverse=True)[::-1] == segments
    assert [s.name for s in segments] == sorted(s.name for s in segments)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("000000010000000000000001", True),
        ("000000010000000000000001.partial", True),
        ("000000010000000000000001.00000028.backup", True),
        ("00000002.history", True),
        ("00000002.HISTORY", False),
        ("../000000010000000000000001", False),
        ("000000010000000000000001\n", False),
        ("00000001000000000000000g", False),
        ("", False),
    ],
)
def test_only_names_that_the_server_uses_are_archived(name: str, valid: bool) -> None:
    assert is_archive_name(name) is valid


HISTORY = TimelineHistory.parse(
    3, "1\t0/5000000\tno recovery target specified\n\n# a comment\n2\t0/9000000\tbefore 2026-11-23 10:00:00+00\n"
)


def test_a_history_says_which_timeline_wrote_a_byte() -> None:
    assert [HISTORY.timeline_at(Lsn(value)) for value in (0x4FFFFFF, 0x5000000, 0x8FFFFFF, 0x9000000)] == [1, 2, 2, 3]


def test_a_backup_taken_after_the_branch_is_not_reached() -> None:
    assert HISTORY.reaches(1, Lsn(0x5000000))
    assert not HISTORY.reaches(1, Lsn(0x5000001))
    assert HISTORY.reaches(3, Lsn(1 << 40))
    assert not HISTORY.reaches(7, Lsn(0))


@pytest.mark.parametrize("text", ["2\t0/1\n1\t0/2\n", "x\t0/1\n", "1\n", "3\t0/1\n", "1\t0/Z\n"])
def test_a_malformed_history_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"history|LSN|timelines"):
        TimelineHistory.parse(3, text)


def test_the_segment_of_the_switch_is_needed_from_the_newer_timeline() -> None:
    history = TimelineHistory(2, (Branch(1, Lsn(0x2800000)),))
    names = [s.name for s in segments_between(Lsn(0x1000000), Lsn(0x4000000), history)]
    assert names == ["000000010000000000000001", "000000020000000000000002", "000000020000000000000003"]


def test_a_target_before_the_switch_still_needs_the_old_timelines_segment() -> None:
    history = TimelineHistory(2, (Branch(1, Lsn(0x2800000)),))
    names = [s.name for s in segments_between(Lsn(0x2000000), Lsn(0x2400000), history)]
    assert names == ["000000010000000000000002"]


@given(POSITIONS, st.integers(0, 1 << 30), st.lists(st.integers(0, 1 << 44), max_size=4, unique=True))
def test_every_byte_between_two_positions_is_covered_once(start: int, length: int, switches: list[int]) -> None:
    branches = tuple(Branch(number, Lsn(at)) for number, at in enumerate(sorted(switches), start=1))
    history = TimelineHistory(len(branches) + 1, branches)
    needed = list(segments_between(Lsn(start), Lsn(start + length), history))
    assert needed[0].start <= Lsn(start) < needed[0].end
    assert needed[-1].end >= Lsn(start + length)
    assert [s.number for s in needed] == list(range(needed[0].number, needed[-1].number + 1))
    assert [s.timeline for s in needed] == sorted(s.timeline for s in needed)


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_a_run_ends_before_the_first_gap(present: set[int], first: int) -> None:
    names = {Segment(1, number).name for number in present}
    last = contiguous_until(Segment(1, first), names)
    expected = None
    number = first
    while number in present:
        expected, number = number, number + 1
    assert (last.number if last else None) == expected
    wanted = [Segment(1, n) for n in range(first, 41)]
    assert [s.number for s in gaps(wanted, names)] == [n for n in range(first, 41) if n not in present]
