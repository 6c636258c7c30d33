"""Bring the copies of backups in other locations up to date."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from seawall.catalog import JobType
from tasks import admission, upkeep
from tasks.execution import AlreadyRunning
from tasks.records import site_job


@flow(name="mirror", retries=0)
def mirror(
    source: str | None = None,
    *,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Copy what is missing into the locations that each source names; a location that is down is caught up with later.

    What came to the primary location is locked there too, if that is a place that locks.

    Args:
        source: all configured ones that have mirrors, or are locked in the primary, if omitted.
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source or "", settings_file, blocks)
    job = site_job(settings, job_id, JobType.MIRROR)
    if refused := admission.refusal(settings, job.id):
        return refused
    try:
        names = [source] if source else upkeep.mirrored_or_locked(settings)
        if not names:
            return admission.nothing_to_do("no source has mirrors, and the primary location locks nothing")
        return admission.ended(upkeep.mirror(settings, names, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
