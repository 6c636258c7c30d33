"""Prove that what is locked in storage locations cannot be changed."""

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


@flow(name="immutability-probe", retries=0)
def immutability_probe(
    *,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Attack a locked canary in every location that claims to lock; an attack that succeeds is a critical alert.

    Args:
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for("", settings_file, blocks, deleting=True)
    job = site_job(settings, job_id, JobType.IMMUTABILITY)
    if refused := admission.refusal(settings, job.id):
        return refused
    try:
        return dict(upkeep.probe_locks(settings, job.id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
