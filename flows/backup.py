"""Any backup job: take it, read it back, copy it to its mirrors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from seawall.catalog.recording import kind_of
from seawall.errors import LeaseHeld, SeawallError
from seawall.model import BackupKind, BackupLabel, Proof
from seawall.settings import Settings
from tasks import admission, upkeep
from tasks import backup as backup_task
from tasks import verify as verify_task
from tasks.execution import AlreadyRunning
from tasks.records import resolved_job

WINDOW = timedelta(hours=2)


@flow(name="backup", retries=0)
def backup(
    source: str,
    *,
    kind: BackupKind | None = None,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
    verify: bool = True,
    up_to: Proof | None = None,
) -> dict[str, Any] | State[Any]:
    """Take a backup of a source and prove it.

    Args:
        source: its name.
        kind: what to take; the job's kind, or a full backup, if omitted.
        job_id: the job that this run belongs to; the source's job of that kind if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
        verify: whether it is read back afterwards.
        up_to: how far it is proved; as far as the keys on this host allow if omitted.
    """
    settings = settings_for(source, settings_file, blocks)
    job = resolved_job(settings, source, job_id, kind)
    wanted = kind or kind_of(job)
    # Only the nightly full has a window: it follows the night, the others follow the clock.
    window = WINDOW if wanted is BackupKind.FULL else None
    if refused := admission.refusal(settings, job.id, window=window):
        return refused
    try:
        taken = backup_task.take(settings, source, job.id, wanted)
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
    except LeaseHeld as error:
        if wanted is BackupKind.FULL:
            raise
        # Whatever holds the source's lease makes a backup that is newer than this one would have been.
        return admission.nothing_to_do(f"superseded: {error.message}")
    proved = verify_task.check(settings, source, BackupLabel.parse(str(taken["label"])), up_to) if verify else {}
    return {"backup": dict(taken), "verification": dict(proved), "copies": _copied(settings, source)}


def _copied(settings: Settings, source: str) -> dict[str, Any]:
    """Copy what was taken to the source's mirrors. A location that fails is an alert, and the backup stands."""
    if not settings.source(source).mirrors:
        return {}
    try:
        return dict(upkeep.mirror(settings, [source], None))
    except SeawallError as error:
        return {"error": error.as_dict()}
