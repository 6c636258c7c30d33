"""Verify a backup, or the one whose proof is oldest."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from seawall.model import BackupLabel, Proof
from tasks import admission
from tasks import verify as verify_task
from tasks.execution import AlreadyRunning


@flow(name="verify", retries=0)
def verify(
    source: str,
    *,
    label: str | None = None,
    up_to: Proof | None = None,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Read a backup back and prove what it holds; its copies, if the primary location is gone.

    Args:
        source: its name.
        label: which backup; the one whose proof is oldest if omitted.
        up_to: how far it is proved; as far as the keys on this host allow if omitted.
        job_id: the job that this run belongs to, if it belongs to one.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source, settings_file, blocks)
    if refused := admission.refusal(settings, job_id):
        return refused
    chosen = BackupLabel.parse(label) if label else verify_task.least_proved(settings, source)
    try:
        return admission.ended(verify_task.check(settings, source, chosen, up_to, job_id, copies=True))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
