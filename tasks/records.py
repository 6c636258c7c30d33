"""The rows that verbs have in the catalog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from seawall.catalog import BackupOutcome, Catalog, Job, JobType, RecoveryType, VerificationType
from seawall.errors import UsageError
from seawall.model import BackupKind
from seawall.settings import Settings
from tasks.execution import End


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """A run of a job; the catalog keeps that only one runs at a time."""

    job_id: UUID

    def begin(self, catalog: Catalog, *, now: datetime, lease: timedelta, flow_run_id: UUID | None) -> UUID:
        return catalog.begin_execution(self.job_id, now=now, lease=lease, flow_run_id=flow_run_id)

    def finish(self, catalog: Catalog, record_id: UUID, end: End, *, now: datetime) -> None:
        outcome = end.result.outcome or BackupOutcome()
        outcome = replace(outcome, details={**outcome.details, **end.result.facts})
        catalog.finish_execution(record_id, status=end.status, now=now, outcome=outcome, error=end.error)


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A verification of a backup set."""

    backup_file_id: UUID
    verification_type: VerificationType

    def begin(self, catalog: Catalog, *, now: datetime, lease: timedelta, flow_run_id: UUID | None) -> UUID:
        return catalog.begin_verification(
            self.backup_file_id, self.verification_type, now=now, lease=lease, flow_run_id=flow_run_id
        )

    def finish(self, catalog: Catalog, record_id: UUID, end: End, *, now: datetime) -> None:
        catalog.finish_verification(
            record_id, status=end.status, now=now, results=dict(end.result.facts), error=end.error
        )


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """A recovery; it is recorded also when the catalog does not know the set that it starts from."""

    recovery_type: RecoveryType
    backup_file_id: UUID | None
    target_timestamp: datetime | None
    details: dict[str, object]

    def begin(self, catalog: Catalog, *, now: datetime, lease: timedelta, flow_run_id: UUID | None) -> UUID:
        return catalog.begin_recovery(
            self.recovery_type,
            backup_file_id=self.backup_file_id,
            target_timestamp=self.target_timestamp,
            details=self.details,
            now=now,
            lease=lease,
            flow_run_id=flow_run_id,
        )

    def finish(self, catalog: Catalog, record_id: UUID, end: End, *, now: datetime) -> None:
        catalog.finish_recovery(record_id, status=end.status, now=now, details=dict(end.result.facts), error=end.error)


KINDS = {
    JobType.FULL: BackupKind.FULL,
    JobType.INCREMENTAL: BackupKind.INCREMENTAL,
    JobType.DIFFERENTIAL: BackupKind.DIFFERENTIAL,
}


def kind_of(job: Job) -> BackupKind:
    """The kind of backup that a job takes.

    Raises:
        UsageError: it takes none.
    """
    try:
        return KINDS[job.job_type]
    except KeyError as error:
        raise UsageError(f"the job {job.name!r} is of type {job.job_type.value} and takes no backup") from error


def resolved_job(settings: Settings, source: str, job_id: UUID | None, kind: BackupKind | None) -> Job:
    """The job that a backup belongs to: the one that was named, else the source's job of that kind.

    Raises:
        RecordMissing: there is no job of that id.
        SettingsError: the source is not configured.
    """
    wanted = next(job_type for job_type, known in KINDS.items() if known is (kind or BackupKind.FULL))
    with Catalog.open(settings.catalog.url) as catalog:
        return catalog.job(job_id) if job_id else job_of(catalog, settings, source, wanted)


def wal_job(settings: Settings, source: str, job_id: UUID | None) -> Job:
    """The job of a source's WAL: the one that was named, else the source's own.

    Raises:
        RecordMissing: there is no job of that id.
        SettingsError: the source is not configured.
    """
    with Catalog.open(settings.catalog.url) as catalog:
        return catalog.job(job_id) if job_id else job_of(catalog, settings, source, JobType.TRANSACTION_LOG)


def job_of(catalog: Catalog, settings: Settings, source: str, job_type: JobType) -> Job:
    """The source's job of a type; if there is none, a new one that has no schedule.

    Raises:
        SettingsError: the source is not configured.
    """
    for job in catalog.jobs():
        if job.job_type is job_type and job.backup_targets.get("source") == source:
            return job
    made = catalog.ensure_job(
        f"{source}-{job_type.value.replace('_', '-')}",
        job_type,
        retention_days=settings.source(source).retention_days,
        backup_targets={"source": source},
        destination_config={"repository": settings.repository.url},
        now=datetime.now(UTC),
    )
    return catalog.job(made)
