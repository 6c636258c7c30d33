"""The jobs that runs belong to."""

from __future__ import annotations

from uuid import UUID

from seawall.catalog import Catalog, Job, JobType, recording
from seawall.catalog.recording import job_of, job_type_of, retention_job
from seawall.model import BackupKind
from seawall.settings import Settings
from tasks.execution import utc_now


def resolved_job(settings: Settings, source: str, job_id: UUID | None, kind: BackupKind | None) -> Job:
    """The job that a backup belongs to: the one that was named, else the source's job of that kind.

    Raises:
        RecordMissing: there is no job of that id.
        SettingsError: the source is not configured.
    """
    wanted = job_type_of(kind or BackupKind.FULL)
    with Catalog.open(settings.catalog.url) as catalog:
        return catalog.job(job_id) if job_id else job_of(catalog, settings, source, wanted, now=utc_now())


def wal_job(settings: Settings, source: str, job_id: UUID | None) -> Job:
    """The job of a source's WAL: the one that was named, else the source's own.

    Raises:
        RecordMissing: there is no job of that id.
        SettingsError: the source is not configured.
    """
    with Catalog.open(settings.catalog.url) as catalog:
        return (
            catalog.job(job_id) if job_id else job_of(catalog, settings, source, JobType.TRANSACTION_LOG, now=utc_now())
        )


def cleaning_job(settings: Settings, job_id: UUID | None) -> Job:
    """The job of retention: the one that was named, else the site's.

    Raises:
        RecordMissing: there is no job of that id.
    """
    with Catalog.open(settings.catalog.url) as catalog:
        return catalog.job(job_id) if job_id else retention_job(catalog, settings, now=utc_now())


def site_job(settings: Settings, job_id: UUID | None, job_type: JobType) -> Job:
    """The job of a run for the whole site: the one that was named, else the site's own of that type.

    Raises:
        RecordMissing: there is no job of that id.
    """
    with Catalog.open(settings.catalog.url) as catalog:
        return catalog.job(job_id) if job_id else recording.site_job(catalog, settings, job_type, now=utc_now())
