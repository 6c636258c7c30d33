"""What is unusual about a backup beside its own source's history."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.anomaly import THRESHOLDS, Measure, Measured, marks
from seawall.model import BackupKind

GB = 1 << 30
USUAL = Measured(BackupKind.INCREMENTAL, 100 * GB, 600.0, 5 * GB, 2 * GB)
# A source that grows and varies a little, as real ones do.
HISTORY = [
    replace(
        USUAL,
        plain_bytes=(95 + n) * GB,
        seconds=550.0 + 13 * n,
        new_bytes=int((4.6 + 0.1 * n) * GB),
        stored_bytes=int((1.8 + 0.05 * n) * GB),
    )
    for n in range(10)
]


@pytest.mark.parametrize(
    ("newest", "measure"),
    [
        (replace(USUAL, plain_bytes=40 * GB), Measure.SIZE),
        (replace(USUAL, plain_bytes=300 * GB, new_bytes=15 * GB, stored_bytes=6 * GB), Measure.SIZE),
        (replace(USUAL, seconds=4000.0), Measure.DURATION),
        (replace(USUAL, new_bytes=90 * GB, stored_bytes=36 * GB), Measure.CHANGED),
        (replace(USUAL, stored_bytes=int(4.9 * GB)), Measure.COMPRESSION),
    ],
)
def test_each_measure_that_is_far_from_the_usual_is_marked_and_no_other(newest: Measured, measure: Measure) -> None:
    found = marks(HISTORY, newest)
    assert [mark.measure for mark in found] == [measure]
    assert "is usual" in found[0].sentence


def test_a_usual_backup_is_not_marked() -> None:
    assert marks(HISTORY, USUAL) == ()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_short_a_history_says_nothing(count: int) -> None:
    assert marks(HISTORY[:count], replace(USUAL, plain_bytes=1)) == ()


def test_backups_of_other_kinds_are_no_history() -> None:
    full = replace(USUAL, kind=BackupKind.FULL, plain_bytes=1)
    assert marks(HISTORY, full) == ()
    assert marks([*HISTORY, *[replace(full, plain_bytes=100 * GB)] * 5], full)[0].measure is Measure.SIZE


def test_a_history_without_any_variation_is_not_alarmed_by_a_trifle() -> None:
    steady = [replace(USUAL, plain_bytes=1 << 20, seconds=2.0, new_bytes=1000, stored_bytes=400)] * 20
    assert marks(steady, replace(steady[0], plain_bytes=30 << 20, seconds=200.0, stored_bytes=450)) == ()


def test_a_few_odd_backups_do_not_make_the_next_odd_one_usual() -> None:
    odd = replace(USUAL, plain_bytes=10 * GB)
    assert [mark.measure for mark in marks([*HISTORY, odd, odd, odd], odd) if mark.measure is Measure.SIZE]


def test_what_is_not_known_is_not_compared() -> None:
    unknown = replace(USUAL, new_bytes=None, stored_bytes=None)
    assert marks(HISTORY, unknown) == ()
    assert marks([replace(one, new_bytes=None) for one in HISTORY], replace(USUAL, stored_bytes=5 * GB)) == ()


measured = st.builds(
    Measured,
    st.sampled_from(BackupKind),
    st.integers(0, 1 << 45),
    st.floats(0, 1e6),
    st.none() | st.integers(0, 1 << 45),
    st.none() | st.integers(0, 1 << 45),
)


@given(st.lists(measured, max_size=30), measured)
def test_whatever_the_history_a_mark_exceeds_every_threshold_and_the_median_is_never_marked(
    history: list[Measured], newest: Measured
) -> None:
    for mark in marks(history, newest):
        threshold = THRESHOLDS[mark.measure]
        off = abs(mark.value - mark.usual)
        assert off > threshold.absolute
        assert off > threshold.relative * abs(mark.usual)
        assert mark.deviations > threshold.deviations
    assert marks([newest] * 9, newest) == ()
