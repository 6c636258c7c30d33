"""Every quarter of an hour: close the WAL segment, see it stored, prove that there is no gap."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from tasks import admission, archive
from tasks.execution import AlreadyRunning
from tasks.records import wal_job


@flow(name="archive-wal", retries=0)
def archive_wal(
    source: str,
    *,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Bring the source's WAL up to now into the repository, and prove that it is continuous.

    Args:
        source: its name.
        job_id: the job that this run belongs to; the source's WAL job if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source, settings_file, blocks)
    job = wal_job(settings, source, job_id)
    if refused := admission.refusal(settings, job.id):
        return refused
    try:
        return dict(archive.ship(settings, source, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
