"""How far each object is proved, where each backup lies, what is unusual about it, and what a location is for.

Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    document = sa.JSON().with_variant(JSONB(), "postgresql")
    op.add_column("backup_files", sa.Column("suspicions", document, nullable=True))
    op.add_column("storage_locations", sa.Column("role", sa.String(50), nullable=True))
    op.add_column("storage_locations", sa.Column("latency_ms", sa.Integer(), nullable=True))
    op.add_column("storage_locations", sa.Column("last_proof_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "object_proofs",
        sa.Column("repository_id", sa.Uuid(), nullable=False),
        sa.Column("location", sa.String(200), nullable=False),
        sa.Column("name", sa.String(900), nullable=False),
        sa.Column("proof", sa.String(50), nullable=True),
        sa.Column("proved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("repository_id", "location", "name", name=op.f("pk_object_proofs")),
    )
    op.create_table(
        "backup_copies",
        sa.Column("repository_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("location", sa.String(200), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "source", "label", "location", name=op.f("pk_backup_copies")),
    )


def downgrade() -> None:
    op.drop_table("backup_copies")
    op.drop_table("object_proofs")
    for column in ("last_proof_at", "latency_ms", "role"):
        op.drop_column("storage_locations", column)
    op.drop_column("backup_files", "suspicions")
