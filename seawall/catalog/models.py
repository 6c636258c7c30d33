"""The tables, as SQLModel sees them.

Every column states its SQL type, so that SQLite and PostgreSQL get the same schema from one set of migrations.
Change a table here and in a new migration together: `Catalog.check` and the tests compare them.

Two partial unique indexes carry promises that no code above them could keep under concurrency: a job has at most
one running execution, and an alert of one type and subject is open at most once.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from seawall.catalog.types import AwareDateTime, document_type, enum_type
from seawall.catalog.views import (
    HASH_LENGTH,
    NAME_LENGTH,
    JobType,
    LocationType,
    RecoveryType,
    Role,
    RunStatus,
    Severity,
    VerificationType,
)

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class CatalogRow(SQLModel):
    """Base of all tables; its own metadata keeps the naming of constraints away from other users of SQLModel."""

    metadata = sa.MetaData(naming_convention=NAMING_CONVENTION)


def _key() -> sa.Column[UUID]:
    return sa.Column("id", sa.Uuid(), primary_key=True)


def _reference(name: str, target: str, *, nullable: bool = False) -> sa.Column[UUID]:
    """A foreign key that forbids deleting what it points to: history is never lost by cascade."""
    return sa.Column(name, sa.Uuid(), sa.ForeignKey(target, ondelete="RESTRICT"), nullable=nullable)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[datetime]:
    return sa.Column(name, AwareDateTime(), nullable=nullable)


def _created() -> sa.Column[datetime]:
    return sa.Column("created_at", AwareDateTime(), nullable=False, server_default=sa.func.now())


def _document(name: str) -> sa.Column[object]:
    return sa.Column(name, document_type(), nullable=False)


def _status(default: RunStatus) -> sa.Column[RunStatus]:
    return sa.Column("status", enum_type(RunStatus, "status"), nullable=False, server_default=default.value)


def _active() -> sa.Column[bool]:
    return sa.Column("is_active", sa.Boolean(), nullable=False, server_default=sa.true())


def _host() -> sa.Column[str]:
    """Where it runs: processes can be looked for on that host only."""
    return sa.Column("host", sa.String(255))


def _name(*, length: int = NAME_LENGTH) -> sa.Column[str]:
    return sa.Column("name", sa.String(length), nullable=False, unique=True)


class BackupJobRow(CatalogRow, table=True):
    __tablename__ = "backup_jobs"

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    name: str = Field(sa_column=_name())
    job_type: JobType = Field(sa_column=sa.Column("job_type", enum_type(JobType, "job_type"), nullable=False))
    schedule_cron: str | None = Field(default=None, sa_column=sa.Column("schedule_cron", sa.String(100)))
    time_zone: str = Field(
        default="UTC", sa_column=sa.Column("time_zone", sa.String(64), nullable=False, server_default="UTC")
    )
    retention_days: int = Field(
        default=30, sa_column=sa.Column("retention_days", sa.Integer(), nullable=False, server_default="30")
    )
    is_active: bool = Field(default=True, sa_column=_active())
    backup_targets: dict[str, object] = Field(sa_column=_document("backup_targets"))
    destination_config: dict[str, object] = Field(sa_column=_document("destination_config"))
    notification_config: dict[str, object] = Field(sa_column=_document("notification_config"))
    created_at: datetime = Field(sa_column=_created())
    updated_at: datetime = Field(
        sa_column=sa.Column("updated_at", AwareDateTime(), nullable=False, server_default=sa.func.now())
    )


class BackupExecutionRow(CatalogRow, table=True):
    __tablename__ = "backup_executions"
    __table_args__ = (
        sa.Index(None, "job_id"),
        sa.Index("ix_backup_executions_execution_start", sa.text("execution_start DESC")),
        sa.Index(None, "status"),
        sa.Index(None, "flow_run_id"),
        sa.Index(
            "uq_backup_executions_running",
            "job_id",
            unique=True,
            sqlite_where=sa.text("status = 'running'"),
            postgresql_where=sa.text("status = 'running'"),
        ),
    )

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    job_id: UUID = Field(sa_column=_reference("job_id", "backup_jobs.id"))
    execution_start: datetime = Field(sa_column=_moment("execution_start", nullable=False))
    execution_end: datetime | None = Field(default=None, sa_column=_moment("execution_end"))
    status: RunStatus = Field(default=RunStatus.RUNNING, sa_column=_status(RunStatus.RUNNING))
    backup_size_bytes: int | None = Field(default=None, sa_column=sa.Column("backup_size_bytes", sa.BigInteger()))
    compressed_size_bytes: int | None = Field(
        default=None, sa_column=sa.Column("compressed_size_bytes", sa.BigInteger())
    )
    file_path: str | None = Field(default=None, sa_column=sa.Column("file_path", sa.Text()))
    checksum: str | None = Field(default=None, sa_column=sa.Column("checksum", sa.String(128)))
    error_message: str | None = Field(default=None, sa_column=sa.Column("error_message", sa.Text()))
    details: dict[str, object] = Field(default_factory=dict, sa_column=_document("metadata"))
    created_at: datetime = Field(sa_column=_created())
    flow_run_id: UUID | None = Field(default=None, sa_column=sa.Column("flow_run_id", sa.Uuid()))
    lease_expires_at: datetime | None = Field(default=None, sa_column=_moment("lease_expires_at"))
    host: str | None = Field(default=None, sa_column=_host())


class BackupFileRow(CatalogRow, table=True):
    __tablename__ = "backup_files"
    __table_args__ = (
        sa.Index(None, "execution_id"),
        sa.Index(None, "expires_at"),
        sa.UniqueConstraint("repository_id", "source", "label", "storage_location"),
    )

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    execution_id: UUID = Field(sa_column=_reference("execution_id", "backup_executions.id"))
    file_name: str = Field(sa_column=sa.Column("file_name", sa.String(255), nullable=False))
    file_path: str = Field(sa_column=sa.Column("file_path", sa.Text(), nullable=False))
    file_size_bytes: int = Field(sa_column=sa.Column("file_size_bytes", sa.BigInteger(), nullable=False))
    compressed_size_bytes: int = Field(sa_column=sa.Column("compressed_size_bytes", sa.BigInteger(), nullable=False))
    checksum: str = Field(sa_column=sa.Column("checksum", sa.String(128), nullable=False))
    encryption_key_id: str | None = Field(default=None, sa_column=sa.Column("encryption_key_id", sa.String(255)))
    storage_location: str = Field(sa_column=sa.Column("storage_location", sa.String(NAME_LENGTH), nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=_moment("expires_at"))
    verified_at: datetime | None = Field(default=None, sa_column=_moment("verified_at"))
    created_at: datetime = Field(sa_column=_created())
    repository_id: UUID = Field(sa_column=sa.Column("repository_id", sa.Uuid(), nullable=False))
    source: str = Field(sa_column=sa.Column("source", sa.String(63), nullable=False))
    label: str = Field(sa_column=sa.Column("label", sa.String(100), nullable=False))
    expired_at: datetime | None = Field(default=None, sa_column=_moment("expired_at"))
    suspicions: list[object] | None = Field(default=None, sa_column=sa.Column("suspicions", document_type()))


class RecoveryOperationRow(CatalogRow, table=True):
    __tablename__ = "recovery_operations"
    __table_args__ = (
        sa.Index("ix_recovery_operations_recovery_start", sa.text("recovery_start DESC")),
        sa.Index(None, "backup_file_id"),
        sa.Index(None, "status"),
    )

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    recovery_type: RecoveryType = Field(
        sa_column=sa.Column("recovery_type", enum_type(RecoveryType, "recovery_type"), nullable=False)
    )
    backup_file_id: UUID | None = Field(
        default=None, sa_column=_reference("backup_file_id", "backup_files.id", nullable=True)
    )
    target_timestamp: datetime | None = Field(default=None, sa_column=_moment("target_timestamp"))
    recovery_start: datetime = Field(sa_column=_moment("recovery_start", nullable=False))
    recovery_end: datetime | None = Field(default=None, sa_column=_moment("recovery_end"))
    status: RunStatus = Field(default=RunStatus.PENDING, sa_column=_status(RunStatus.PENDING))
    recovery_details: dict[str, object] = Field(default_factory=dict, sa_column=_document("recovery_details"))
    initiated_by: UUID | None = Field(default=None, sa_column=_reference("initiated_by", "users.id", nullable=True))
    error_message: str | None = Field(default=None, sa_column=sa.Column("error_message", sa.Text()))
    created_at: datetime = Field(sa_column=_created())
    flow_run_id: UUID | None = Field(default=None, sa_column=sa.Column("flow_run_id", sa.Uuid()))
    lease_expires_at: datetime | None = Field(default=None, sa_column=_moment("lease_expires_at"))
    host: str | None = Field(default=None, sa_column=_host())


class BackupVerificationRow(CatalogRow, table=True):
    __tablename__ = "backup_verifications"
    __table_args__ = (sa.Index(None, "backup_file_id"), sa.Index(None, "status"))

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    backup_file_id: UUID = Field(sa_column=_reference("backup_file_id", "backup_files.id"))
    verification_type: VerificationType = Field(
        sa_column=sa.Column("verification_type", enum_type(VerificationType, "verification_type"), nullable=False)
    )
    verification_start: datetime = Field(sa_column=_moment("verification_start", nullable=False))
    verification_end: datetime | None = Field(default=None, sa_column=_moment("verification_end"))
    status: RunStatus = Field(default=RunStatus.PENDING, sa_column=_status(RunStatus.PENDING))
    verification_results: dict[str, object] = Field(default_factory=dict, sa_column=_document("verification_results"))
    error_message: str | None = Field(default=None, sa_column=sa.Column("error_message", sa.Text()))
    created_at: datetime = Field(sa_column=_created())
    flow_run_id: UUID | None = Field(default=None, sa_column=sa.Column("flow_run_id", sa.Uuid()))
    lease_expires_at: datetime | None = Field(default=None, sa_column=_moment("lease_expires_at"))
    host: str | None = Field(default=None, sa_column=_host())


class DrConfigurationRow(CatalogRow, table=True):
    __tablename__ = "dr_configuration"

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    primary_site_config: dict[str, object] = Field(sa_column=_document("primary_site_config"))
    backup_site_config: dict[str, object] = Field(sa_column=_document("backup_site_config"))
    failover_procedures: dict[str, object] = Field(sa_column=_document("failover_procedures"))
    rto_hours: int = Field(
        default=4, sa_column=sa.Column("rto_hours", sa.Integer(), nullable=False, server_default="4")
    )
    rpo_minutes: int = Field(
        default=15, sa_column=sa.Column("rpo_minutes", sa.Integer(), nullable=False, server_default="15")
    )
    last_tested_at: datetime | None = Field(default=None, sa_column=_moment("last_tested_at"))
    is_active: bool = Field(default=True, sa_column=_active())
    created_at: datetime = Field(sa_column=_created())
    updated_at: datetime = Field(
        sa_column=sa.Column("updated_at", AwareDateTime(), nullable=False, server_default=sa.func.now())
    )


class StorageLocationRow(CatalogRow, table=True):
    __tablename__ = "storage_locations"

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    name: str = Field(sa_column=_name())
    location_type: LocationType = Field(
        sa_column=sa.Column("location_type", enum_type(LocationType, "location_type"), nullable=False)
    )
    connection_config: dict[str, object] = Field(sa_column=_document("connection_config"))
    encryption_config: dict[str, object] = Field(sa_column=_document("encryption_config"))
    capacity_bytes: int | None = Field(default=None, sa_column=sa.Column("capacity_bytes", sa.BigInteger()))
    used_bytes: int = Field(
        default=0, sa_column=sa.Column("used_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    is_active: bool = Field(default=True, sa_column=_active())
    last_health_check: datetime | None = Field(default=None, sa_column=_moment("last_health_check"))
    health_message: str | None = Field(default=None, sa_column=sa.Column("health_message", sa.Text()))
    created_at: datetime = Field(sa_column=_created())
    role: str | None = Field(default=None, sa_column=sa.Column("role", sa.String(50)))
    latency_ms: int | None = Field(default=None, sa_column=sa.Column("latency_ms", sa.Integer()))
    last_proof_at: datetime | None = Field(default=None, sa_column=_moment("last_proof_at"))


class BackupAlertRow(CatalogRow, table=True):
    __tablename__ = "backup_alerts"
    __table_args__ = (
        sa.Index("ix_backup_alerts_created_at", sa.text("created_at DESC")),
        sa.Index(None, "severity"),
        sa.Index(
            "uq_backup_alerts_open",
            "alert_type",
            "subject",
            unique=True,
            sqlite_where=sa.text("resolved_at IS NULL"),
            postgresql_where=sa.text("resolved_at IS NULL"),
        ),
    )

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    alert_type: str = Field(sa_column=sa.Column("alert_type", sa.String(100), nullable=False))
    subject: str = Field(default="", sa_column=sa.Column("subject", sa.String(255), nullable=False))
    severity: Severity = Field(sa_column=sa.Column("severity", enum_type(Severity, "severity"), nullable=False))
    message: str = Field(sa_column=sa.Column("message", sa.Text(), nullable=False))
    alert_data: dict[str, object] = Field(default_factory=dict, sa_column=_document("alert_data"))
    acknowledged_at: datetime | None = Field(default=None, sa_column=_moment("acknowledged_at"))
    acknowledged_by: UUID | None = Field(
        default=None, sa_column=_reference("acknowledged_by", "users.id", nullable=True)
    )
    resolved_at: datetime | None = Field(default=None, sa_column=_moment("resolved_at"))
    created_at: datetime = Field(sa_column=_created())
    occurrences: int = Field(
        default=1, sa_column=sa.Column("occurrences", sa.Integer(), nullable=False, server_default="1")
    )
    last_raised_at: datetime = Field(sa_column=_moment("last_raised_at", nullable=False))
    notified_at: datetime | None = Field(default=None, sa_column=_moment("notified_at"))


class UserRow(CatalogRow, table=True):
    __tablename__ = "users"

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    name: str = Field(sa_column=_name())
    email: str | None = Field(default=None, sa_column=sa.Column("email", sa.String(320)))
    role: Role = Field(
        default=Role.VIEWER,
        sa_column=sa.Column("role", enum_type(Role, "role"), nullable=False, server_default=Role.VIEWER.value),
    )
    is_active: bool = Field(default=True, sa_column=_active())
    created_at: datetime = Field(sa_column=_created())
    updated_at: datetime = Field(
        sa_column=sa.Column("updated_at", AwareDateTime(), nullable=False, server_default=sa.func.now())
    )


class AuditRow(CatalogRow, table=True):
    """Append-only: triggers refuse UPDATE, DELETE and TRUNCATE."""

    __tablename__ = "audit"
    __table_args__ = (sa.Index(None, "recorded_at"),)

    id: UUID = Field(default_factory=uuid4, sa_column=_key())
    sequence: int = Field(sa_column=sa.Column("sequence", sa.BigInteger(), nullable=False, unique=True))
    recorded_at: datetime = Field(sa_column=_moment("recorded_at", nullable=False))
    actor: str = Field(sa_column=sa.Column("actor", sa.Text(), nullable=False))
    action: str = Field(sa_column=sa.Column("action", sa.Text(), nullable=False))
    subject: str = Field(sa_column=sa.Column("subject", sa.Text(), nullable=False))
    details: dict[str, object] = Field(default_factory=dict, sa_column=_document("details"))
    previous_hash: str = Field(sa_column=sa.Column("previous_hash", sa.String(HASH_LENGTH), nullable=False))
    hash: str = Field(sa_column=sa.Column("hash", sa.String(HASH_LENGTH), nullable=False, unique=True))


class AuditHeadRow(CatalogRow, table=True):
    """The one row that says where the audit chain ends: the lock of appenders, and what betrays a cut tail.

    Triggers let it go forward by exactly one entry and refuse everything else.
    """

    __tablename__ = "audit_head"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"),)

    id: int = Field(default=1, sa_column=sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False))
    sequence: int = Field(sa_column=sa.Column("sequence", sa.BigInteger(), nullable=False))
    hash: str = Field(sa_column=sa.Column("hash", sa.String(HASH_LENGTH), nullable=False))


class AuditAnchorRow(CatalogRow, table=True):
    """The newest record of a repository's own audit that this catalog has seen; without it a cut tail goes unseen."""

    __tablename__ = "audit_anchors"

    repository_id: UUID = Field(sa_column=sa.Column("repository_id", sa.Uuid(), primary_key=True))
    sequence: int = Field(sa_column=sa.Column("sequence", sa.BigInteger(), nullable=False))
    hash: str = Field(sa_column=sa.Column("hash", sa.String(HASH_LENGTH), nullable=False))
    seen_at: datetime = Field(sa_column=_moment("seen_at", nullable=False))


