"""Verifications and recoveries: what was proved of a backup set, and what was restored from it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlmodel import Session, col, select

from seawall.catalog.documents import as_document
from seawall.catalog.leases import checked_lease, error_text, has_ended, told
from seawall.catalog.models import BackupFileRow, BackupVerificationRow, RecoveryOperationRow, UserRow
from seawall.catalog.records import Records, aware, found, view
from seawall.catalog.views import Document, Recovery, RecoveryType, RunStatus, Verification, VerificationType
from seawall.errors import SeawallError


class ProofRecords(Records):
    def begin_verification(
        self,
        backup_file_id: UUID,
        verification_type: VerificationType,
        *,
        now: datetime,
        lease: timedelta,
        flow_run_id: UUID | None = None,
        host: str = "",
    ) -> UUID:
        """Record that a backup set begins to be verified.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writing() as session:
            found(session, BackupFileRow, backup_file_id, "backup file")
            row = BackupVerificationRow(
                backup_file_id=backup_file_id,
                verification_type=VerificationType(verification_type),
                verification_start=aware(now),
                status=RunStatus.RUNNING,
                created_at=now,
                flow_run_id=flow_run_id,
                lease_expires_at=now + checked_lease(lease),
                host=host or None,
            )
            session.add(row)
            return row.id

    def finish_verification(
        self,
        verification_id: UUID,
        *,
        status: RunStatus,
        now: datetime,
        results: Document | None = None,
        error: SeawallError | None = None,
        reads_back: bool = True,
    ) -> None:
        """Record how a verification ended; one that completed makes the backup set verified at `now`.

        Args:
            reads_back: whether it read what is stored; one that only looked for objects verifies nothing.

        Raises:
            CatalogError: it already ended otherwise.
            RecordMissing: there is no such verification.
            UsageError: `status` is not an end.
        """
        with self._writing() as session:
            row = found(session, BackupVerificationRow, verification_id, "verification", lock=True)
            if has_ended(row.status, status, row.verification_results, f"verification {verification_id}"):
                return
            row.status, row.verification_end, row.lease_expires_at = status, aware(now), None
            row.error_message = error_text(error)
            row.verification_results = told(row.verification_results, results, error)
            session.add(row)
            if status is RunStatus.COMPLETED and reads_back:
                _mark_verified(session, row.backup_file_id, now)

    def verification(self, verification_id: UUID) -> Verification:
        """One verification.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(Verification, found(session, BackupVerificationRow, verification_id, "verification"))

    def verifications(self, backup_file_id: UUID | None = None, *, limit: int = 50) -> tuple[Verification, ...]:
        """Verifications, newest first."""
        query = select(BackupVerificationRow).order_by(
            col(BackupVerificationRow.verification_start).desc(), col(BackupVerificationRow.id)
        )
        if backup_file_id is not None:
            query = query.where(BackupVerificationRow.backup_file_id == backup_file_id)
        with self._reading() as session:
            return tuple(view(Verification, row) for row in session.exec(query.limit(limit)))

    def begin_recovery(
        self,
        recovery_type: RecoveryType,
        *,
        backup_file_id: UUID | None = None,
        target_timestamp: datetime | None = None,
        initiated_by: UUID | None = None,
        details: Document | None = None,
        now: datetime,
        lease: timedelta,
        flow_run_id: UUID | None = None,
        host: str = "",
    ) -> UUID:
        """Record that a recovery begins.

        Args:
            backup_file_id: the set it starts from, None if the catalog does not know it.
            target_timestamp: where it shall stop, if that is a time.
            initiated_by: the user who asked for it.

        Raises:
            RecordMissing: there is no such file or user.
        """
        with self._writing() as session:
            if backup_file_id is not None:
                found(session, BackupFileRow, backup_file_id, "backup file")
            if initiated_by is not None:
                found(session, UserRow, initiated_by, "user")
            row = RecoveryOperationRow(
                recovery_type=RecoveryType(recovery_type),
                backup_file_id=backup_file_id,
                target_timestamp=target_timestamp,
                recovery_start=aware(now),
                status=RunStatus.RUNNING,
                recovery_details=as_document(details or {}),
                initiated_by=initiated_by,
                created_at=now,
                flow_run_id=flow_run_id,
                lease_expires_at=now + checked_lease(lease),
                host=host or None,
            )
            session.add(row)
            return row.id

    def finish_recovery(
        self,
        recovery_id: UUID,
        *,
        status: RunStatus,
        now: datetime,
        details: Document | None = None,
        error: SeawallError | None = None,
    ) -> None:
        """Record how a recovery ended; `details` are added to those it began with.

        Raises:
            CatalogError: it already ended otherwise.
            RecordMissing: there is no such recovery.
            UsageError: `status` is not an end.
        """
        with self._writing() as session:
            row = found(session, RecoveryOperationRow, recovery_id, "recovery", lock=True)
            if has_ended(row.status, status, row.recovery_details, f"recovery {recovery_id}"):
                return
            row.status, row.recovery_end, row.lease_expires_at = status, aware(now), None
            row.error_message = error_text(error)
            row.recovery_details = told(row.recovery_details, details, error)
            session.add(row)

    def recovery(self, recovery_id: UUID) -> Recovery:
        """One recovery.

        Raises:
            RecordMissing: there is none of that id.
        """
        with self._reading() as session:
            return view(Recovery, found(session, RecoveryOperationRow, recovery_id, "recovery"))

    def recoveries(self, *, limit: int = 50) -> tuple[Recovery, ...]:
        """Recoveries, newest first."""
        query = select(RecoveryOperationRow).order_by(
            col(RecoveryOperationRow.recovery_start).desc(), col(RecoveryOperationRow.id)
        )
        with self._reading() as session:
            return tuple(view(Recovery, row) for row in session.exec(query.limit(limit)))


def _mark_verified(session: Session, file_id: UUID, now: datetime) -> None:
    file = found(session, BackupFileRow, file_id, "backup file", lock=True)
    if file.verified_at is None or file.verified_at < now:
        file.verified_at = now
        session.add(file)
