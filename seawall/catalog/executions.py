"""Runs of jobs and the backup sets that they made.

At most one execution of a job runs at a time; a partial unique index keeps that under any concurrency. A running
execution holds a lease that its worker renews. When the lease has run out, the worker counts as gone:
`reconcile` or the next `begin_execution` marks the execution failed. That is a guess from silence, so a worker that
was only slow and later reports an end is believed; `renew` tells it that it lost the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from seawall.catalog.documents import clean
from seawall.catalog.leases import checked_lease, error_text, give_up, has_ended, lapsed_condition, told
from seawall.catalog.models import NAME_LENGTH, BackupExecutionRow, BackupFileRow, BackupJobRow
from seawall.catalog.records import Records, aware, bounded, found, view
from seawall.catalog.views import BackupFile, BackupOutcome, Execution, RunStatus, backup_path
from seawall.errors import CatalogError, LeaseHeld, SeawallError, UsageError
from seawall.model import BackupLabel, Head


class ExecutionRecords(Records):
    def begin_execution(
        self, job_id: UUID, *, now: datetime, lease: timedelta, flow_run_id: UUID | None = None, host: str = ""
    ) -> UUID:
        """Record that a job begins to run, unless it runs already.

        Args:
            lease: how long it counts as alive without `renew`.
            flow_run_id: the Prefect flow run that does it.
            host: where it runs.

        Raises:
            LeaseHeld: an execution of this job is running and its lease has not run out.
            RecordMissing: there is no such job.
        """
        row = BackupExecutionRow(
            job_id=job_id,
            execution_start=aware(now),
            created_at=now,
            flow_run_id=flow_run_id,
            lease_expires_at=now + checked_lease(lease),
            host=host or None,
        )
        with self._writing() as session:
            job = found(session, BackupJobRow, job_id, "job")
            _give_up_on_lapsed(session, job_id, now)
            try:
                with session.begin_nested():
                    session.add(row)
            except IntegrityError as error:
                raise LeaseHeld(
                    f"the job {job.name!r} is already running",
                    hint="Wait for it to end, or for its lease to run out if its worker is gone.",
                ) from error
            return row.id

    def finish_execution(
        self,
        execution_id: UUID,
        *,
        status: RunStatus,
        now: datetime,
        outcome: BackupOutcome | None = None,
        error: SeawallError | None = None,
    ) -> None:
        """Record how an execution ended; the same end twice is one end.

        Raises:
            CatalogError: it already ended otherwise.
            RecordMissing: there is no such execution.
            UsageError: `status` is not an end.
        """
        with self._writing() as session:
            row = found(session, BackupExecutionRow, execution_id, "execution", lock=True)
            if has_ended(row.status, status, row.details, f"execution {execution_id}"):
                return
            _end(row, status, aware(now), outcome, error)
            session.add(row)

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

    def newest_success(self, job_id: UUID) -> Execution | None:
        """The job's completed execution that began last."""
        newest = self.executions(job_id, status=RunStatus.COMPLETED, limit=1)
        return newest[0] if newest else None

    def record_backup(
        self,
        head: Head,
        *,
        job_id: UUID,
        execution_id: UUID,
        repository_id: UUID | str,
        storage_location: str,
        expires_at: datetime | None,
        now: datetime,
    ) -> UUID:
        """Record a committed backup set; recorded twice, it is one file with its first facts.

        Args:
            job_id: the job that `execution_id` is a run of.
            storage_location: the name of the location where it lies.
            expires_at: when retention may remove it, None for never by age.

        Returns:
            The file's id, which follows from repository, source and label alone.

        Raises:
            CatalogError: a set of that label is recorded with another manifest, or the execution is of another job.
            RecordMissing: there is no such execution.
        """
        file = file_of(
            head,
            execution_id=execution_id,
            repository_id=repository_id,
            storage_location=storage_location,
            expires_at=expires_at,
            now=now,
        )
        with self._writing() as session:
            if found(session, BackupExecutionRow, execution_id, "execution").job_id != job_id:
                raise CatalogError(f"execution {execution_id} is not of job {job_id}")
            add_file(session, file)
        return file.id

    def backup_file(self, file_id: UUID) -> BackupFile:
        """One recorded backup set.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(BackupFile, found(session, BackupFileRow, file_id, "backup file"))

    def find_backup_file(self, repository_id: UUID | str, source: str, label: BackupLabel | str) -> BackupFile | None:
        """The record of a backup set, whose place in its repository is known."""
        with self._reading() as session:
            row = session.get(BackupFileRow, file_id_of(repository_id, source, label))
            return None if row is None else view(BackupFile, row)

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
            conditions.append(col(BackupFileRow.repository_id) == _uuid(repository_id))
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

    def record_expiry(self, file_id: UUID, *, now: datetime) -> None:
        """Record that a backup set was removed from its storage; the first moment counts.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writing() as session:
            row = found(session, BackupFileRow, file_id, "backup file", lock=True)
            if row.expired_at is None:
                row.expired_at = aware(now)
                session.add(row)

    def withdraw_expiry(self, file_id: UUID) -> None:
        """Record that a backup set is listed again after all.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writing() as session:
            row = found(session, BackupFileRow, file_id, "backup file", lock=True)
            row.expired_at = None
            session.add(row)


def file_id_of(repository_id: UUID | str, source: str, label: BackupLabel | str) -> UUID:
    """The id of a backup set's record: UUIDv5 (RFC 9562, 5.5) of `backup/<source>/<label>` in the repository's id."""
    return uuid5(_uuid(repository_id), f"backup/{source}/{label}")


def file_of(
    head: Head,
    *,
    execution_id: UUID,
    repository_id: UUID | str,
    storage_location: str,
    expires_at: datetime | None,
    now: datetime,
) -> BackupFileRow:
    """The record of a backup set, not yet in any session."""
    return BackupFileRow(
        id=file_id_of(repository_id, head.source, head.label),
        execution_id=execution_id,
        file_name=str(head.label),
        file_path=backup_path(head),
        file_size_bytes=head.plain_bytes,
        compressed_size_bytes=head.stored_bytes,
        checksum=head.manifest_sha256,
        encryption_key_id=head.key_id or None,
        storage_location=bounded(storage_location, NAME_LENGTH, "the storage location's name"),
        expires_at=None if expires_at is None else aware(expires_at, "expires_at"),
        created_at=aware(now),
        repository_id=_uuid(repository_id),
        source=head.source,
        label=str(head.label),
    )


def add_file(session: Session, file: BackupFileRow) -> bool:
    """Add the record unless it is there; whether it was added.

    Raises:
        CatalogError: a set of that label is recorded with another manifest.
    """
    existing = session.get(BackupFileRow, file.id)
    if existing is None:
        try:
            with session.begin_nested():
                session.add(file)
            return True
        except IntegrityError:
            # Another process recorded it since the look above.
            existing = session.get(BackupFileRow, file.id)
            if existing is None:
                raise
    if existing.checksum != file.checksum:
        raise CatalogError(
            f"backup {file.label} of {file.source} is recorded with manifest {existing.checksum}, not {file.checksum}",
            hint="A committed manifest never changes: run `seawall verify` on this backup before anything else.",
        )
    return False


def _uuid(repository_id: UUID | str) -> UUID:
    try:
        return repository_id if isinstance(repository_id, UUID) else UUID(repository_id)
    except ValueError as error:
        raise UsageError(f"{repository_id!r} is no repository id") from error


def _end(
    row: BackupExecutionRow,
    status: RunStatus,
    now: datetime,
    outcome: BackupOutcome | None,
    error: SeawallError | None,
) -> None:
    row.status, row.execution_end, row.lease_expires_at = status, now, None
    row.error_message = error_text(error)
    if outcome is not None:
        row.backup_size_bytes = outcome.backup_size_bytes
        row.compressed_size_bytes = outcome.compressed_size_bytes
        row.file_path = clean(outcome.file_path) or None
        row.checksum = outcome.checksum or None
    row.details = told(row.details, None if outcome is None else outcome.details, error)


def _give_up_on_lapsed(session: Session, job_id: UUID, now: datetime) -> None:
    query = select(BackupExecutionRow).where(
        BackupExecutionRow.job_id == job_id, lapsed_condition(BackupExecutionRow, now)
    )
    for row in session.exec(query.with_for_update()):
        give_up(row, now)
        session.add(row)
    session.flush()
