"""Nightly: read the objects whose proofs are oldest, within a budget, in every location, and heal what is wrong."""

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


@flow(name="renew-proofs", retries=0)
def renew_proofs(
    source: str | None = None,
    *,
    budget: str | None = None,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Renew the oldest proofs of each source in each of its locations, and heal what is wrong from a proved copy.

    Args:
        source: all configured ones if omitted.
        budget: such as `50GB` or `30m`, for each source in each location; `[server] verify_budget` if omitted.
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source or "", settings_file, blocks, deleting=True)
    job = site_job(settings, job_id, JobType.PROOFS)
    if refused := admission.refusal(settings, job.id):
        return refused
    names = [source] if source else sorted(settings.sources)
    if not names:
        return admission.nothing_to_do("no source is configured")
    try:
        return dict(upkeep.renew_proofs(settings, names, budget or settings.server.verify_budget, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
