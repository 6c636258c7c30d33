"""Verifications and recoveries: what was proved of a backup set, and what was restored from it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from seawall.catalog.checks import aware
from seawall.catalog.documents import as_document
from seawall.catalog.logbook.files import repository_uuid
from seawall.catalog.logbook.leases import BY_HAND, checked_lease, ended, give_up_killed, has_ended, worked_by
from seawall.catalog.logbook.rows import Entries, Transaction, inserted
from seawall.catalog.views import (
    BackupFile,
    Document,
    Recovery,
    RecoveryType,
    RunStatus,
    Verification,
    VerificationType,
)
from seawall.errors import RecordMissing, SeawallError, VerificationFailed


class ProofEntries(Entries):
    def begin_verification(
        self,
        backup_file_id: UUID,
        verification_type: VerificationType,
        *,
        now: datetime,
        lease: timedelta,
        flow_run_id: UUID | None = None,
        host: str = "",
        process: str = "",
    ) -> UUID:
        """Record that a backup set begins to be verified.

        Args:
            process: which process does it on `host` (`process.identity`).

        Raises:
            RecordMissing: there is no such file.
        """
        row = Verification(
            id=uuid4(),
            backup_file_id=backup_file_id,
            verification_type=VerificationType(verification_type),
            verification_start=aware(now),
            verification_end=None,
            status=RunStatus.RUNNING,
            verification_results=worked_by(process),
            error_message=None,
            created_at=now,
            flow_run_id=flow_run_id,
            lease_expires_at=now + checked_lease(lease),
            host=host or None,
        )
        with self._writes() as rows:
            give_up_killed(rows, Verification, aware(now), BY_HAND)
            rows.found(BackupFile, backup_file_id, "backup file")
            inserted(row, rows.insert(row))
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
        with self._writes() as rows:
            row = rows.found(Verification, verification_id, "verification", lock=True)
            if has_ended(row, status, f"verification {verification_id}"):
                return
            rows.update(Verification, verification_id, **ended(row, status, now, results, error))
            if status is RunStatus.COMPLETED and reads_back:
                _mark_verified(rows, row.backup_file_id, now)

    def failed_verifications(self, repository_id: UUID | str, source: str) -> dict[str, str]:
        """Why the newest verification of a set found it wrong, by label; one that could not read says nothing."""
        of_source = (
            "backup_file_id IN (SELECT id FROM backup_files WHERE repository_id = :repository AND source = :source)"
        )
        key = repository_uuid(repository_id)
        with self._reads() as rows:
            files = rows.all(
                BackupFile, "WHERE repository_id = :repository AND source = :source", repository=key, source=source
            )
            found = rows.all(
                Verification, f"WHERE {of_source} ORDER BY verification_start", repository=key, source=source
            )
        labels = {file.id: file.label for file in files}
        wrong: dict[str, str] = {}
        for row in found:
            label = labels[row.backup_file_id]
            if row.status is RunStatus.COMPLETED:
                wrong.pop(label, None)
            elif row.status is RunStatus.FAILED and _found_it_wrong(row):
                wrong[label] = row.error_message or "its verification failed"
        return wrong

    def wrong_objects(self, repository_id: UUID | str, location: str, prefix: str) -> dict[str, str]:
        """The objects below a prefix that were found wrong in a location when they were last read, and why."""
        query = (
            "SELECT name, problem FROM object_proofs "
            "WHERE repository_id = :repository AND location = :location AND problem IS NOT NULL"
        )
        with self._reads() as rows:
            found = rows.execute(query, repository=repository_uuid(repository_id), location=location)
        return {str(name): str(problem) for name, problem in found if str(name).startswith(prefix)}

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
        process: str = "",
    ) -> UUID:
        """Record that a recovery begins.

        Args:
            backup_file_id: the set it starts from, None if the catalog does not know it.
            target_timestamp: where it shall stop, if that is a time.
            initiated_by: the user who asked for it.
            process: which process does it on `host` (`process.identity`).

        Raises:
            RecordMissing: there is no such file or user.
        """
        row = Recovery(
            id=uuid4(),
            recovery_type=RecoveryType(recovery_type),
            backup_file_id=backup_file_id,
            target_timestamp=None if target_timestamp is None else aware(target_timestamp, "target_timestamp"),
            recovery_start=aware(now),
            recovery_end=None,
            status=RunStatus.RUNNING,
            recovery_details=as_document(details or {}) | worked_by(process),
            initiated_by=initiated_by,
            error_message=None,
            created_at=now,
            flow_run_id=flow_run_id,
            lease_expires_at=now + checked_lease(lease),
            host=host or None,
        )
        with self._writes() as rows:
            give_up_killed(rows, Recovery, aware(now), BY_HAND)
            if backup_file_id is not None:
                rows.found(BackupFile, backup_file_id, "backup file")
            if initiated_by is not None and not rows.execute("SELECT 1 FROM users WHERE id = :id", id=initiated_by):
                raise RecordMissing(f"the catalog has no user {initiated_by}")
            inserted(row, rows.insert(row))
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
        with self._writes() as rows:
            row = rows.found(Recovery, recovery_id, "recovery", lock=True)
            if not has_ended(row, status, f"recovery {recovery_id}"):
                rows.update(Recovery, recovery_id, **ended(row, status, now, details, error))


def _found_it_wrong(row: Verification) -> bool:
    error = row.verification_results.get("error")
    return isinstance(error, dict) and error.get("code") == VerificationFailed.code


def _mark_verified(rows: Transaction, file_id: UUID, now: datetime) -> None:
    file = rows.found(BackupFile, file_id, "backup file", lock=True)
    if file.verified_at is None or file.verified_at < now:
        rows.update(BackupFile, file_id, verified_at=now)
