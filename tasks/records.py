"""The rows that verbs have in the catalog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from seawall.catalog import BackupOutcome, Catalog, JobType, RecoveryType, VerificationType
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


def job_of(catalog: Catalog, settings: Settings, source: str, job_type: JobType, *, now: datetime) -> UUID:
    """The job of a source that a run without one belongs to: the configured one, else one that has no schedule.

    Raises:
        SettingsError: the source is not configured.
    """
    for job in catalog.jobs():
        if job.job_type is job_type and job.backup_targets.get("source") == source:
            return job.id
    return catalog.ensure_job(
        f"{source}-{job_type.value.replace('_', '-')}",
        job_type,
        retention_days=settings.source(source).retention_days,
        backup_targets={"source": source},
        destination_config={"repository": settings.repository.url},
        now=now,
    )
