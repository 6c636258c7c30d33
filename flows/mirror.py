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

    Args:
        source: all configured ones that have mirrors if omitted.
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source or "", settings_file, blocks)
    job = site_job(settings, job_id, JobType.MIRROR)
    if refused := admission.refusal(settings, job.id):
        return refused
    names = [source] if source else [one.name for one in settings.sources.values() if one.mirrors]
    if not names:
        return admission.nothing_to_do("no source has mirrors")
    try:
        return dict(upkeep.mirror(settings, names, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
