"""Who is at work, as leased rows tell; `seawall.catalog.logbook.leases` renews them and gives them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlmodel import col, select

from seawall.catalog.logbook.leases import LEASED, RUNNING_CONDITION, is_killed, leased
from seawall.catalog.models import BackupExecutionRow, BackupVerificationRow, RecoveryOperationRow
from seawall.catalog.records import Records
from seawall.catalog.views import RunStatus

LeasedRow = BackupExecutionRow | RecoveryOperationRow | BackupVerificationRow
_LEASED: tuple[type[LeasedRow], ...] = (BackupExecutionRow, RecoveryOperationRow, BackupVerificationRow)


class LeaseRecords(Records):
    def flow_run_of(self, record_id: UUID) -> UUID | None:
        """The Prefect flow run of an execution, recovery or verification.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reads() as rows:
            return leased(rows, record_id).flow_run_id

    def hosts_of_running(self) -> dict[UUID, str]:
        """On which host each flow run is at work, as far as running rows tell."""
        found: dict[UUID, str] = {}
        with self._reading() as session:
            for table in _LEASED:
                query = select(table).where(col(table.status).in_((RunStatus.PENDING, RunStatus.RUNNING)))
                rows = cast(Sequence[LeasedRow], session.exec(query).all())
                found |= {row.flow_run_id: row.host for row in rows if row.flow_run_id and row.host}
        return found

    def runs_of_killed(self) -> tuple[UUID, ...]:
        """The flow runs of what runs by its row, and whose process is provably gone from this host."""
        with self._reads() as rows:
            running = [row for table in LEASED for row in rows.all(table, f"WHERE {RUNNING_CONDITION}")]
        return tuple(dict.fromkeys(row.flow_run_id for row in running if row.flow_run_id and is_killed(row)))
