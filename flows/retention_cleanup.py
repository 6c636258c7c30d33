"""Let backups of one source or all go by policy."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.site import BlockNames, settings_for
from seawall.errors import SeawallError
from tasks import admission, retention


@flow(name="retention-cleanup", retries=0)
def retention_cleanup(
    source: str | None = None,
    *,
    dry_run: bool = False,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Mark what policy lets go, and remove what was marked at least a day ago.

    A source that fails does not keep the others from being cleaned; the run fails at its end then.

    Args:
        source: all configured ones if omitted.
        dry_run: show what would go and why, and change nothing.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source or "", settings_file, blocks)
    if refused := admission.refusal(settings, None):
        return refused
    cleaned: dict[str, Any] = {}
    failures: list[SeawallError] = []
    for name in [source] if source else sorted(settings.sources):
        try:
            cleaned[name] = dict(retention.clean(settings, name, dry_run=dry_run))
        except SeawallError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return cleaned
