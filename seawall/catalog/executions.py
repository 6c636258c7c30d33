"""Runs of jobs and the backup sets that they made, as they were recorded; `seawall.catalog.logbook` records them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlmodel import col, select

from seawall.catalog.logbook.files import repository_uuid
from seawall.catalog.models import BackupExecutionRow, BackupFileRow
from seawall.catalog.records import Records, found, view
from seawall.catalog.views import BackupFile, Execution, RunStatus


class ExecutionRecords(Records):
    def execution(self, execution_id: UUID) -> Execution:
        """One execution.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(Execution, found(session, BackupExecutionRow, execution_id, "execution"))

    def executions(
        self, job_id: UUID | None = None, *, status: RunStatus | None = None, limit: int = 50, offset: int = 0
    ) -> tuple[Execution, ...]:
        """Executions, newest first."""
        query = select(BackupExecutionRow)
        if job_id is not None:
            query = query.where(BackupExecutionRow.job_id == job_id)
        if status is not None:
            query = query.where(BackupExecutionRow.status == status)
        query = query.order_by(col(BackupExecutionRow.execution_start).desc(), col(BackupExecutionRow.id))
        with self._reading() as session:
            return tuple(view(Execution, row) for row in session.exec(query.limit(limit).offset(offset)))

    def executions_of(self, ids: Iterable[UUID]) -> tuple[Execution, ...]:
        """Those of these ids that are executions."""
        wanted = list(ids)
        if not wanted:
            return ()
        with self._reading() as session:
            query = select(BackupExecutionRow).where(col(BackupExecutionRow.id).in_(wanted))
            return tuple(view(Execution, row) for row in session.exec(query))

    def newest_success(self, job_id: UUID) -> Execution | None:
        """The job's completed execution that began last."""
        newest = self.executions(job_id, status=RunStatus.COMPLETED, limit=1)
        return newest[0] if newest else None

    def backup_file(self, file_id: UUID) -> BackupFile:
        """One recorded backup set.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(BackupFile, found(session, BackupFileRow, file_id, "backup file"))

    def backup_files(
        self,
        *,
        execution_id: UUID | None = None,
        repository_id: UUID | str | None = None,
        source: str | None = None,
        expiring_before: datetime | None = None,
        include_expired: bool = False,
    ) -> tuple[BackupFile, ...]:
        """Recorded backup sets in the order of their labels.

        Args:
            expiring_before: only those that retention may remove at that moment.
            include_expired: also those that were removed from their storage.
        """
        conditions: list[sa.ColumnElement[bool]] = []
        if execution_id is not None:
            conditions.append(col(BackupFileRow.execution_id) == execution_id)
        if repository_id is not None:
            conditions.append(col(BackupFileRow.repository_id) == repository_uuid(repository_id))
        if source is not None:
            conditions.append(col(BackupFileRow.source) == source)
        if expiring_before is not None:
            conditions.append(col(BackupFileRow.expires_at) <= expiring_before)
        if not include_expired:
            conditions.append(col(BackupFileRow.expired_at).is_(None))
        return self._files(conditions)

    def _files(self, conditions: Sequence[sa.ColumnElement[bool]]) -> tuple[BackupFile, ...]:
        query = select(BackupFileRow).where(*conditions).order_by(BackupFileRow.label, BackupFileRow.source)
        with self._reading() as session:
            return tuple(view(BackupFile, row) for row in session.exec(query))
