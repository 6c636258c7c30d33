"""Recreate in a catalog what a repository knows: jobs, executions, backup sets and where they lie.

Ids follow from the repository's id, the source and the label (UUIDv5), so a rebuild that is repeated, or that meets
rows of the live catalog, adds nothing twice. Nothing that the catalog knows is changed or deleted. What only the
catalog knew (schedules, alerts, verifications, recoveries, users, audit) is not in a repository: restore a backup
of the catalog for that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Protocol
from uuid import UUID, uuid5

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from seawall.catalog.checks import aware
from seawall.catalog.documents import as_document
from seawall.catalog.logbook.files import file_id_of, file_of, refuse_other_manifest
from seawall.catalog.models import BackupExecutionRow, BackupFileRow, BackupJobRow, StorageLocationRow
from seawall.catalog.store import Catalog
from seawall.catalog.views import BackupFile, BackupOutcome, JobType, LocationType, RunStatus
from seawall.errors import SeawallError
from seawall.model import BackupKind, BackupLabel, Finding, Head

_log = logging.getLogger(__name__)
_JOB_TYPES = {
    BackupKind.FULL: JobType.FULL,
    BackupKind.DIFFERENTIAL: JobType.DIFFERENTIAL,
    BackupKind.INCREMENTAL: JobType.INCREMENTAL,
}


class KnownStorage(Protocol):
    @property
    def url(self) -> str: ...


class KnownSource(Protocol):
    """What a rebuild asks of `seawall.repository.SourceArea`."""

    def labels(self, *, with_expired: bool = False) -> tuple[BackupLabel, ...]: ...

    def head(self, label: BackupLabel) -> Head: ...


class KnownRepository(Protocol):
    """What a rebuild asks of `seawall.repository.Repository`."""

    @property
    def id(self) -> str: ...

    @property
    def storage(self) -> KnownStorage: ...

    def sources(self) -> tuple[str, ...]: ...

    def source(self, name: str) -> KnownSource: ...


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuild found and did.

    Args:
        known: sets that the catalog had already.
        absent: sets of this repository that the catalog lists and the repository does not, as `source/label`.
        findings: sources and heads that could not be read, and heads that contradict the catalog.
    """

    sources: int = 0
    jobs_created: int = 0
    executions_created: int = 0
    files_created: int = 0
    locations_created: int = 0
    known: int = 0
    absent: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.jobs_created or self.executions_created or self.files_created or self.locations_created)


def rebuild(
    catalog: Catalog, repository: KnownRepository, now: datetime, *, storage_location: str | None = None
) -> RebuildReport:
    """Recreate what a repository knows.

    Args:
        catalog: an open catalog of the newest schema.
        storage_location: the name of the location where the repository lies; found by its URL, or made, when omitted.

    Raises:
        CatalogError: the catalog could not be written; nothing was.
    """
    survey = _survey(repository)
    with catalog.session_for_rebuild() as session:
        report = _Rebuilding(session, repository, aware(now), storage_location).run(survey)
    if report.changed:
        catalog.audit("seawall", "catalog.rebuild", f"repository/{repository.id}", _counts(report), now)
    return report


@dataclass(slots=True)
class _Survey:
    """What the repository says, read before the catalog is locked: storage may be slow.

    `present` also has the sets that are marked as expired but not removed yet.
    """

    sources: tuple[str, ...] = ()
    heads: list[Head] = field(default_factory=list)
    present: set[tuple[str, str]] = field(default_factory=set)
    unreadable: list[Finding] = field(default_factory=list)
    read_sources: set[str] = field(default_factory=set)


def _survey(repository: KnownRepository) -> _Survey:
    survey = _Survey(sources=repository.sources())
    for name in survey.sources:
        try:
            source = repository.source(name)
            labels, present = source.labels(), source.labels(with_expired=True)
        except SeawallError as error:
            survey.unreadable.append(Finding(error.code, name, error.message))
            continue
        survey.read_sources.add(name)
        survey.present.update((name, str(label)) for label in present)
        survey.heads.extend(_heads(name, source, labels, survey.unreadable))
    return survey


def _heads(name: str, source: KnownSource, labels: Iterable[BackupLabel], unreadable: list[Finding]) -> Iterator[Head]:
    """Readable heads: one that is damaged must not hide the others."""
    for label in labels:
        try:
            yield source.head(label)
        except SeawallError as error:
            _log.warning("the head of %s/%s cannot be read: %s", name, label, error.message)
            unreadable.append(Finding(error.code, f"{name}/{label}", error.message))


