"""What the stand-alone script takes for a gap: pure rules, without a repository."""

from __future__ import annotations

import pytest

from seawall.standalone import recover

HEAD = {"timeline": 1, "segment_bytes": 1 << 20, "start_lsn": "0/100000", "stop_lsn": "0/280000"}


def names(timeline: int, *numbers: int) -> dict[str, str]:
    return {recover.segment(f"{timeline:08X}", number, 1 << 20): "" for number in numbers}


def at(segment: float) -> int:
    return int(segment * (1 << 20))


def test_whole_wal_is_no_gap() -> None:
    recover.refuse_gap(HEAD, names(1, 1, 2, 3, 4), {})


def test_what_the_backup_needs_must_be_there_even_if_nothing_follows() -> None:
    with pytest.raises(recover.Unrecoverable, match="000000010000000000000002 is not stored, but the backup needs it"):
        recover.refuse_gap(HEAD, names(1, 1), {})


def test_a_hole_before_later_wal_is_named() -> None:
    with pytest.raises(recover.Unrecoverable, match="000000010000000000000004 is not stored, but later WAL is there"):
        recover.refuse_gap(HEAD, names(1, 1, 2, 3, 5), {})


def test_the_way_leads_over_a_switch_and_later_wal_of_the_old_timeline_does_not_matter() -> None:
    left = {2: [(1, at(4.5))]}
    recover.refuse_gap(HEAD, {**names(1, 1, 2, 3, 4, 7, 9), **names(2, 4, 5, 6)}, left)
    with pytest.raises(recover.Unrecoverable, match="000000020000000000000004"):
        recover.refuse_gap(HEAD, {**names(1, 1, 2, 3, 4, 5), **names(2, 5, 6)}, left)


def test_a_timeline_behind_a_missing_history_is_not_on_the_way() -> None:
    recover.refuse_gap(HEAD, {**names(1, 1, 2), **names(3, 4, 6)}, {3: [(1, at(3))]})


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-23 14:05:00+00", "2026-11-23T14:05:00+00:00"),
        ("2026-11-23T14:05:00Z", "2026-11-23T14:05:00+00:00"),
        ("2026-11-23 14:05:00+0130", "2026-11-23T14:05:00+01:30"),
        ("2026-11-23 14:05:00.500-08:00", "2026-11-23T14:05:00.500000-08:00"),
    ],
)
def test_times_are_read_as_postgresql_writes_them(text: str, utc: str) -> None:
    assert recover.moment(text).isoformat() == utc


def test_a_time_without_offset_is_refused() -> None:
    with pytest.raises(recover.Unrecoverable, match="offset"):
        recover.moment("2026-11-23 14:05:00")
