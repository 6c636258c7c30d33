"""Backup jobs: what is protected, when, and for how long it is kept."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlmodel import Session, col, select

from seawall.catalog.documents import configuration
from seawall.catalog.models import NAME_LENGTH, BackupJobRow
from seawall.catalog.records import Records, added, aware, bounded, found, named, view
from seawall.catalog.views import Document, Job, JobType
from seawall.errors import RecordMissing, UsageError


class JobRecords(Records):
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
            is_active: only for a job that is created.

        Raises:
            UsageError: a value is malformed, looks like a secret, or the job exists with another type.
        """
        wanted = BackupJobRow(
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
        with self._writing() as session:
            existing = added(session, BackupJobRow, wanted)
            return wanted.id if existing is None else _redefined(session, existing, wanted)

    def jobs(self, *, active_only: bool = False) -> tuple[Job, ...]:
        """All jobs by name."""
        with self._reading() as session:
            query = select(BackupJobRow).order_by(BackupJobRow.name)
            if active_only:
                query = query.where(col(BackupJobRow.is_active))
            return tuple(view(Job, row) for row in session.exec(query))

    def job(self, job_id: UUID) -> Job:
        """One job.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(Job, found(session, BackupJobRow, job_id, "job"))

    def job_named(self, name: str) -> Job:
        """The job of that name.

        Raises:
            RecordMissing: there is none.
        """
        with self._reading() as session:
            row = named(session, BackupJobRow, name)
            if row is None:
                raise RecordMissing(f"the catalog has no job {name!r}")
            return view(Job, row)

    def set_job_active(self, job_id: UUID, active: bool, *, now: datetime) -> None:
        """Switch a job's schedule on or off.

        Raises:
            RecordMissing: there is no such job.
        """
        with self._writing() as session:
            row = found(session, BackupJobRow, job_id, "job", lock=True)
            if row.is_active is not active:
                row.is_active, row.updated_at = active, aware(now)
                session.add(row)


_DEFINITION = (
    "schedule_cron",
    "time_zone",
    "retention_days",
    "backup_targets",
    "destination_config",
    "notification_config",
)


def _redefined(session: Session, existing: BackupJobRow, wanted: BackupJobRow) -> UUID:
    if existing.job_type is not wanted.job_type:
        raise UsageError(
            f"the job {existing.name!r} is of type {existing.job_type}, not {wanted.job_type}",
            hint="Its history belongs to that type; give the other one another name.",
        )
    changed = [name for name in _DEFINITION if getattr(existing, name) != getattr(wanted, name)]
    for name in changed:
        setattr(existing, name, getattr(wanted, name))
    if changed:
        existing.updated_at = wanted.updated_at
        session.add(existing)
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
