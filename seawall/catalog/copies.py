"""How far each object in each location is proved, and which location holds which backup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlmodel import col, delete, select

from seawall.catalog.checks import aware
from seawall.catalog.models import BackupCopyRow, ObjectProofRow, StorageLocationRow
from seawall.catalog.records import Records, named
from seawall.catalog.views import ObjectProof

_AT_ONCE = 500


class CopyRecords(Records):
    def object_proofs(self, repository_id: UUID | str, location: str) -> dict[str, ObjectProof]:
        """What is known of the objects in a location, by name."""
        query = select(ObjectProofRow).where(
            ObjectProofRow.repository_id == UUID(str(repository_id)), ObjectProofRow.location == location
        )
        with self._reading() as session:
            rows = session.exec(query)
            return {row.name: ObjectProof(row.name, row.proof, row.proved_at, row.problem) for row in rows}

    def record_proofs(self, repository_id: UUID | str, location: str, proofs: Sequence[ObjectProof]) -> None:
        """Keep what was proved of objects, in place of what was known of them."""
        key = UUID(str(repository_id))
        with self._writing() as session:
            for begin in range(0, len(proofs), _AT_ONCE):
                part = proofs[begin : begin + _AT_ONCE]
                session.exec(
                    delete(ObjectProofRow).where(
                        col(ObjectProofRow.repository_id) == key,
                        col(ObjectProofRow.location) == location,
                        col(ObjectProofRow.name).in_([proof.name for proof in part]),
                    )
                )
                session.add_all(
                    ObjectProofRow(
                        repository_id=key,
                        location=location,
                        name=proof.name,
                        proof=proof.proof,
                        proved_at=aware(proof.proved_at),
                        problem=proof.problem,
                    )
                    for proof in part
                )
                session.flush()
            row = named(session, StorageLocationRow, location, lock=True)
            if row is not None and proofs:
                row.last_proof_at = max(proof.proved_at for proof in proofs)
                session.add(row)

    def forget_proofs(self, repository_id: UUID | str, location: str, names: Iterable[str]) -> None:
        """Drop what is known of objects that are gone."""
        gone = sorted(set(names))
        with self._writing() as session:
            for begin in range(0, len(gone), _AT_ONCE):
                session.exec(
                    delete(ObjectProofRow).where(
                        col(ObjectProofRow.repository_id) == UUID(str(repository_id)),
                        col(ObjectProofRow.location) == location,
                        col(ObjectProofRow.name).in_(gone[begin : begin + _AT_ONCE]),
                    )
                )

    def record_copies(
        self, repository_id: UUID | str, source: str, location: str, labels: Iterable[str], *, now: datetime
    ) -> None:
        """Keep which backups of a source a location lists, in place of what was known."""
        key = UUID(str(repository_id))
        with self._writing() as session:
            session.exec(
                delete(BackupCopyRow).where(
                    col(BackupCopyRow.repository_id) == key,
                    col(BackupCopyRow.source) == source,
                    col(BackupCopyRow.location) == location,
                )
            )
            session.add_all(
                BackupCopyRow(repository_id=key, source=source, label=label, location=location, seen_at=aware(now))
                for label in sorted(set(labels))
            )

    def copies(self, repository_id: UUID | str, source: str) -> dict[str, tuple[str, ...]]:
        """The locations in which each backup of a source was last seen, by label."""
        query = select(BackupCopyRow).where(
            BackupCopyRow.repository_id == UUID(str(repository_id)), BackupCopyRow.source == source
        )
        where: dict[str, list[str]] = {}
        with self._reading() as session:
            for row in session.exec(query.order_by(BackupCopyRow.label, BackupCopyRow.location)):
                where.setdefault(row.label, []).append(row.location)
        return {label: tuple(names) for label, names in where.items()}
