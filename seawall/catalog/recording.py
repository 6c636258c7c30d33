"""The row that a verb has in the catalog from its beginning to its end, whoever runs it: a flow or the command line.

A backup that was taken is in its repository whatever the catalog says: records follow deeds and never lead them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID

from seawall.anomaly import judged
from seawall.catalog.facts import Facts, plan_facts
from seawall.catalog.logbook import Logbook
from seawall.catalog.logbook.alerts import at_work
from seawall.catalog.views import (
    BackupFile,
    BackupOutcome,
    Job,
    JobType,
    LocationType,
    RecoveryType,
    RunStatus,
    Severity,
    VerificationType,
)
from seawall.errors import Partial, SeawallError, UsageError
from seawall.events import Noticed, Observer
from seawall.model import BackupKind, BackupLabel, Head, Proof, TargetKind
from seawall.process import identity
from seawall.settings import Settings

if TYPE_CHECKING:
    from seawall.catalog.store import Catalog
    from seawall.repository import Repository
    from seawall.restore import RestorePlan

KINDS = {
    JobType.FULL: BackupKind.FULL,
    JobType.INCREMENTAL: BackupKind.INCREMENTAL,
    JobType.DIFFERENTIAL: BackupKind.DIFFERENTIAL,
}

RETENTION_JOB = "retention-cleanup"
# Jobs of the site as a whole, each named like its deployment.
SITE_JOBS = {
    JobType.RETENTION: RETENTION_JOB,
    JobType.MIRROR: "mirror",
    JobType.PROOFS: "renew-proofs",
    JobType.LOCATION_HEALTH: "location-health",
    JobType.IMMUTABILITY: "immutability-probe",
}
SUSPECT = "suspect-backup"


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb achieved: plain JSON values for whoever asked and the catalog.

    Args:
        outcome: if it made a backup.
        lacking: what could not be done although the rest was, which is no failure of the verb; None for nothing.
    """

    facts: Facts = field(default_factory=dict)
    outcome: BackupOutcome | None = None
    lacking: Partial | None = None

    @property
    def told(self) -> Facts:
        """The facts, and under `partial` what is lacking."""
        return self.facts if self.lacking is None else {**self.facts, "partial": self.lacking.message}


@dataclass(frozen=True, slots=True)
class End:
    """How a verb ended."""

    status: RunStatus
    result: Result = field(default_factory=Result)
    error: SeawallError | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on a row, and how long it counts as alive without being renewed."""

    span: timedelta
    host: str
    flow_run_id: UUID | None = None
    process: str = field(default_factory=identity)


Ids = tuple[UUID, ...]


class Record(Protocol):
    """The row, or the rows, that a verb has in the catalog."""

    def begin(self, catalog: Logbook, *, now: datetime, lease: Lease) -> Ids:
        """Make the rows; their ids, the one that stands for the verb first.

        Raises:
            LeaseHeld: it runs already.
        """
        ...

    def finish(self, catalog: Logbook, ids: Ids, end: End, *, now: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """A run of a job; the catalog keeps that only one runs at a time."""

    job_id: UUID

    def begin(self, catalog: Logbook, *, now: datetime, lease: Lease) -> Ids:
        begun = catalog.begin_execution(
            self.job_id,
            now=now,
            lease=lease.span,
            flow_run_id=lease.flow_run_id,
            host=lease.host,
            process=lease.process,
        )
        return (begun,)

    def finish(self, catalog: Logbook, ids: Ids, end: End, *, now: datetime) -> None:
        outcome = end.result.outcome or BackupOutcome()
        outcome = replace(outcome, details={**outcome.details, **end.result.facts})
        catalog.finish_execution(ids[0], status=end.status, now=now, outcome=outcome, error=end.error)


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A verification of a backup set; only one that reads it back makes the set a verified one."""

    backup_file_id: UUID
    verification_type: VerificationType
    reads_back: bool = True

    @classmethod
    def up_to(cls, backup_file_id: UUID, level: Proof) -> VerificationRecord:
        """The record of a verification that goes so far: hashes alone are a checksum verification."""
        kind = VerificationType.CHECKSUM if level is Proof.HASH_GOOD else VerificationType.INTEGRITY
        return cls(backup_file_id, kind, reads_back=level is not Proof.PRESENT)

    def begin(self, catalog: Logbook, *, now: datetime, lease: Lease) -> Ids:
        begun = catalog.begin_verification(
            self.backup_file_id,
            self.verification_type,
            now=now,
            lease=lease.span,
            flow_run_id=lease.flow_run_id,
            host=lease.host,
            process=lease.process,
        )
        return (begun,)

    def finish(self, catalog: Logbook, ids: Ids, end: End, *, now: datetime) -> None:
        catalog.finish_verification(
            ids[0],
            status=end.status,
            now=now,
            results=dict(end.result.facts),
            error=end.error,
            reads_back=self.reads_back,
        )


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """A recovery; it is recorded also when the catalog does not know the set that it starts from."""

    recovery_type: RecoveryType
    backup_file_id: UUID | None
    target_timestamp: datetime | None
    details: Facts

    @classmethod
    def of(cls, planned: RestorePlan, file: BackupFile | None) -> RecoveryRecord:
        """The record of a planned restore, from a set that the catalog knows or not."""
        kind = RecoveryType.FULL if planned.target.kind is TargetKind.LATEST else RecoveryType.POINT_IN_TIME
        return cls(kind, None if file is None else file.id, planned.target.moment, plan_facts(planned))

    def begin(self, catalog: Logbook, *, now: datetime, lease: Lease) -> Ids:
        begun = catalog.begin_recovery(
            self.recovery_type,
            backup_file_id=self.backup_file_id,
            target_timestamp=self.target_timestamp,
            details=self.details,
            now=now,
            lease=lease.span,
            flow_run_id=lease.flow_run_id,
            host=lease.host,
            process=lease.process,
        )
        return (begun,)

    def finish(self, catalog: Logbook, ids: Ids, end: End, *, now: datetime) -> None:
        catalog.finish_recovery(ids[0], status=end.status, now=now, details=dict(end.result.facts), error=end.error)


