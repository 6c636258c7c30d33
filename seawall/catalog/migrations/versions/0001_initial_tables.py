"""The first tables: jobs, executions, files, recoveries, verifications, sites, locations, alerts, users, audit.

Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import SchemaItem

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_RUN_STATUSES = ("pending", "running", "completed", "partial", "failed", "cancelled")
_JOB_TYPES = ("full", "incremental", "transaction_log", "file_system", "differential", "logical", "configuration")
_TABLES_OLDEST_LAST = (
    "recovery_operations",
    "backup_verifications",
    "backup_files",
    "backup_executions",
    "backup_alerts",
    "users",
    "storage_locations",
    "dr_configuration",
    "backup_jobs",
    "audit_head",
    "audit",
)
_SQLITE_TRIGGERS = (
    """CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit
       BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END""",
    """CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit
       BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END""",
    # INSERT OR REPLACE deletes the row in its way without firing DELETE triggers.
    """CREATE TRIGGER audit_refuses_replace BEFORE INSERT ON audit
       WHEN EXISTS (SELECT 1 FROM audit WHERE sequence >= NEW.sequence OR id = NEW.id OR hash = NEW.hash)
       BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END""",
    """CREATE TRIGGER audit_head_only_advances BEFORE UPDATE ON audit_head
       WHEN NEW.id <> OLD.id OR NEW.sequence <> OLD.sequence + 1
       BEGIN SELECT RAISE(ABORT, 'audit_head only advances, one entry at a time'); END""",
    """CREATE TRIGGER audit_head_refuses_delete BEFORE DELETE ON audit_head
       BEGIN SELECT RAISE(ABORT, 'audit_head only advances, one entry at a time'); END""",
    """CREATE TRIGGER audit_head_refuses_replace BEFORE INSERT ON audit_head
       WHEN EXISTS (SELECT 1 FROM audit_head)
       BEGIN SELECT RAISE(ABORT, 'audit_head only advances, one entry at a time'); END""",
)
_POSTGRES_TRIGGERS = (
    """CREATE FUNCTION seawall_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege'; END $$""",
    """CREATE TRIGGER audit_refuses_change BEFORE UPDATE OR DELETE ON audit
       FOR EACH ROW EXECUTE FUNCTION seawall_audit_refuse()""",
    """CREATE TRIGGER audit_refuses_truncate BEFORE TRUNCATE ON audit
       FOR EACH STATEMENT EXECUTE FUNCTION seawall_audit_refuse()""",
    """CREATE TRIGGER audit_head_only_advances BEFORE UPDATE ON audit_head FOR EACH ROW
       WHEN (NEW.id <> OLD.id OR NEW.sequence <> OLD.sequence + 1) EXECUTE FUNCTION seawall_audit_refuse()""",
    """CREATE TRIGGER audit_head_refuses_delete BEFORE DELETE ON audit_head
       FOR EACH ROW EXECUTE FUNCTION seawall_audit_refuse()""",
    """CREATE TRIGGER audit_head_refuses_truncate BEFORE TRUNCATE ON audit_head
       FOR EACH STATEMENT EXECUTE FUNCTION seawall_audit_refuse()""",
)


def upgrade() -> None:
    _create_jobs_and_executions()
    _create_files()
    _create_users_and_alerts()
    _create_recoveries_and_verifications()
    _create_sites_and_locations()
    _create_audit()


def downgrade() -> None:
    for table in _TABLES_OLDEST_LAST:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION seawall_audit_refuse()")


