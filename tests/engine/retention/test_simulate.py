"""Ten years of a schedule under a policy leave exactly what the policy says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from seawall.errors import UsageError
from seawall.model import BackupKind, BackupLabel
from seawall.retention import RetentionPolicy
from seawall.retention.simulate import Schedule, simulate

START = datetime(2026, 1, 1, 2, tzinfo=UTC)
WEEK = timedelta(days=7)
BYTES = 1 << 30


def years_before(local: datetime, years: int) -> datetime:
    """The same day so many years earlier; the 28th for a 29 February that there is not."""
    if (local.month, local.day) == (2, 29) and (local.year - years) % 4:
        local = local.replace(day=28)
    return local.replace(year=local.year - years)


def expected(stops: list[datetime], now: datetime, policy: RetentionPolicy) -> set[BackupLabel]:
    """What the default rules keep of one full backup a day, said once more and in another way."""
    zone = ZoneInfo(policy.time_zone)
    past = [stop for stop in stops if stop <= now]
    last_of_week = {stop.astimezone(zone).isocalendar()[:2]: stop for stop in past}
    last_of_month = {(stop.astimezone(zone).year, stop.astimezone(zone).month): stop for stop in past}
    last_of_day = {stop.astimezone(zone).date(): stop for stop in past}
    local = now.astimezone(zone)
    kept = {stop for stop in last_of_day.values() if stop >= now - policy.daily}
    kept |= {stop for stop in last_of_week.values() if stop >= years_before(local, policy.weekly_months // 12)}
    kept |= {stop for stop in last_of_month.values() if stop >= years_before(local, policy.monthly_years)}
    return {BackupLabel(stop) for stop in (*kept, *[s for s in past if s < now - policy.window][-1:])}


@pytest.mark.slow
def test_ten_years_leave_exactly_what_the_policy_says() -> None:
    policy = RetentionPolicy(
        timedelta(days=30), daily=timedelta(days=30), weekly_months=12, monthly_years=7, time_zone="Europe/Berlin"
    )
    course = simulate(policy, Schedule(full_bytes=BYTES, wal_bytes_per_day=BYTES), years=10, start=START)
    stops = [START + timedelta(days=n) for n in range(3650)]
    assert len(course.years) == 10
    for year in course.years:
        assert set(year.labels) == expected(stops, year.at, policy)
        # A day of WAL for each day since the backup that begins the window.
        assert year.backups * BYTES + 30 * BYTES <= year.stored_bytes <= year.backups * BYTES + 32 * BYTES
    assert course.peak_bytes >= max(year.stored_bytes for year in course.years)


@pytest.mark.parametrize(
    "rule, years, count",
    [
        ({"daily": timedelta(days=30)}, 2, 30),
        # The 52 weeks that ended within 12 months, the week that runs, and yesterday, where the window of a day begins.
        ({"weekly_months": 12}, 2, 52 + 2),
        ({"monthly_years": 2}, 3, 24 + 2),
    ],
)
def test_each_rule_alone_keeps_the_number_that_it_names(rule: dict[str, object], years: int, count: int) -> None:
    policy = RetentionPolicy(timedelta(days=1), **rule)  # type: ignore[arg-type]
    assert simulate(policy, Schedule(), years=years, start=START).years[-1].backups == count


def test_incrementals_go_early_and_what_they_build_on_is_counted_as_long_as_they_stay() -> None:
    policy = RetentionPolicy(
        timedelta(days=1), {BackupKind.INCREMENTAL: timedelta(days=3), BackupKind.FULL: timedelta(days=1)}
    )
    schedule = Schedule(WEEK, timedelta(hours=12), full_bytes=100, incremental_bytes=1)
    course = simulate(policy, schedule, years=1, start=START)
    last = course.years[0]
    # 365 days are 52 weeks and a day: a full backup and an incremental of this day, incrementals of two days before.
    assert (last.fulls, last.backups) == (1, 1 + 5)
    assert last.stored_bytes == 100 + 5 + 100, "those of the week before refer to its full backup"


def test_growth_is_counted() -> None:
    policy = RetentionPolicy.of_days(2)
    course = simulate(policy, Schedule(full_bytes=1000, growth_per_year=2.0), years=3, start=START)
    first, _, third = (year.stored_bytes for year in course.years)
    assert third / first == pytest.approx(4, rel=0.01)
    assert course.peak_at.date() == course.years[-1].at.date()


@pytest.mark.parametrize("years", [0, -1, 101])
def test_what_cannot_be_simulated_is_refused(years: int) -> None:
    with pytest.raises(UsageError):
        simulate(RetentionPolicy.of_days(1), Schedule(), years=years, start=START)
    with pytest.raises(UsageError, match="without full backups"):
        simulate(RetentionPolicy.of_days(1), Schedule(timedelta(0)), years=1, start=START)


@pytest.mark.parametrize(
    "schedule",
    [
        {"full_every": timedelta(hours=-5)},
        {"incremental_every": timedelta(hours=-1)},
        {"incremental_every": timedelta(hours=48)},
        {"full_every": timedelta(hours=36), "incremental_every": timedelta(hours=24)},
        {"growth_per_year": 0.0},
        {"growth_per_year": -1.0},
        {"growth_per_year": float("nan")},
        {"growth_per_year": 1e308},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_and_not_played_for_ever(schedule: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Schedule(**schedule)
