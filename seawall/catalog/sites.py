"""What the disaster-recovery sites are, and who uses Seawall."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlmodel import Session, col, select

from seawall.catalog.checks import aware, bounded
from seawall.catalog.documents import configuration
from seawall.catalog.models import DrConfigurationRow, UserRow
from seawall.catalog.records import Records, added, found, view
from seawall.catalog.views import NAME_LENGTH, Document, DrConfiguration, Role, User
from seawall.errors import UsageError


class SiteRecords(Records):
    def set_dr_configuration(
        self,
        *,
        primary_site_config: Document,
        backup_site_config: Document,
        failover_procedures: Document,
        rto_hours: int = 4,
        rpo_minutes: int = 15,
        now: datetime,
    ) -> UUID:
        """Define the active disaster-recovery configuration, in place of the one there is.

        Raises:
            UsageError: a value is malformed or looks like a secret.
        """
        if rto_hours < 1 or rpo_minutes < 1:
            raise UsageError("RTO and RPO are at least 1")
        wanted = DrConfigurationRow(
            primary_site_config=configuration(primary_site_config, "primary_site_config"),
            backup_site_config=configuration(backup_site_config, "backup_site_config"),
            failover_procedures=configuration(failover_procedures, "failover_procedures"),
            rto_hours=rto_hours,
            rpo_minutes=rpo_minutes,
            created_at=aware(now),
            updated_at=now,
        )
        with self._writing() as session:
            row = _active_dr_configuration(session) or wanted
            for name in _DR_DEFINITION:
                setattr(row, name, getattr(wanted, name))
            session.add(row)
            return row.id

    def dr_configuration(self) -> DrConfiguration | None:
        """The active disaster-recovery configuration."""
        with self._reading() as session:
            row = _active_dr_configuration(session)
            return None if row is None else view(DrConfiguration, row)

    def record_dr_test(self, configuration_id: UUID, *, now: datetime) -> None:
        """Record that the configuration was rehearsed.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._writing() as session:
            row = found(session, DrConfigurationRow, configuration_id, "DR configuration", lock=True)
            row.last_tested_at = aware(now)
            session.add(row)

    def ensure_user(self, name: str, *, email: str | None = None, role: Role = Role.VIEWER, now: datetime) -> UUID:
        """The user of that name, created if missing; one who exists keeps role and address.

        Raises:
            UsageError: a value is malformed.
        """
        wanted = UserRow(
            name=bounded(name, NAME_LENGTH, "the user's name"),
            email=None if email is None else bounded(email, 320, "the e-mail address"),
            role=Role(role),
            created_at=aware(now),
            updated_at=now,
        )
        with self._writing() as session:
            existing = added(session, UserRow, wanted)
            return wanted.id if existing is None else existing.id

    def set_user(
        self, user_id: UUID, *, role: Role | None = None, is_active: bool | None = None, now: datetime
    ) -> None:
        """Change a user's role, or whether the user may act; None leaves it as it is.

        Raises:
            RecordMissing: there is no such user.
        """
        with self._writing() as session:
            row = found(session, UserRow, user_id, "user", lock=True)
            row.role = row.role if role is None else role
            row.is_active = row.is_active if is_active is None else is_active
            row.updated_at = aware(now)
            session.add(row)

    def users(self) -> tuple[User, ...]:
        """All users by name."""
        with self._reading() as session:
            return tuple(view(User, row) for row in session.exec(select(UserRow).order_by(UserRow.name)))


_DR_DEFINITION = (
    "primary_site_config",
    "backup_site_config",
    "failover_procedures",
    "rto_hours",
    "rpo_minutes",
    "updated_at",
)


def _active_dr_configuration(session: Session) -> DrConfigurationRow | None:
    query = select(DrConfigurationRow).where(col(DrConfigurationRow.is_active))
    return session.exec(query.order_by(col(DrConfigurationRow.created_at).desc())).first()