def _create_jobs_and_executions() -> None:
    op.create_table(
        "backup_jobs",
        *_key("backup_jobs"),
        *_unique_name("backup_jobs"),
        sa.Column("job_type", _enum("job_type", *_JOB_TYPES), nullable=False),
        sa.Column("schedule_cron", sa.String(100)),
        sa.Column("time_zone", sa.String(64), nullable=False, server_default="UTC"),
        sa.Column("retention_days", sa.Integer(), nullable=False, server_default="30"),
        _active(),
        _document("backup_targets"),
        _document("destination_config"),
        _document("notification_config"),
        _stamped("created_at"),
        _stamped("updated_at"),
    )
    op.create_table(
        "backup_executions",
        *_key("backup_executions"),
        *_reference("backup_executions", "job_id", "backup_jobs"),
        _moment("execution_start", nullable=False),
        _moment("execution_end"),
        _status("running"),
        sa.Column("backup_size_bytes", sa.BigInteger()),
        sa.Column("compressed_size_bytes", sa.BigInteger()),
        sa.Column("file_path", sa.Text()),
        sa.Column("checksum", sa.String(128)),
        sa.Column("error_message", sa.Text()),
        _document("metadata"),
        _stamped("created_at"),
        *_run_columns(),
    )
    _index("backup_executions", "job_id")
    _newest_first_index("backup_executions", "execution_start")
    _index("backup_executions", "status")
    _index("backup_executions", "flow_run_id")
    _unique_where("uq_backup_executions_running", "backup_executions", ["job_id"], "status = 'running'")