class _Rebuilding:
    """One rebuild inside one transaction."""

    def __init__(
        self, session: Session, repository: KnownRepository, now: datetime, storage_location: str | None
    ) -> None:
        self._session = session
        self._id = UUID(repository.id)
        self._url = repository.storage.url
        self._now = now
        self._location_name = storage_location
        self._contradictions: list[Finding] = []
        self._created = {"jobs": 0, "executions": 0, "files": 0, "locations": 0}

    def run(self, survey: _Survey) -> RebuildReport:
        location = self._location()
        added = sum(self._add(head, location) for head in survey.heads)
        return RebuildReport(
            sources=len(survey.sources),
            jobs_created=self._created["jobs"],
            executions_created=self._created["executions"],
            files_created=added,
            locations_created=self._created["locations"],
            known=len(survey.heads) - added,
            absent=self._absent(survey),
            findings=(*survey.unreadable, *self._contradictions),
        )

    def _add(self, head: Head, location: str) -> bool:
        recorded = self._session.get(BackupFileRow, file_id_of(self._id, head.source, head.label))
        if recorded is not None:
            self._compare(recorded, head)
            return False
        execution = self._execution(head, self._job(head))
        file = file_of(
            head,
            execution_id=execution,
            repository_id=self._id,
            storage_location=location,
            expires_at=None,
            now=head.ended_at,
        )
        return _added(self._session, file)

    def _compare(self, recorded: BackupFileRow, head: Head) -> None:
        if recorded.checksum != head.manifest_sha256:
            message = f"the catalog says that its manifest is {recorded.checksum}, its head {head.manifest_sha256}"
            self._contradictions.append(Finding("manifest-differs", f"{head.source}/{head.label}", message))
        if recorded.expired_at is not None:
            message = f"the catalog says that it was removed at {recorded.expired_at.isoformat()}, but it is listed"
            self._contradictions.append(Finding("expired-but-listed", f"{head.source}/{head.label}", message))

    def _location(self) -> str:
        """The location's name: the given one, that of the same URL, or a new one named after the repository."""
        rows = self._session.exec(select(StorageLocationRow).order_by(StorageLocationRow.name)).all()
        by_url = (row.name for row in rows if row.connection_config.get("url") == self._url)
        name = self._location_name or next(by_url, f"repository-{self._id.hex[:8]}")
        if name not in {row.name for row in rows}:
            self._insert(
                "locations",
                StorageLocationRow(
                    id=uuid5(self._id, f"location/{name}"),
                    name=name,
                    location_type=LocationType.of(self._url),
                    connection_config={"url": self._url},
                    encryption_config={},
                    created_at=self._now,
                ),
            )
        return name

    def _job(self, head: Head) -> UUID:
        """The one job that protects this source in this way; else a rebuilt one, which has no schedule."""
        kind = _JOB_TYPES[head.kind]
        rows = self._session.exec(select(BackupJobRow).where(BackupJobRow.job_type == kind)).all()
        rebuilt = uuid5(self._id, f"job/{head.source}/{kind}")
        matching = [row.id for row in rows if row.backup_targets.get("source") == head.source]
        if rebuilt in matching or len(matching) != 1:
            return self._rebuilt_job(head, kind, rebuilt)
        return matching[0]

    def _rebuilt_job(self, head: Head, kind: JobType, job_id: UUID) -> UUID:
        if self._session.get(BackupJobRow, job_id) is None:
            self._insert(
                "jobs",
                BackupJobRow(
                    id=job_id,
                    name=f"{head.source} {kind} (rebuilt from repository {self._id.hex[:8]})",
                    job_type=kind,
                    is_active=False,
                    backup_targets={"source": head.source},
                    destination_config={"repository_id": str(self._id)},
                    notification_config={},
                    created_at=self._now,
                    updated_at=self._now,
                ),
            )
        return job_id

    def _execution(self, head: Head, job_id: UUID) -> UUID:
        execution_id = uuid5(self._id, f"execution/{head.source}/{head.label}")
        if self._session.get(BackupExecutionRow, execution_id) is None:
            outcome = BackupOutcome.of(head, {"rebuilt_at": self._now})
            self._insert(
                "executions",
                BackupExecutionRow(
                    id=execution_id,
                    job_id=job_id,
                    execution_start=head.began_at,
                    execution_end=head.ended_at,
                    status=RunStatus.COMPLETED,
                    backup_size_bytes=outcome.backup_size_bytes,
                    compressed_size_bytes=outcome.compressed_size_bytes,
                    file_path=outcome.file_path,
                    checksum=outcome.checksum,
                    details=as_document(outcome.details),
                    created_at=head.began_at,
                ),
            )
        return execution_id

    def _insert(self, kind: str, row: StorageLocationRow | BackupJobRow | BackupExecutionRow) -> None:
        self._session.add(row)
        self._session.flush()
        self._created[kind] += 1

    def _absent(self, survey: _Survey) -> tuple[str, ...]:
        """Only for sources that could be listed, or that are wholly gone: silence of storage proves nothing."""
        query = select(BackupFileRow).where(BackupFileRow.repository_id == self._id)
        unlisted = set(survey.sources) - survey.read_sources
        return tuple(
            sorted(
                f"{row.source}/{row.label}"
                for row in self._session.exec(query)
                if row.expired_at is None
                and row.source not in unlisted
                and (row.source, row.label) not in survey.present
            )
        )


def _added(session: Session, file: BackupFile) -> bool:
    """Add the record unless another process did since the look before; whether it was added.

    Raises:
        CatalogError: a set of that label is recorded with another manifest.
    """
    try:
        with session.begin_nested():
            session.add(BackupFileRow(**{field.name: getattr(file, field.name) for field in fields(file)}))
    except IntegrityError:
        existing = session.get(BackupFileRow, file.id)
        if existing is None:
            raise
        refuse_other_manifest(existing.checksum, file)
        return False
    return True


def _counts(report: RebuildReport) -> dict[str, object]:
    return {
        "jobs": report.jobs_created,
        "executions": report.executions_created,
        "files": report.files_created,
        "locations": report.locations_created,
        "absent": list(report.absent),
        "findings": len(report.findings),
    }
