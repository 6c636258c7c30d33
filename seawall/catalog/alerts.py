"""Alerts: one open alert for each thing that is wrong, however often it is noticed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from seawall.catalog.documents import as_document, clean
from seawall.catalog.models import BackupAlertRow, UserRow
from seawall.catalog.records import Records, aware, bounded, found, view
from seawall.catalog.views import Alert, Document, Severity


class AlertRecords(Records):
    def raise_alert(
        self,
        alert_type: str,
        severity: Severity,
        message: str,
        *,
        subject: str = "",
        data: Document | None = None,
        now: datetime,
    ) -> UUID:
        """Open an alert, or count another occurrence of the one that is open.

        A repeated alert takes the newest message and data and the higher severity. One that was acknowledged
        stays so, unless it became more severe.

        Args:
            alert_type: what kind of thing is wrong, a stable code.
            subject: what it concerns; type and subject together tell alerts apart.
        """
        wanted = BackupAlertRow(
            alert_type=bounded(alert_type, 100, "the alert's type"),
            subject=bounded(subject, 255, "the alert's subject") if subject else "",
            severity=Severity(severity),
            message=clean(message),
            alert_data=as_document(data or {}),
            created_at=aware(now),
            last_raised_at=now,
        )
        with self._writing() as session:
            existing = _open(session, wanted.alert_type, wanted.subject)
            if existing is None:
                try:
                    with session.begin_nested():
                        session.add(wanted)
                    return wanted.id
                except IntegrityError:
                    # Another process raised it since the look above.
                    existing = _open(session, alert_type, subject)
                    if existing is None:
                        raise
            _repeat(existing, wanted)
            session.add(existing)
            return existing.id

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

    def resolve_alerts(self, alert_type: str, *, subject: str = "", now: datetime) -> bool:
        """Close the open alert of that type and subject; whether there was one."""
        with self._writing() as session:
            row = _open(session, alert_type, subject)
            if row is None:
                return False
            row.resolved_at = aware(now)
            session.add(row)
            return True

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

    def alerts(self, *, open_only: bool = True, limit: int = 100) -> tuple[Alert, ...]:
        """Alerts, newest first."""
        query = select(BackupAlertRow).order_by(col(BackupAlertRow.created_at).desc(), col(BackupAlertRow.id))
        if open_only:
            query = query.where(col(BackupAlertRow.resolved_at).is_(None))
        with self._reading() as session:
            return tuple(view(Alert, row) for row in session.exec(query.limit(limit)))


def _open(session: Session, alert_type: str, subject: str) -> BackupAlertRow | None:
    query = select(BackupAlertRow).where(
        BackupAlertRow.alert_type == alert_type,
        BackupAlertRow.subject == subject,
        col(BackupAlertRow.resolved_at).is_(None),
    )
    return session.exec(query.with_for_update()).first()


def _repeat(existing: BackupAlertRow, wanted: BackupAlertRow) -> None:
    if wanted.severity.rank > existing.severity.rank:
        existing.severity = wanted.severity
        existing.acknowledged_at = existing.acknowledged_by = existing.notified_at = None
    existing.message, existing.alert_data = wanted.message, wanted.alert_data
    existing.occurrences += 1
    existing.last_raised_at = max(existing.last_raised_at, wanted.last_raised_at)