def _create_files() -> None:
    op.create_table(
        "backup_files",
        *_key("backup_files"),
        *_reference("backup_files", "execution_id", "backup_executions"),
        sa.Column("file_name", sa.String(255), nullable=False),
        sa.Column("file_path", sa.Text(), nullable=False),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("compressed_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.String(128), nullable=False),
        sa.Column("encryption_key_id", sa.String(255)),
        sa.Column("storage_location", sa.String(200), nullable=False),
        _moment("expires_at"),
        _moment("verified_at"),
        _stamped("created_at"),
        sa.Column("repository_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        _moment("expired_at"),
        sa.UniqueConstraint(
            "repository_id",
            "source",
            "label",
            "storage_location",
            name="uq_backup_files_repository_id_source_label_storage_location",
        ),
    )
    _index("backup_files", "execution_id")
    _index("backup_files", "expires_at")


def _create_users_and_alerts() -> None:
    op.create_table(
        "users",
        *_key("users"),
        *_unique_name("users"),
        sa.Column("email", sa.String(320)),
        sa.Column(
            "role", _enum("role", "viewer", "operator", "approver", "admin"), nullable=False, server_default="viewer"
        ),
        _active(),
        _stamped("created_at"),
        _stamped("updated_at"),
    )
    op.create_table(
        "backup_alerts",
        *_key("backup_alerts"),
        sa.Column("alert_type", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("severity", _enum("severity", "low", "medium", "high", "critical"), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        _document("alert_data"),
        _moment("acknowledged_at"),
        *_reference("backup_alerts", "acknowledged_by", "users", nullable=True),
        _moment("resolved_at"),
        _stamped("created_at"),
        sa.Column("occurrences", sa.Integer(), nullable=False, server_default="1"),
        _moment("last_raised_at", nullable=False),
    )
    _newest_first_index("backup_alerts", "created_at")
    _index("backup_alerts", "severity")
    _unique_where("uq_backup_alerts_open", "backup_alerts", ["alert_type", "subject"], "resolved_at IS NULL")


def _create_recoveries_and_verifications() -> None:
    op.create_table(
        "recovery_operations",
        *_key("recovery_operations"),
        sa.Column("recovery_type", _enum("recovery_type", "full", "partial", "point_in_time"), nullable=False),
        *_reference("recovery_operations", "backup_file_id", "backup_files", nullable=True),
        _moment("target_timestamp"),
        _moment("recovery_start", nullable=False),
        _moment("recovery_end"),
        _status("pending"),
        _document("recovery_details"),
        *_reference("recovery_operations", "initiated_by", "users", nullable=True),
        sa.Column("error_message", sa.Text()),
        _stamped("created_at"),
        *_run_columns(),
    )
    _newest_first_index("recovery_operations", "recovery_start")
    _index("recovery_operations", "backup_file_id")
    _index("recovery_operations", "status")
    op.create_table(
        "backup_verifications",
        *_key("backup_verifications"),
        *_reference("backup_verifications", "backup_file_id", "backup_files"),
        sa.Column(
            "verification_type", _enum("verification_type", "integrity", "restore_test", "checksum"), nullable=False
        ),
        _moment("verification_start", nullable=False),
        _moment("verification_end"),
        _status("pending"),
        _document("verification_results"),
        sa.Column("error_message", sa.Text()),
        _stamped("created_at"),
        *_run_columns(),
    )
    _index("backup_verifications", "backup_file_id")
    _index("backup_verifications", "status")


def _create_sites_and_locations() -> None:
    op.create_table(
        "dr_configuration",
        *_key("dr_configuration"),
        _document("primary_site_config"),
        _document("backup_site_config"),
        _document("failover_procedures"),
        sa.Column("rto_hours", sa.Integer(), nullable=False, server_default="4"),
        sa.Column("rpo_minutes", sa.Integer(), nullable=False, server_default="15"),
        _moment("last_tested_at"),
        _active(),
        _stamped("created_at"),
        _stamped("updated_at"),
    )
    op.create_table(
        "storage_locations",
        *_key("storage_locations"),
        *_unique_name("storage_locations"),
        sa.Column("location_type", _enum("location_type", "local", "s3", "azure", "gcs"), nullable=False),
        _document("connection_config"),
        _document("encryption_config"),
        sa.Column("capacity_bytes", sa.BigInteger()),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        _active(),
        _moment("last_health_check"),
        sa.Column("health_message", sa.Text()),
        _stamped("created_at"),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        *_key("audit"),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        _moment("recorded_at", nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        _document("details"),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.UniqueConstraint("sequence", name="uq_audit_sequence"),
        sa.UniqueConstraint("hash", name="uq_audit_hash"),
    )
    _index("audit", "recorded_at")
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_single")),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64}])
    for trigger in _SQLITE_TRIGGERS if op.get_bind().dialect.name == "sqlite" else _POSTGRES_TRIGGERS:
        op.execute(trigger)


def _key(table: str) -> tuple[SchemaItem, ...]:
    return sa.Column("id", sa.Uuid(), nullable=False), sa.PrimaryKeyConstraint("id", name=f"pk_{table}")


def _unique_name(table: str) -> tuple[SchemaItem, ...]:
    return sa.Column("name", sa.String(200), nullable=False), sa.UniqueConstraint("name", name=f"uq_{table}_name")


def _reference(table: str, column: str, target: str, *, nullable: bool = False) -> tuple[SchemaItem, ...]:
    name = f"fk_{table}_{column}_{target}"
    return (
        sa.Column(column, sa.Uuid(), nullable=nullable),
        sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name, ondelete="RESTRICT"),
    )


def _run_columns() -> tuple[SchemaItem, ...]:
    return sa.Column("flow_run_id", sa.Uuid()), _moment("lease_expires_at")


def _status(default: str) -> SchemaItem:
    return sa.Column("status", _enum("status", *_RUN_STATUSES), nullable=False, server_default=default)


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=50)


def _document(name: str) -> SchemaItem:
    return sa.Column(name, sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False)


def _moment(name: str, *, nullable: bool = True) -> SchemaItem:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _stamped(name: str) -> SchemaItem:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _active() -> SchemaItem:
    return sa.Column("is_active", sa.Boolean(), nullable=False, server_default=sa.true())


def _index(table: str, column: str) -> None:
    op.create_index(f"ix_{table}_{column}", table, [column])


def _newest_first_index(table: str, column: str) -> None:
    op.create_index(f"ix_{table}_{column}", table, [sa.text(f"{column} DESC")])


def _unique_where(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=True, sqlite_where=where, postgresql_where=where)
