from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from deployments.schedules import (
    JOBS,
    MAINTENANCE,
    JobPlan,
    job_schedules,
    maintenance_schedules,
    next_runs,
)
from seawall.catalog import Catalog, JobType
from seawall.settings import ServerSettings, Settings, SourceSettings

BERLIN = ZoneInfo("Europe/Berlin")
CLOCK_CHANGES = (datetime(2026, 10, 25, tzinfo=BERLIN), datetime(2027, 3, 28, tzinfo=BERLIN))


def plan_of(job_type: JobType) -> JobPlan:
    return next(plan for plan in JOBS if plan.job_type is job_type)


def runs_around(plan: JobPlan, day: datetime) -> list[datetime]:
    """All runs from two days before to two days after, as a scheduler that looks every 20 minutes finds them."""
    zone = "Europe/Berlin" if plan.is_local else "UTC"
    begin, found = (day - timedelta(days=2)).astimezone(UTC), set()
    for looks in range(4 * 24 * 3):
        found |= set(next_runs(plan.cron, zone, after=begin + looks * timedelta(minutes=20), count=3))
    return sorted(run for run in found if run < begin + timedelta(days=4))


@pytest.mark.parametrize("day", CLOCK_CHANGES, ids=["clocks go back", "clocks go forward"])
@pytest.mark.parametrize(
    ("job_type", "cadence"),
    [(JobType.TRANSACTION_LOG, timedelta(minutes=15)), (JobType.INCREMENTAL, timedelta(hours=4))],
)
def test_short_cadences_leave_no_hour_out_when_clocks_change(day, job_type, cadence):
    runs = runs_around(plan_of(job_type), day)
    gaps = {later - earlier for earlier, later in pairwise(runs)}
    assert gaps == {cadence}


@pytest.mark.parametrize("day", CLOCK_CHANGES, ids=["clocks go back", "clocks go forward"])
def test_the_nightly_full_begins_exactly_once_on_every_day_when_clocks_change(day):
    runs = runs_around(plan_of(JobType.FULL), day)
    days = [run.astimezone(BERLIN).date() for run in runs]
    assert len(days) == len(set(days)) == 4
    # On the day that has no 02:00, Prefect begins at 01:00 rather than not at all.
    assert {run.astimezone(BERLIN).hour for run in runs} <= {1, 2}


def test_a_local_short_cadence_would_have_lost_an_hour():
    # Why the plans are as they are: if Prefect mends this one day, the plans may become simpler.
    begin = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    runs = next_runs("*/15 * * * *", "Europe/Berlin", after=begin, count=20)
    assert max(later - earlier for earlier, later in pairwise(runs)) > timedelta(minutes=15)


def test_next_runs_begin_with_a_run_at_that_very_moment():
    noon = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    assert next_runs("0 */4 * * *", "UTC", after=noon, count=2) == (noon, noon + timedelta(hours=4))


def test_schedules_of_jobs_are_in_the_catalogs_image(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True) as catalog:
        made = {}
        for plan in JOBS:
            made[plan.suffix] = catalog.ensure_job(
                f"main-{plan.suffix}",
                plan.job_type,
                schedule_cron=plan.cron,
                time_zone="Europe/Berlin" if plan.is_local else "UTC",
                backup_targets={"source": "main"},
                destination_config={},
                now=datetime.now(UTC),
            )
        catalog.ensure_job(
            "by-hand", JobType.FULL, backup_targets={"source": "main"}, destination_config={}, now=datetime.now(UTC)
        )
        catalog.set_job_active(made["wal"], False, now=datetime.now(UTC))
        schedules = {schedule.slug: schedule for schedule in job_schedules(catalog.jobs(), "/etc/s.toml")}
    assert set(schedules) == {str(job) for job in made.values()}
    wal, full = schedules[str(made["wal"])], schedules[str(made["full"])]
    assert (wal.deployment, wal.active, wal.time_zone) == ("archive-wal", False, "UTC")
    assert (full.deployment, full.active, full.time_zone) == ("backup", True, "Europe/Berlin")
    assert full.parameters == {"source": "main", "job_id": str(made["full"]), "settings_file": "/etc/s.toml"}


def test_maintenance_is_for_each_source_in_the_sites_zone_and_cleans_once_for_all():
    settings = Settings(
        server=ServerSettings(time_zone="Europe/Berlin"),
        sources={name: SourceSettings(name=name) for name in ("one", "two")},
    )
    schedules = maintenance_schedules(settings, "/etc/s.toml")
    assert len(schedules) == 5 == len({schedule.slug for schedule in schedules})
    assert {schedule.time_zone for schedule in schedules} == {"Europe/Berlin"}
    assert sum(schedule.deployment == "retention-cleanup" for schedule in schedules) == 1
    assert {plan.deployment for plan in MAINTENANCE} == {schedule.deployment for schedule in schedules}
