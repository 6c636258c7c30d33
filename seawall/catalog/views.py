"""What the catalog hands out and takes in: frozen values, never a row that belongs to a session.

Field names are column names, except that `details` of an execution is the column `metadata` (SQLAlchemy
keeps that word for itself). Sizes are in bytes, times are aware and UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from seawall.catalog.documents import head_document
from seawall.model import Finding, Head

Document = Mapping[str, object]
HASH_LENGTH = 64
NAME_LENGTH = 200


class JobType(StrEnum):
    """What a job does: kinds of backups, and the work on what was backed up (`VERIFY` and after)."""

    FULL = "full"
    INCREMENTAL = "incremental"
    TRANSACTION_LOG = "transaction_log"
    FILE_SYSTEM = "file_system"
    DIFFERENTIAL = "differential"
    LOGICAL = "logical"
    CONFIGURATION = "configuration"
    VERIFY = "verify"
    RESTORE_TEST = "restore_test"
    RETENTION = "retention"
    MIRROR = "mirror"
    PROOFS = "proofs"
    LOCATION_HEALTH = "location_health"
    IMMUTABILITY = "immutability"


class RunStatus(StrEnum):
    """Of executions, recoveries and verifications; `PARTIAL`: only a part of the source could be read."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in {RunStatus.PENDING, RunStatus.RUNNING}


class RecoveryType(StrEnum):
    FULL = "full"
    PARTIAL = "partial"
    POINT_IN_TIME = "point_in_time"


class VerificationType(StrEnum):
    INTEGRITY = "integrity"
    RESTORE_TEST = "restore_test"
    CHECKSUM = "checksum"


class LocationType(StrEnum):
    LOCAL = "local"
    S3 = "s3"
    AZURE = "azure"
    GCS = "gcs"

    @classmethod
    def of(cls, url: str) -> LocationType:
        """The type of the location at a URL; `LOCAL` for a path and whatever is mounted."""
        schemes = {"s3": cls.S3, "az": cls.AZURE, "azure": cls.AZURE, "gs": cls.GCS, "gcs": cls.GCS}
        return schemes.get(url.partition(":")[0], cls.LOCAL)


class Severity(StrEnum):
    """From the least to the most urgent, in the order of their definition."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class BackupOutcome:
    """What an execution achieved.

    Args:
        backup_size_bytes: plain bytes that were read.
        compressed_size_bytes: bytes that were stored.
        file_path: the backup set's place in its repository.
        checksum: SHA-256 of the manifest in hex.
        details: whatever else is worth keeping, of plain JSON values.
    """

    backup_size_bytes: int = 0
    compressed_size_bytes: int = 0
    file_path: str = ""
    checksum: str = ""
    details: Document = field(default_factory=dict)

    @classmethod
    def of(cls, head: Head, details: Document | None = None) -> BackupOutcome:
        """The outcome that a committed backup set's head tells; `details` are added to the head's facts."""
        return cls(
            backup_size_bytes=head.plain_bytes,
            compressed_size_bytes=head.stored_bytes,
            file_path=backup_path(head),
            checksum=head.manifest_sha256,
            details={"backup": head_document(head), **(details or {})},
        )


def backup_path(head: Head) -> str:
    """The folder of a backup set in its repository (docs/repository-format.md, layout)."""
    return f"sources/{head.source}/backups/{head.label}"


@dataclass(frozen=True, slots=True)
class Job:
    id: UUID
    name: str
    job_type: JobType
    schedule_cron: str | None
    time_zone: str
    retention_days: int
    is_active: bool
    backup_targets: Document
    destination_config: Document
    notification_config: Document
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Execution:
    id: UUID
    job_id: UUID
    execution_start: datetime
    execution_end: datetime | None
    status: RunStatus
    backup_size_bytes: int | None
    compressed_size_bytes: int | None
    file_path: str | None
    checksum: str | None
    error_message: str | None
    details: Document
    created_at: datetime
    flow_run_id: UUID | None
    lease_expires_at: datetime | None
    host: str | None


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One backup set in one storage location; `expired_at` is when it was removed from there."""

    id: UUID
    execution_id: UUID
    file_name: str
    file_path: str
    file_size_bytes: int
    compressed_size_bytes: int
    checksum: str
    encryption_key_id: str | None
    storage_location: str
    expires_at: datetime | None
    verified_at: datetime | None
    created_at: datetime
    repository_id: UUID
    source: str
    label: str
    expired_at: datetime | None
    suspicions: Sequence[object] | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    id: UUID
    recovery_type: RecoveryType
    backup_file_id: UUID | None
    target_timestamp: datetime | None
    recovery_start: datetime
    recovery_end: datetime | None
    status: RunStatus
    recovery_details: Document
    initiated_by: UUID | None
    error_message: str | None
    created_at: datetime
    flow_run_id: UUID | None
    lease_expires_at: datetime | None
    host: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    id: UUID
    backup_file_id: UUID
    verification_type: VerificationType
    verification_start: datetime
    verification_end: datetime | None
    status: RunStatus
    verification_results: Document
    error_message: str | None
    created_at: datetime
    flow_run_id: UUID | None
    lease_expires_at: datetime | None
    host: str | None


@dataclass(frozen=True, slots=True)
class DrConfiguration:
    id: UUID
    primary_site_config: Document
    backup_site_config: Document
    failover_procedures: Document
    rto_hours: int
    rpo_minutes: int
    last_tested_at: datetime | None
    is_active: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """`health_message` is None after a health check that found nothing wrong."""

    id: UUID
    name: str
    location_type: LocationType
    connection_config: Document
    encryption_config: Document
    capacity_bytes: int | None
    used_bytes: int
    is_active: bool
    last_health_check: datetime | None
    health_message: str | None
    created_at: datetime
    role: str | None = None
    latency_ms: int | None = None
    last_proof_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What lay in a location at one moment; `capacity_bytes` are used and free together, None where nobody knows."""

    location: str
    measured_at: datetime
    used_bytes: int
    object_count: int
    capacity_bytes: int | None
    details: Document


@dataclass(frozen=True, slots=True)
class KeeperBeat:
    """The last sign of life of the keeper on a host, and how long ago that is; both by the database's clock."""

    host: str
    beat_at: datetime
    silence: timedelta


@dataclass(frozen=True, slots=True)
class ObjectProof:
    """How far one object in one location was proved; `proof` is None if it was found wrong, and `problem` says how."""

    name: str
    proof: str | None
    proved_at: datetime
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that needs attention; raised again while unresolved, it counts `occurrences`.

    `notified_at` is when somebody was last told of it at its present severity.
    """

    id: UUID
    alert_type: str
    subject: str
    severity: Severity
    message: str
    alert_data: Document
    acknowledged_at: datetime | None
    acknowledged_by: UUID | None
    resolved_at: datetime | None
    created_at: datetime
    occurrences: int
    last_raised_at: datetime
    notified_at: datetime | None


@dataclass(frozen=True, slots=True)
class User:
    id: UUID
    name: str
    email: str | None
    role: Role
    is_active: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link of the audit chain; `hash` is SHA-256 over everything else in it, `previous_hash` included."""

    id: UUID
    sequence: int
    recorded_at: datetime
    actor: str
    action: str
    subject: str
    details: Document
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class AuditAnchor:
    """The end of the audit chain at some moment; kept elsewhere, it proves later that nothing before it changed."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What `verify_audit` found: how many entries it read, where the chain ends, and everything wrong with it."""

    entries: int
    anchor: AuditAnchor
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        return not self.findings
