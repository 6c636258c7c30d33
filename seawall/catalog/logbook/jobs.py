"""Backup jobs: what is protected, when, and for how long it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from seawall.catalog.checks import aware, bounded
from seawall.catalog.documents import configuration
from seawall.catalog.logbook.rows import Entries, Transaction
from seawall.catalog.views import NAME_LENGTH, Document, Job, JobType
from seawall.errors import CatalogError, UsageError


class JobEntries(Entries):
    def ensure_job(
        self,
        name: str,
        job_type: JobType,
        *,
        schedule_cron: str | None = None,
        time_zone: str = "UTC",
        retention_days: int = 30,
        backup_targets: Document,
        destination_config: Document,
        notification_config: Document | None = None,
        is_active: bool = True,
        now: datetime,
    ) -> UUID:
        """Create the job of that name, or bring it to this definition.

        Whether an existing job is active stays as it is: an administrator who stopped a schedule finds it
        stopped after the next deployment. Use `set_job_active` to change it.

        Args:
            name: unique, 1 to 200 characters.
            job_type: what it does; an existing job keeps its own.
            schedule_cron: five fields in `time_zone`, or None for a job that only runs when asked.
            time_zone: an IANA name.
            retention_days: how long its backups are kept.
            backup_targets: what it protects, `{"source": name}` for a cluster.
            notification_config: who hears of its alerts, `{"channel": name}` of a Prefect block; None keeps what was
                configured before, and the site's channel where that is nothing.
            is_active: only for a job that is created.

        Raises:
            UsageError: a value is malformed, looks like a secret, or the job exists with another type.
        """
        wanted = Job(
            id=uuid4(),
            name=bounded(name, NAME_LENGTH, "the job's name"),
            job_type=JobType(job_type),
            schedule_cron=None if schedule_cron is None else _checked_cron(schedule_cron),
            time_zone=_checked_zone(time_zone),
            retention_days=_checked_days(retention_days),
            is_active=is_active,
            backup_targets=configuration(backup_targets, "backup_targets"),
            destination_config=configuration(destination_config, "destination_config"),
            notification_config=configuration(notification_config or {}, "notification_config"),
            created_at=aware(now),
            updated_at=now,
        )
        with self._writes() as rows:
            if rows.insert(wanted):
                return wanted.id
            kept = () if notification_config is not None else ("notification_config",)
            return _redefined(rows, wanted, kept)

    def jobs(self, *, active_only: bool = False) -> tuple[Job, ...]:
        """All jobs by name."""
        with self._reads() as rows:
            found = rows.all(Job, "ORDER BY name")
        return tuple(job for job in found if job.is_active or not active_only)

    def job(self, job_id: UUID) -> Job:
        """One job.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reads() as rows:
            return rows.found(Job, job_id, "job")


_DEFINITION = (
    "schedule_cron",
    "time_zone",
    "retention_days",
    "backup_targets",
    "destination_config",
    "notification_config",
)


def _redefined(rows: Transaction, wanted: Job, kept: Sequence[str]) -> UUID:
    existing = rows.first(Job, "WHERE name = :name", lock=True, name=wanted.name)
    if existing is None:
        raise CatalogError(f"the job {wanted.name!r} was removed meanwhile")
    if existing.job_type is not wanted.job_type:
        raise UsageError(
            f"the job {existing.name!r} is of type {existing.job_type}, not {wanted.job_type}",
            hint="Its history belongs to that type; give the other one another name.",
        )
    wants = {name: getattr(wanted, name) for name in _DEFINITION if name not in kept}
    changed = {name: value for name, value in wants.items() if value != getattr(existing, name)}
    if changed:
        rows.update(Job, existing.id, **changed, updated_at=wanted.updated_at)
    return existing.id


def _checked_cron(text: str) -> str:
    if len(text.split()) != 5:
        raise UsageError(f"the schedule {text!r} has not five fields", hint="Such as '0 2 * * *', daily at 02:00.")
    return bounded(text, 100, "the schedule")


def _checked_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"no time zone {name!r} is known", hint="Use an IANA name such as Europe/Berlin.") from error
    return bounded(name, 64, "the time zone")


def _checked_days(days: int) -> int:
    if days < 1:
        raise UsageError(f"a retention of {days} days would keep nothing; at least 1 is wanted")
    return days