class ObjectProofRow(CatalogRow, table=True):
    """How far one object in one location was proved, and when; `problem` is what was wrong when it was last read."""

    __tablename__ = "object_proofs"

    repository_id: UUID = Field(sa_column=sa.Column("repository_id", sa.Uuid(), primary_key=True))
    location: str = Field(sa_column=sa.Column("location", sa.String(NAME_LENGTH), primary_key=True))
    name: str = Field(sa_column=sa.Column("name", sa.String(900), primary_key=True))
    proof: str | None = Field(default=None, sa_column=sa.Column("proof", sa.String(50)))
    proved_at: datetime = Field(sa_column=_moment("proved_at", nullable=False))
    problem: str | None = Field(default=None, sa_column=sa.Column("problem", sa.Text()))


class BackupCopyRow(CatalogRow, table=True):
    """A backup set that was listed in a location when somebody last looked there."""

    __tablename__ = "backup_copies"

    repository_id: UUID = Field(sa_column=sa.Column("repository_id", sa.Uuid(), primary_key=True))
    source: str = Field(sa_column=sa.Column("source", sa.String(63), primary_key=True))
    label: str = Field(sa_column=sa.Column("label", sa.String(100), primary_key=True))
    location: str = Field(sa_column=sa.Column("location", sa.String(NAME_LENGTH), primary_key=True))
    seen_at: datetime = Field(sa_column=_moment("seen_at", nullable=False))


class LocationMeasurementRow(CatalogRow, table=True):
    """What lay in a location at one moment; `details` are counts by class and the ratios of its backups."""

    __tablename__ = "location_measurements"

    location: str = Field(sa_column=sa.Column("location", sa.String(NAME_LENGTH), primary_key=True))
    measured_at: datetime = Field(sa_column=sa.Column("measured_at", AwareDateTime(), primary_key=True))
    used_bytes: int = Field(sa_column=sa.Column("used_bytes", sa.BigInteger(), nullable=False))
    object_count: int = Field(sa_column=sa.Column("object_count", sa.BigInteger(), nullable=False))
    capacity_bytes: int | None = Field(default=None, sa_column=sa.Column("capacity_bytes", sa.BigInteger()))
    details: dict[str, object] = Field(default_factory=dict, sa_column=_document("details"))


class KeeperRow(CatalogRow, table=True):
    """The last sign of life of the keeper on a host, by the database's clock; none is waited for after `ended_at`."""

    __tablename__ = "keepers"

    host: str = Field(sa_column=sa.Column("host", sa.String(255), primary_key=True))
    beat_at: datetime = Field(sa_column=_moment("beat_at", nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=_moment("ended_at"))
