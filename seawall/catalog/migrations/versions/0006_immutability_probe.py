"""Jobs that attack what should be immutable.

Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

_OLD_TYPES = (
    "full", "incremental", "transaction_log", "file_system", "differential", "logical", "configuration",
    "verify", "restore_test", "retention", "mirror", "proofs", "location_health",
)  # fmt: skip
_NEW_TYPES = (*_OLD_TYPES, "immutability")


def upgrade() -> None:
    _admit(_NEW_TYPES)


def downgrade() -> None:
    jobs = sa.table("backup_jobs", sa.column("id"), sa.column("job_type"))
    executions = sa.table("backup_executions", sa.column("job_id"))
    newer = jobs.c.job_type.not_in(_OLD_TYPES)
    op.execute(executions.delete().where(executions.c.job_id.in_(sa.select(jobs.c.id).where(newer))))
    op.execute(jobs.delete().where(newer))
    _admit(_OLD_TYPES)


def _admit(types: tuple[str, ...]) -> None:
    """Let jobs be of these types and no others."""
    listed = ", ".join(f"'{one}'" for one in types)
    name = op.f("ck_backup_jobs_job_type")
    with op.batch_alter_table("backup_jobs") as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, f"job_type IN ({listed})")
