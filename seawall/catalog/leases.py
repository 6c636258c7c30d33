"""Leases of executions, recoveries and verifications: renewed while their worker lives, given up when it is gone.

All processes compare the lease with their own clock; it must be much longer than those clocks differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

import sqlalchemy as sa
from sqlmodel import Session, col, select

from seawall.catalog.documents import as_document, clean
from seawall.catalog.models import BackupExecutionRow, BackupVerificationRow, RecoveryOperationRow
from seawall.catalog.records import Records, aware
from seawall.catalog.views import Document, RunStatus
from seawall.errors import CatalogError, LeaseLost, RecordMissing, SeawallError, UsageError

LeasedRow = BackupExecutionRow | RecoveryOperationRow | BackupVerificationRow
_LAPSED = "lease_lapsed_at"
_REPORTED_LATE = "reported_after_lease_lapsed_at"
_LEASED: tuple[type[LeasedRow], ...] = (BackupExecutionRow, RecoveryOperationRow, BackupVerificationRow)


class LeaseRecords(Records):
    def renew(self, record_id: UUID, now: datetime, lease: timedelta) -> None:
        """Keep a running execution, recovery or verification alive for another `lease` from `now`.

        Raises:
            LeaseLost: it is not running any more; its worker must stop.
            RecordMissing: there is none of that id.
        """
        expires_at = aware(now) + checked_lease(lease)
        with self._writing() as session:
            if any(_renewed(session, table, record_id, expires_at) for table in _LEASED):
                return
            row = _leased(session, record_id)
            raise LeaseLost(f"{row.__tablename__} {record_id} is {row.status}, its lease cannot be renewed")

    def reconcile(self, now: datetime) -> tuple[UUID, ...]:
        """Mark as failed whatever has a lease that ran out; the ids of what was marked.

        Returns:
            Ids of executions, recoveries and verifications; `flow_run_of` tells each one's flow run.
        """
        with self._writing() as session:
            return tuple(key for table in _LEASED for key in _give_up_all(session, table, aware(now)))

    def flow_run_of(self, record_id: UUID) -> UUID | None:
        """The Prefect flow run of an execution, recovery or verification.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return _leased(session, record_id).flow_run_id

    def hosts_of_running(self) -> dict[UUID, str]:
        """On which host each flow run is at work, as far as running rows tell."""
        found: dict[UUID, str] = {}
        with self._reading() as session:
            for table in _LEASED:
                query = select(table).where(col(table.status).in_((RunStatus.PENDING, RunStatus.RUNNING)))
                rows = cast(Sequence[LeasedRow], session.exec(query).all())
                found |= {row.flow_run_id: row.host for row in rows if row.flow_run_id and row.host}
        return found


def checked_lease(lease: timedelta) -> timedelta:
    """`lease`, if it has a length.

    Raises:
        UsageError: it has none.
    """
    if lease <= timedelta(0):
        raise UsageError("a lease must last longer than nothing")
    return lease


def lapsed_condition(table: type[LeasedRow], now: datetime) -> sa.ColumnElement[bool]:
    """Rows that are not ended although their lease has run out."""
    return sa.and_(col(table.status).in_((RunStatus.PENDING, RunStatus.RUNNING)), col(table.lease_expires_at) < now)


def give_up(row: LeasedRow, now: datetime) -> None:
    """Mark a row whose lease ran out as failed, so that a late report of its worker can still be told from an end."""
    expired_at = row.lease_expires_at or now
    row.status, row.lease_expires_at = RunStatus.FAILED, None
    row.error_message = (
        f"[lease-lapsed] nothing was heard of it since its lease ran out at {expired_at.isoformat()}:"
        " its worker was stopped or killed, or could not reach the catalog"
    )
    lapsed: dict[str, object] = {_LAPSED: expired_at.isoformat()}
    if isinstance(row, BackupExecutionRow):
        row.execution_end, row.details = now, {**row.details, **lapsed}
    elif isinstance(row, RecoveryOperationRow):
        row.recovery_end, row.recovery_details = now, {**row.recovery_details, **lapsed}
    else:
        row.verification_end, row.verification_results = now, {**row.verification_results, **lapsed}


def has_ended(current: RunStatus, wanted: RunStatus, details: Document, what: str) -> bool:
    """Whether this end was recorded before.

    An end that only a lapsed lease brought about does not count: the worker that now reports knows better.

    Raises:
        CatalogError: it ended otherwise.
        UsageError: `wanted` is not an end.
    """
    if not wanted.is_final:
        raise UsageError(f"{what} cannot end as {wanted}")
    if not current.is_final or _LAPSED in details:
        return False
    if current is not wanted:
        raise CatalogError(f"{what} already ended as {current}, not {wanted}")
    return True


def told(before: Document, added: Document | None, error: SeawallError | None) -> dict[str, object]:
    """The details of something that ended: what was known, what its worker adds, and its error."""
    document = {**before, **as_document(added or {})}
    if _LAPSED in document:
        document[_REPORTED_LATE] = document.pop(_LAPSED)
    if error is not None:
        document["error"] = as_document(error.as_dict())
    return document


def error_text(error: SeawallError | None) -> str | None:
    """An error as one line of text: its code, then what happened, then what to do."""
    if error is None:
        return None
    return clean(f"[{error.code}] {error.message}" + (f" ({error.hint})" if error.hint else ""))


def _renewed(session: Session, table: type[LeasedRow], record_id: UUID, expires_at: datetime) -> bool:
    statement = (
        sa.update(table)
        .where(col(table.id) == record_id, col(table.status) == RunStatus.RUNNING)
        .values(lease_expires_at=expires_at)
    )
    result = session.connection().execute(statement)
    return result.rowcount == 1


def _give_up_all(session: Session, table: type[LeasedRow], now: datetime) -> list[UUID]:
    query = select(table).where(lapsed_condition(table, now)).with_for_update()
    rows = cast(Sequence[LeasedRow], session.exec(query).all())
    for row in rows:
        give_up(row, now)
        session.add(row)
    return [row.id for row in rows]


def _leased(session: Session, record_id: UUID) -> LeasedRow:
    for table in _LEASED:
        row = cast(LeasedRow | None, session.get(table, record_id))
        if row is not None:
            return row
    raise RecordMissing(f"the catalog has no execution, recovery or verification {record_id}")
