"""What people do about alerts, and who was told; `seawall.catalog.logbook.alerts` raises and resolves them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlmodel import col, select

from seawall.catalog.checks import aware
from seawall.catalog.models import BackupAlertRow, UserRow
from seawall.catalog.records import Records, found, view
from seawall.catalog.views import Alert


class AlertRecords(Records):
    def acknowledge_alert(self, alert_id: UUID, user_id: UUID, *, now: datetime) -> None:
        """Record who takes care of an alert; the first one counts.

        Raises:
            RecordMissing: there is no such alert or user.
        """
        with self._writing() as session:
            row = found(session, BackupAlertRow, alert_id, "alert", lock=True)
            found(session, UserRow, user_id, "user")
            if row.acknowledged_at is None:
                row.acknowledged_at, row.acknowledged_by = aware(now), user_id
                session.add(row)

    def resolve_alert(self, alert_id: UUID, *, now: datetime) -> None:
        """Close an alert; the first moment counts.

        Raises:
            RecordMissing: there is no such alert.
        """
        with self._writing() as session:
            row = found(session, BackupAlertRow, alert_id, "alert", lock=True)
            if row.resolved_at is None:
                row.resolved_at = aware(now)
                session.add(row)

    def alert(self, alert_id: UUID) -> Alert:
        """One alert.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(Alert, found(session, BackupAlertRow, alert_id, "alert"))

    def record_notification(self, alert_id: UUID, *, now: datetime) -> None:
        """Record that somebody was told of an alert as it stands.

        Raises:
            RecordMissing: there is no such alert.
        """
        with self._writing() as session:
            row = found(session, BackupAlertRow, alert_id, "alert", lock=True)
            row.notified_at = aware(now)
            session.add(row)

    def resolved_untold(self, since: datetime, *, limit: int = 1000) -> tuple[Alert, ...]:
        """Alerts of which somebody was told, that were resolved after that and after a moment, oldest first."""
        query = (
            select(BackupAlertRow)
            .where(
                col(BackupAlertRow.resolved_at) >= aware(since),
                col(BackupAlertRow.notified_at) < col(BackupAlertRow.resolved_at),
            )
            .order_by(col(BackupAlertRow.resolved_at), col(BackupAlertRow.id))
        )
        with self._reading() as session:
            return tuple(view(Alert, row) for row in session.exec(query.limit(limit)))

    def alerts(self, *, open_only: bool = True, limit: int = 100) -> tuple[Alert, ...]:
        """Alerts, newest first."""
        query = select(BackupAlertRow).order_by(col(BackupAlertRow.created_at).desc(), col(BackupAlertRow.id))
        if open_only:
            query = query.where(col(BackupAlertRow.resolved_at).is_(None))
        with self._reading() as session:
            return tuple(view(Alert, row) for row in session.exec(query.limit(limit)))