@dataclass(frozen=True, slots=True)
class Both:
    """A run of a job that is also something else, such as the verification of a backup set."""

    job: ExecutionRecord
    other: Record

    @classmethod
    def of(cls, job_id: UUID | None, other: Record | None) -> Record | None:
        """What there is of the two."""
        if job_id is None or other is None:
            return other if job_id is None else ExecutionRecord(job_id)
        return cls(ExecutionRecord(job_id), other)

    def begin(self, catalog: Logbook, *, now: datetime, lease: Lease) -> Ids:
        job = self.job.begin(catalog, now=now, lease=lease)
        try:
            return job + self.other.begin(catalog, now=now, lease=lease)
        except SeawallError as error:
            self.job.finish(catalog, job, End(RunStatus.FAILED, error=error), now=now)
            raise

    def finish(self, catalog: Logbook, ids: Ids, end: End, *, now: datetime) -> None:
        self.other.finish(catalog, ids[1:], end, now=now)
        self.job.finish(catalog, ids[:1], end, now=now)


def kind_of(job: Job) -> BackupKind:
    """The kind of backup that a job takes.

    Raises:
        UsageError: it takes none.
    """
    try:
        return KINDS[job.job_type]
    except KeyError as error:
        raise UsageError(f"the job {job.name!r} is of type {job.job_type.value} and takes no backup") from error


def job_type_of(kind: BackupKind) -> JobType:
    """The type of the jobs that take backups of that kind."""
    return next(job_type for job_type, known in KINDS.items() if known is kind)


def job_id_of(record: Record | None) -> UUID | None:
    """The job whose run a record is, if it is one."""
    job = record.job if isinstance(record, Both) else record
    return job.job_id if isinstance(job, ExecutionRecord) else None


def job_of(catalog: Logbook, settings: Settings, source: str, job_type: JobType, *, now: datetime) -> Job:
    """The source's job of a type; if there is none, a new one that has no schedule.

    Raises:
        SettingsError: the source is not configured.
    """
    known = [job for job in catalog.jobs() if job.job_type is job_type and job.backup_targets.get("source") == source]
    if known:
        return known[0]
    made = catalog.ensure_job(
        f"{source}-{job_type.value.replace('_', '-')}",
        job_type,
        retention_days=settings.source(source).retention_days,
        backup_targets={"source": source},
        destination_config={"repository": settings.repository.url},
        now=now,
    )
    return catalog.job(made)


def retention_job(catalog: Logbook, settings: Settings, *, now: datetime) -> Job:
    """The site's job that applies every source's retention; a new one without a schedule if there is none."""
    return site_job(catalog, settings, JobType.RETENTION, now=now)


def site_job(catalog: Logbook, settings: Settings, job_type: JobType, *, now: datetime) -> Job:
    """The site's job of a type of `SITE_JOBS`; a new one without a schedule if there is none."""
    known = [job for job in catalog.jobs() if job.job_type is job_type]
    if known:
        return known[0]
    made = catalog.ensure_job(
        SITE_JOBS[job_type],
        job_type,
        backup_targets={},
        destination_config={"repository": settings.repository.url},
        now=now,
    )
    return catalog.job(made)


