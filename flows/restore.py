"""Restore a source: plan, then do exactly that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from blocks.site import BlockNames, settings_for
from seawall.catalog.facts import plan_facts
from seawall.model import BackupLabel, TargetAction, TargetKind
from tasks import restore as restore_task
from tasks.restore import Destination, target_of


@flow(name="restore", retries=0)
def restore(
    source: str,
    into: Path,
    *,
    target: TargetKind = TargetKind.LATEST,
    value: str = "",
    inclusive: bool = True,
    timeline: str = "latest",
    label: str | None = None,
    delta: bool = False,
    tablespaces: dict[str, Path] | None = None,
    port: int = 0,
    start: bool = True,
    target_action: TargetAction = TargetAction.PROMOTE,
    dry_run: bool = False,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any]:
    """Restore a source to a recovery target, on the worker's host.

    Nothing here is needed for a restore: `seawall restore` does the same without Prefect and without the catalog.

    Args:
        source: its name; it need not be configured.
        into: the data directory to make; absolute.
        target: what `value` is.
        value: a time with its offset, an LSN, a transaction id or a restore point's name; empty for latest, immediate.
        inclusive: whether the target itself is still replayed.
        timeline: a number, `latest` or `current`.
        label: this backup and no other.
        delta: repair what lies in the directory instead of refusing it.
        tablespaces: original location → new one.
        port: leave a server running there; 0 leaves it stopped.
        start: false lays files down only.
        target_action: at the target promote; or pause, and the run waits until somebody resumes; or shut down.
        dry_run: show the plan and stop.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source, settings_file, blocks)
    destination = Destination(into, delta, tablespaces or {}, port, start, target_action)
    wanted = target_of(target, value, inclusive=inclusive, timeline=timeline)
    chosen = BackupLabel.parse(label) if label else None
    planned = restore_task.plan(settings, source, wanted, destination, chosen)
    report = {} if dry_run else dict(restore_task.run(settings, planned, destination))
    return {"plan": dict(plan_facts(planned)), "report": report}
