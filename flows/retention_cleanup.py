"""Let backups of one source or all go by policy."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from seawall.errors import SeawallError
from tasks import admission, retention
from tasks.execution import AlreadyRunning
from tasks.records import cleaning_job


@flow(name="retention-cleanup", retries=0)
def retention_cleanup(
    source: str | None = None,
    *,
    dry_run: bool = False,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Mark what policy lets go, and remove what was marked at least a day ago.

    A source that fails does not keep the others from being cleaned; the run fails at its end then. A location that is
    down is left for the next run; if that is the primary, copies are cleaned as far as is safe.

    Args:
        source: all configured ones if omitted.
        dry_run: show what would go and why, and change nothing.
        job_id: the job that this run belongs to; the site's own if omitted.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source or "", settings_file, blocks, deleting=True)
    job = cleaning_job(settings, job_id)
    if refused := admission.refusal(settings, job.id):
        return refused
    cleaned: dict[str, Any] = {}
    failures: list[SeawallError] = []
    for name in [source] if source else sorted(settings.sources):
        try:
            cleaned[name] = dict(retention.clean(settings, name, job.id, dry_run=dry_run))
        except AlreadyRunning as error:
            return admission.nothing_to_do(error.message)
        except SeawallError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    lacking = [str(facts["partial"]) for facts in cleaned.values() if "partial" in facts]
    return admission.ended(cleaned | ({"partial": "; ".join(lacking)} if lacking else {}))
