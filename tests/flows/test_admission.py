from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tasks.admission import Sibling, why_outside_window, why_superseded

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MINE = {"source": "main"}
WINDOW = timedelta(hours=2)


def ago(**span: int) -> datetime:
    return NOW - timedelta(**span)


def sibling(at: datetime, **parameters: object) -> Sibling:
    return Sibling(uuid4(), at, parameters or MINE)


def test_a_missed_run_gives_way_to_a_later_one():
    assert "superseded" in why_superseded(ago(minutes=30), MINE, [sibling(ago(minutes=15))], None, NOW)


def test_the_newest_of_the_missed_runs_is_done():
    earlier = [sibling(ago(minutes=45)), sibling(ago(minutes=30))]
    assert why_superseded(ago(minutes=15), MINE, earlier, None, NOW) == ""


def test_a_run_of_the_future_or_of_other_work_supersedes_nothing():
    others = [sibling(NOW + timedelta(minutes=15)), sibling(ago(minutes=5), source="other")]
    assert why_superseded(ago(minutes=15), MINE, others, None, NOW) == ""


def test_a_late_run_whose_work_was_done_meanwhile_is_not_done_again():
    assert "was done" in why_superseded(ago(hours=1), MINE, [], ago(minutes=50), NOW)


def test_a_punctual_run_is_done_although_somebody_just_ran_the_job_by_hand():
    assert why_superseded(ago(seconds=5), MINE, [], ago(seconds=2), NOW) == ""


def test_a_run_whose_job_succeeded_only_before_is_done():
    assert why_superseded(ago(minutes=20), MINE, [], ago(hours=24), NOW) == ""


def test_a_full_that_missed_its_window_waits_for_the_next_night():
    assert "outside its window" in why_outside_window(ago(hours=6), WINDOW, ago(hours=30), NOW)


def test_a_full_within_its_window_is_late_and_welcome():
    assert why_outside_window(ago(hours=1), WINDOW, ago(hours=25), NOW) == ""


def test_a_source_without_a_recent_full_does_not_wait_for_the_night():
    assert why_outside_window(ago(hours=6), WINDOW, ago(hours=40), NOW) == ""
    assert why_outside_window(ago(hours=6), WINDOW, None, NOW) == ""
