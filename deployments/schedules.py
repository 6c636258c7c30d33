"""What runs when, as data, and when that will be.

Short cadences (WAL, incremental) are in UTC: in a zone with summer time, Prefect leaves out an hour of them when
clocks go back, whatever kind of schedule it is. Only the nightly window and what follows it is in the site's zone,
since people mean the night by it. On the day when clocks go forward over 02:00, Prefect starts the nightly full at
01:00, an hour before its window opens; `tasks.admission` moves that run to 03:00, when the window does open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from seawall.catalog import Job, JobType
from seawall.catalog.recording import RETENTION_JOB, SITE_JOBS


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job that every source, or the site, has from the start.

    Args:
        suffix: the job is named `<source>-<suffix>`, or like this alone if it is the site's.
        cron: five fields, in the site's zone if `is_local`, else in UTC.
    """

    suffix: str
    job_type: JobType
    cron: str
    is_local: bool = False
    for_each_source: bool = True


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as Prefect shall have it.

    Args:
        slug: stable, so that a redeployment finds it again: the job's id.
    """

    slug: str
    deployment: str
    cron: str
    time_zone: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    active: bool = True


JOBS = (
    JobPlan("full", JobType.FULL, "0 2 * * *", is_local=True),
    JobPlan("incremental", JobType.INCREMENTAL, "0 */4 * * *"),
    JobPlan("wal", JobType.TRANSACTION_LOG, "*/15 * * * *"),
    JobPlan("verify", JobType.VERIFY, "30 4 * * *", is_local=True),
    JobPlan("restore-test", JobType.RESTORE_TEST, "0 5 1 * *", is_local=True),
    JobPlan(RETENTION_JOB, JobType.RETENTION, "30 6 * * *", is_local=True, for_each_source=False),
    JobPlan(SITE_JOBS[JobType.MIRROR], JobType.MIRROR, "20 * * * *", for_each_source=False),
    JobPlan(SITE_JOBS[JobType.PROOFS], JobType.PROOFS, "30 3 * * *", is_local=True, for_each_source=False),
    JobPlan(SITE_JOBS[JobType.LOCATION_HEALTH], JobType.LOCATION_HEALTH, "10 * * * *", for_each_source=False),
    JobPlan(SITE_JOBS[JobType.IMMUTABILITY], JobType.IMMUTABILITY, "45 5 * * *", is_local=True, for_each_source=False),
)
DEPLOYMENT_OF = {
    JobType.FULL: "backup",
    JobType.INCREMENTAL: "backup",
    JobType.DIFFERENTIAL: "backup",
    JobType.TRANSACTION_LOG: "archive-wal",
    JobType.VERIFY: "verify",
    JobType.RESTORE_TEST: "restore-test",
    **SITE_JOBS,
}


def job_schedules(jobs: Sequence[Job], settings_file: str) -> tuple[Schedule, ...]:
    """The schedules of the catalog's jobs, in its image: which are active is for the catalog to say."""
    return tuple(
        Schedule(
            slug=str(job.id),
            deployment=DEPLOYMENT_OF[job.job_type],
            cron=job.schedule_cron,
            time_zone=job.time_zone,
            parameters={"job_id": str(job.id), "settings_file": settings_file} | _source_of(job),
            active=job.is_active,
        )
        for job in jobs
        if job.schedule_cron and job.job_type in DEPLOYMENT_OF and (_source_of(job) or _is_the_sites(job))
    )


def _source_of(job: Job) -> dict[str, str]:
    return {"source": str(job.backup_targets["source"])} if "source" in job.backup_targets else {}


def _is_the_sites(job: Job) -> bool:
    return job.job_type in SITE_JOBS


def next_runs(cron: str, time_zone: str, *, after: datetime, count: int) -> tuple[datetime, ...]:
    """When Prefect will start the next runs of a schedule; its own arithmetic, so that no other can disagree.

    Args:
        cron: five fields in `time_zone`.
        time_zone: an IANA name.
        after: aware; a run at this very moment counts.
    """
    # Its import takes a second that those who only read the plans need not wait.
    from prefect.server.schemas.schedules import CronSchedule  # noqa: PLC0415 - see the line above

    found = asyncio.run(CronSchedule(cron=cron, timezone=time_zone).get_dates(n=count, start=after))
    return tuple(datetime.fromtimestamp(date.timestamp(), tz=after.tzinfo) for date in found)
