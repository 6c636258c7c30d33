"""Leases of executions, recoveries and verifications: renewed while their worker lives, given up when it is gone.

All processes compare the lease with their own clock; it must be much longer than those clocks differ. Each row also
names the process that does the work: whoever can prove on its host that it is gone need not wait for the lease.
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
from seawall.process import is_gone

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
# What no run of Prefect does: how those end, the keeper has to ask Prefect first.
BY_HAND = "AND flow_run_id IS NULL"
_PROCESS = "process"
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

    def reconcile_killed(self, now: datetime) -> tuple[UUID, ...]:
        """Mark as failed what no flow run does and whose process is provably gone from this host; the ids."""
        with self._writes() as rows:
            return tuple(key for table in LEASED for key in give_up_killed(rows, table, aware(now), BY_HAND))

    def end_run(
        self, flow_run_id: UUID, *, status: RunStatus, now: datetime, error: SeawallError | None = None
    ) -> tuple[UUID, ...]:
        """End, without success, all that a flow run still has at work by its rows; the ids.

        Raises:
            UsageError: `status` is not an end, or it is a success.
        """
        if not status.is_final or status is RunStatus.COMPLETED:
            raise UsageError(f"a run that does not report cannot end as {status}")
        found: list[UUID] = []
        with self._writes() as rows:
            for table in LEASED:
                rest = f"WHERE flow_run_id = :run AND {RUNNING_CONDITION}"
                for row in rows.all(table, rest, lock=True, run=flow_run_id):
                    rows.update(table, row.id, **ended(row, status, now, None, error))
                    found.append(row.id)
        return tuple(found)


def worked_by(process: str) -> dict[str, object]:
    """What a row's details say of the process that does the work."""
    return {_PROCESS: process} if process else {}


def is_killed(row: Leased) -> bool:
    """Whether the process that does the work is provably gone from this host."""
    return is_gone(str(getattr(row, DETAILS[type(row)]).get(_PROCESS, "")))


def give_up_killed(rows: Transaction, table: type[Leased], now: datetime, rest: str, **values: object) -> list[UUID]:
    """Mark as failed what runs by its row, and whose process is provably gone from this host; the ids.

    Args:
        rest: a further condition, such as `AND job_id = :job`.
    """
    running = rows.all(table, f"WHERE {RUNNING_CONDITION} {rest}", lock=True, **values)
    killed = [row for row in running if is_killed(row)]
    for row in killed:
        why = "its process is gone from this host: it was killed, or the program broke down"
        rows.update(table, row.id, **given_up(row, now, f"[worker-gone] {why}"))
    return [row.id for row in killed]


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
