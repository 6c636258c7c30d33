"""Look whether every storage location can be written, read and cleaned, what lies there and how long it has room."""

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


@flow(name="location-health", retries=0)
def location_health(
    *,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Write, read back and delete a probe in every location, measure it once a day, and raise or resolve its alerts.

    Args:
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for("", settings_file, blocks)
    job = site_job(settings, job_id, JobType.LOCATION_HEALTH)
    if refused := admission.refusal(settings, job.id):
        return refused
    try:
        return dict(upkeep.check_locations(settings, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
