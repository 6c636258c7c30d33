"""Verifications and recoveries as they were recorded; `seawall.catalog.logbook.proofs` begins and ends them."""

from __future__ import annotations

from uuid import UUID

from sqlmodel import col, select

from seawall.catalog.models import BackupVerificationRow, RecoveryOperationRow
from seawall.catalog.records import Records, found, view
from seawall.catalog.views import Recovery, Verification


class ProofRecords(Records):
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
