"""Where work runs, who was told of an alert, jobs of maintenance, and the end of each repository's own audit.

Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_LEASED = ("backup_executions", "recovery_operations", "backup_verifications")
_OLD_TYPES = ("full", "incremental", "transaction_log", "file_system", "differential", "logical", "configuration")
_NEW_TYPES = (*_OLD_TYPES, "verify", "restore_test", "retention")


def upgrade() -> None:
    for table in _LEASED:
        op.add_column(table, sa.Column("host", sa.String(255), nullable=True))
    op.add_column("backup_alerts", sa.Column("notified_at", sa.DateTime(timezone=True), nullable=True))
    _admit(_NEW_TYPES)
    op.create_table(
        "audit_anchors",
        sa.Column("repository_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", name=op.f("pk_audit_anchors")),
    )


def downgrade() -> None:
    op.drop_table("audit_anchors")
    jobs = sa.table("backup_jobs", sa.column("id"), sa.column("job_type"))
    executions = sa.table("backup_executions", sa.column("job_id"))
    newer = jobs.c.job_type.not_in(_OLD_TYPES)
    op.execute(executions.delete().where(executions.c.job_id.in_(sa.select(jobs.c.id).where(newer))))
    op.execute(jobs.delete().where(newer))
    _admit(_OLD_TYPES)
    op.drop_column("backup_alerts", "notified_at")
    for table in _LEASED:
        op.drop_column(table, "host")


def _admit(types: tuple[str, ...]) -> None:
    """Let jobs be of these types and no others."""
    name = op.f("ck_backup_jobs_job_type")
    listed = ", ".join(f"'{one}'" for one in types)
    # SQLite alters by copying the table; on PostgreSQL the batch is two plain statements.
    with op.batch_alter_table("backup_jobs") as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, f"job_type IN ({listed})")
