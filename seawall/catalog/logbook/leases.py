"""Leases of executions, recoveries and verifications: renewed while their worker lives, given up when it is gone.

All processes compare the lease with their own clock; it must be much longer than those clocks differ.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from seawall.catalog.checks import aware
from seawall.catalog.documents import as_document, clean
from seawall.catalog.logbook.rows import TABLES, Entries, Transaction
from seawall.catalog.views import Document, Execution, Recovery, RunStatus, Verification
from seawall.errors import CatalogError, LeaseLost, RecordMissing, SeawallError, UsageError

Leased: TypeAlias = Execution | Recovery | Verification
LEASED: tuple[type[Execution], type[Recovery], type[Verification]] = (Execution, Recovery, Verification)
# Of each kind of row: what says when it ended, and the document with its details.
END: dict[type, str] = {
    Execution: "execution_end", Recovery: "recovery_end", Verification: "verification_end",
}  # fmt: skip
DETAILS: dict[type, str] = {
    Execution: "details", Recovery: "recovery_details", Verification: "verification_results",
}  # fmt: skip
RUNNING_CONDITION = "status IN ('pending', 'running')"
LAPSED_CONDITION = f"{RUNNING_CONDITION} AND lease_expires_at < :now"
_LAPSED = "lease_lapsed_at"
_REPORTED_LATE = "reported_after_lease_lapsed_at"


class LeaseEntries(Entries):
    def renew(self, record_id: UUID, now: datetime, lease: timedelta) -> None:
        """Keep a running execution, recovery or verification alive for another `lease` from `now`.

        Raises:
            LeaseLost: it is not running any more; its worker must stop.
            RecordMissing: there is none of that id.
        """
        expires_at = aware(now) + checked_lease(lease)
        with self._writes() as rows:
            for table in LEASED:
                statement = f"UPDATE {TABLES[table]} SET lease_expires_at = :at WHERE id = :id AND status = :status"  # noqa: S608 - names of our own
                if rows.changed(statement, at=expires_at, id=record_id, status=RunStatus.RUNNING):
                    return
            row = leased(rows, record_id)
            raise LeaseLost(f"{TABLES[type(row)]} {record_id} is {row.status}, its lease cannot be renewed")

    def reconcile(self, now: datetime) -> tuple[UUID, ...]:
        """Mark as failed whatever has a lease that ran out; the ids of what was marked.

        Returns:
            Ids of executions, recoveries and verifications; `flow_run_of` tells each one's flow run.
        """
        with self._writes() as rows:
            return tuple(key for table in LEASED for key in give_up_all(rows, table, aware(now)))


def give_up_all(rows: Transaction, table: type[Leased], now: datetime, rest: str = "", **values: object) -> list[UUID]:
    """Mark rows of a table whose lease ran out as failed; their ids.

    Args:
        rest: a further condition, such as `AND job_id = :job`.
    """
    lapsed = rows.all(table, f"WHERE {LAPSED_CONDITION} {rest}", lock=True, now=now, **values)
    for row in lapsed:
        rows.update(table, row.id, **given_up(row, now))
    return [row.id for row in lapsed]


def given_up(row: Leased, now: datetime, why: str = "") -> dict[str, object]:
    """What changes in a row whose lease ran out: a late report of its worker can still be told from an end.

    Args:
        why: it is given up; that its lease ran out if omitted.
    """
    expired_at = row.lease_expires_at or now
    kind = type(row)
    lapsed = (
        f"[lease-lapsed] nothing was heard of it since its lease ran out at {expired_at.isoformat()}: its worker was"
        " stopped or killed, or could not reach the catalog"
    )
    return {
        "status": RunStatus.FAILED,
        "lease_expires_at": None,
        "error_message": why or lapsed,
        END[kind]: now,
        DETAILS[kind]: {**getattr(row, DETAILS[kind]), _LAPSED: expired_at.isoformat()},
    }


def ended(
    row: Leased, status: RunStatus, now: datetime, details: Document | None, error: SeawallError | None
) -> dict[str, object]:
    """What changes in a row that ended."""
    kind = type(row)
    return {
        "status": status,
        "lease_expires_at": None,
        "error_message": error_text(error),
        END[kind]: aware(now),
        DETAILS[kind]: told(getattr(row, DETAILS[kind]), details, error),
    }


def checked_lease(lease: timedelta) -> timedelta:
    """`lease`, if it has a length.

    Raises:
        UsageError: it has none.
    """
    if lease <= timedelta(0):
        raise UsageError("a lease must last longer than nothing")
    return lease


def has_ended(row: Leased, wanted: RunStatus, what: str) -> bool:
    """Whether this end was recorded before.

    An end that only a lapsed lease brought about does not count: the worker that now reports knows better.

    Raises:
        CatalogError: it ended otherwise.
        UsageError: `wanted` is not an end.
    """
    if not wanted.is_final:
        raise UsageError(f"{what} cannot end as {wanted}")
    if not row.status.is_final or _LAPSED in getattr(row, DETAILS[type(row)]):
        return False
    if row.status is not wanted:
        raise CatalogError(f"{what} already ended as {row.status}, not {wanted}")
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


def leased(rows: Transaction, record_id: UUID) -> Leased:
    """The execution, recovery or verification of that id.

    Raises:
        RecordMissing: there is none.
    """
    for table in LEASED:
        row: Leased | None = rows.get(table, record_id)
        if row is not None:
            return row
    raise RecordMissing(f"the catalog has no execution, recovery or verification {record_id}")