def record_taken(
    catalog: Logbook,
    settings: Settings,
    repository: Repository,
    head: Head,
    *,
    job_id: UUID,
    execution_id: UUID,
    now: datetime,
) -> UUID:
    """Record a backup set that was just committed, where it lies and until when retention keeps it; the file's id."""
    return catalog.record_backup(
        head,
        job_id=job_id,
        execution_id=execution_id,
        repository_id=repository.id,
        storage_location=location_of(catalog, repository, now=now),
        expires_at=head.stopped_at + timedelta(days=settings.source(head.source).retention_days),
        now=now,
    )


def record_judgement(
    catalog: Logbook, repository: Repository, head: Head, observe: Observer, *, now: datetime
) -> tuple[str, ...]:
    """Compare a new backup with those before it; what is unusual, which is a notice and kept with the backup."""
    found = tuple(mark.sentence for mark in judged(repository.source(head.source), head.label))
    file = catalog.find_backup_file(repository.id, head.source, head.label)
    if file is not None:
        catalog.record_suspicions(file.id, found)
    if found:
        text = f"{head.source} {head.label} is suspect: {'; '.join(found)}"
        observe.hear(Noticed("high", SUSPECT, text))
    else:
        catalog.resolve_alerts(SUSPECT, subject=head.source, now=now)
    return found


def record_collected(
    catalog: Logbook, repository: Repository, source: str, labels: Iterable[str], *, actor: str, now: datetime
) -> None:
    """Record that backup sets were removed from their repository for good."""
    for label in labels:
        file = catalog.find_backup_file(repository.id, source, BackupLabel.parse(label))
        if file is not None:
            catalog.record_expiry(file.id, now=now)
        catalog.audit(actor, "retention.collect", f"{source} {label}", {}, now)


def record_withdrawn(
    catalog: Logbook, repository: Repository, source: str, label: BackupLabel, *, actor: str, now: datetime
) -> None:
    """Record that a backup set that was to go is listed again."""
    file = catalog.find_backup_file(repository.id, source, label)
    if file is not None:
        catalog.withdraw_expiry(file.id)
    catalog.audit(actor, "retention.withdraw", f"{source} {label}", {}, now)


def location_of(catalog: Logbook, repository: Repository, *, now: datetime) -> str:
    """The name of the repository's storage location in the catalog, which is made if there is none of its URL."""
    url, known = repository.storage.url, catalog.storage_locations()
    for location in known:
        if location.connection_config.get("url") == url:
            return location.name
    parts = urlsplit(url)
    name = PurePosixPath(unquote(parts.path)).name or parts.netloc or "repository"
    if name in {location.name for location in known}:
        name = f"{name}-{repository.id[:8]}"
    catalog.ensure_storage_location(name, LocationType.of(url), connection_config={"url": url}, now=now)
    return name


def alert_unreported(catalog: Catalog, ended: Iterable[UUID], why: str, *, now: datetime) -> tuple[UUID, ...]:
    """Open `backup-failed` for backups that ended without a report: whoever was to raise it is gone.

    A later backup of the source resolves it, and so does this one if it was only slow and reports success.

    Args:
        ended: ids of executions, verifications and recoveries; only executions of backup jobs are told of.
        why: how that is known, such as `its lease ran out`.

    Returns:
        The alerts that were raised, again or for the first time.
    """
    raised = []
    for execution in catalog.executions_of(ended):
        job = catalog.job(execution.job_id)
        if job.job_type in KINDS and (source := str(job.backup_targets.get("source", ""))):
            text = f"the backup of {source} ended without a report: {why}"
            with at_work(job.id):
                raised.append(catalog.raise_alert("backup-failed", Severity.HIGH, text, subject=source, now=now))
    return tuple(raised)


def raise_alerts(
    catalog: Logbook, title: str, subject: str, end: End, notices: Iterable[Noticed], *, now: datetime
) -> tuple[UUID, ...]:
    """Open alerts for a verb that failed and for what it noticed, or close those that its success disproves.

    Args:
        title: the verb, such as `backup`; its failure is an alert of the type `backup-failed`.
        subject: what it concerns, such as the source's name.

    Returns:
        The alerts that were raised, again or for the first time.
    """
    failure, raised = f"{title}-failed", []
    if end.status is RunStatus.COMPLETED:
        catalog.resolve_alerts(failure, subject=subject, now=now)
    elif end.status is not RunStatus.CANCELLED and end.error is not None:
        raised.append(catalog.raise_alert(failure, Severity.HIGH, end.error.message, subject=subject, now=now))
    for notice in notices:
        severity = Severity(notice.severity)
        if severity.rank >= Severity.HIGH.rank:
            raised.append(catalog.raise_alert(notice.code, severity, notice.message, subject=subject, now=now))
    return tuple(raised)
