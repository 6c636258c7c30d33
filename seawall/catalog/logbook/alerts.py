"""Alerts: one open alert for each thing that is wrong, however often it is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from uuid import UUID, uuid4

from seawall.catalog.checks import aware, bounded
from seawall.catalog.documents import as_document, clean
from seawall.catalog.logbook.rows import Entries, Transaction
from seawall.catalog.views import Alert, Document, Severity
from seawall.errors import CatalogError

# Whose work raises alerts just now; each thread and task has its own.
_AT_WORK: ContextVar[UUID | None] = ContextVar("job_at_work", default=None)
JOB = "job"


@contextmanager
def at_work(job_id: UUID | None) -> Iterator[None]:
    """Let every alert that is raised inside carry the job whose work it is, so that the job's own people hear of it."""
    token = _AT_WORK.set(job_id)
    try:
        yield
    finally:
        _AT_WORK.reset(token)


class AlertEntries(Entries):
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
        wanted = Alert(
            id=uuid4(),
            alert_type=bounded(alert_type, 100, "the alert's type"),
            subject=bounded(subject, 255, "the alert's subject") if subject else "",
            severity=Severity(severity),
            message=clean(message),
            alert_data=as_document(_with_job(data or {})),
            acknowledged_at=None,
            acknowledged_by=None,
            resolved_at=None,
            created_at=aware(now),
            occurrences=1,
            last_raised_at=now,
            notified_at=None,
        )
        with self._writes() as rows:
            if rows.insert(wanted):
                return wanted.id
            existing = _open(rows, wanted.alert_type, wanted.subject)
            if existing is None:
                raise CatalogError(f"the alert {alert_type!r} was closed meanwhile")
            rows.update(Alert, existing.id, **_repeated(existing, wanted))
            return existing.id

    def resolve_alerts(self, alert_type: str, *, subject: str = "", now: datetime) -> bool:
        """Close the open alert of that type and subject; whether there was one."""
        with self._writes() as rows:
            existing = _open(rows, alert_type, subject)
            if existing is not None:
                rows.update(Alert, existing.id, resolved_at=aware(now))
            return existing is not None

    def has_open_alert(self, alert_type: str, *, subject: str = "") -> bool:
        """Whether an alert of that type and subject is open."""
        return self.open_alert(alert_type, subject=subject) is not None

    def open_alert(self, alert_type: str, *, subject: str = "") -> Alert | None:
        """The open alert of that type and subject."""
        with self._reads() as rows:
            return _open(rows, alert_type, subject, lock=False)


def _with_job(data: Document) -> Document:
    job_id = _AT_WORK.get()
    return data if job_id is None or JOB in data else {**data, JOB: str(job_id)}


def _open(rows: Transaction, alert_type: str, subject: str, *, lock: bool = True) -> Alert | None:
    condition = "WHERE alert_type = :type AND subject = :subject AND resolved_at IS NULL"
    return rows.first(Alert, condition, lock=lock, type=alert_type, subject=subject)


def _repeated(existing: Alert, wanted: Alert) -> dict[str, object]:
    changes: dict[str, object] = {
        "message": wanted.message,
        "alert_data": wanted.alert_data,
        "occurrences": existing.occurrences + 1,
        "last_raised_at": max(existing.last_raised_at, wanted.last_raised_at),
    }
    if wanted.severity.rank > existing.severity.rank:
        changes |= {"severity": wanted.severity, "acknowledged_at": None, "acknowledged_by": None, "notified_at": None}
    return changes
