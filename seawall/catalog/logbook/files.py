"""The backup sets that executions made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid5

from seawall.catalog.checks import aware, bounded
from seawall.catalog.logbook.rows import Entries, Transaction
from seawall.catalog.views import (
    NAME_LENGTH,
    BackupFile,
    Execution,
    backup_path,
)
from seawall.errors import CatalogError, UsageError
from seawall.model import BackupLabel, Head


class FileEntries(Entries):
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
        with self._writes() as rows:
            if rows.found(Execution, execution_id, "execution").job_id != job_id:
                raise CatalogError(f"execution {execution_id} is not of job {job_id}")
            _add(rows, file)
        return file.id

    def find_backup_file(self, repository_id: UUID | str, source: str, label: BackupLabel | str) -> BackupFile | None:
        """The record of a backup set, whose place in its repository is known."""
        with self._reads() as rows:
            return rows.get(BackupFile, file_id_of(repository_id, source, label))

    def record_suspicions(self, file_id: UUID, suspicions: Sequence[str]) -> None:
        """Keep what is unusual about a backup; none makes it unsuspicious.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writes() as rows:
            rows.found(BackupFile, file_id, "backup file", lock=True)
            rows.update(BackupFile, file_id, suspicions=list(suspicions))

    def record_expiry(self, file_id: UUID, *, now: datetime) -> None:
        """Record that a backup set was removed from its storage; the first moment counts.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writes() as rows:
            if rows.found(BackupFile, file_id, "backup file", lock=True).expired_at is None:
                rows.update(BackupFile, file_id, expired_at=aware(now))

    def withdraw_expiry(self, file_id: UUID) -> None:
        """Record that a backup set is listed again after all.

        Raises:
            RecordMissing: there is no such file.
        """
        with self._writes() as rows:
            rows.found(BackupFile, file_id, "backup file", lock=True)
            rows.update(BackupFile, file_id, expired_at=None)


def file_id_of(repository_id: UUID | str, source: str, label: BackupLabel | str) -> UUID:
    """The id of a backup set's record: UUIDv5 (RFC 9562, 5.5) of `backup/<source>/<label>` in the repository's id."""
    return uuid5(repository_uuid(repository_id), f"backup/{source}/{label}")


def file_of(
    head: Head,
    *,
    execution_id: UUID,
    repository_id: UUID | str,
    storage_location: str,
    expires_at: datetime | None,
    now: datetime,
) -> BackupFile:
    """The record of a backup set."""
    return BackupFile(
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
        verified_at=None,
        created_at=aware(now),
        repository_id=repository_uuid(repository_id),
        source=head.source,
        label=str(head.label),
        expired_at=None,
    )


def refuse_other_manifest(recorded: str, file: BackupFile) -> None:
    """Raise unless a set is recorded with the manifest that it has.

    Raises:
        CatalogError: a set of that label is recorded with another manifest.
    """
    if recorded != file.checksum:
        raise CatalogError(
            f"backup {file.label} of {file.source} is recorded with manifest {recorded}, not {file.checksum}",
            hint="A committed manifest never changes: run `seawall verify` on this backup before anything else.",
        )


def repository_uuid(repository_id: UUID | str) -> UUID:
    """A repository's id.

    Raises:
        UsageError: it is none.
    """
    try:
        return repository_id if isinstance(repository_id, UUID) else UUID(repository_id)
    except ValueError as error:
        raise UsageError(f"{repository_id!r} is no repository id") from error


def _add(rows: Transaction, file: BackupFile) -> None:
    if rows.insert(file):
        return
    existing = rows.get(BackupFile, file.id)
    if existing is None:
        raise CatalogError(f"the catalog has another record in place of backup {file.label} of {file.source}")
    refuse_other_manifest(existing.checksum, file)
