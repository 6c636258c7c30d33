"""Close the WAL segment that is being written, see it stored, and prove that WAL has no gap."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import retention, upkeep
from seawall.archive.arrival import wait_for
from seawall.archive.continuity import Window, switch_wal, windows
from seawall.catalog.facts import Facts
from seawall.catalog.recording import ExecutionRecord, Result
from seawall.errors import WalGap
from seawall.events import Noticed, Observer
from seawall.model import Head
from seawall.postgres.connect import connect
from seawall.postgres.inspect import inspect
from seawall.repository import SourceArea
from seawall.settings import Settings, SourceSettings
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, opened


@task(
    name="archive-wal",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=30,
    retry_condition_fn=can_help,
)
def ship(settings: Settings, source: str, job_id: UUID) -> Facts:
    """Switch WAL, wait until what was closed is stored, and prove continuity from every listed backup on.

    Raises:
        ArchiveTimeout: WAL does not arrive.
        WalGap: a segment between is missing.
    """

    def verb(around: Surroundings) -> Result:
        chosen = settings.source(source)
        with opened(settings) as repository:
            area = repository.source(source)
            closed = _closed(chosen, area, around.observe)
            # Before anything is judged: WAL behind a gap is worth its lock as well.
            upkeep.lock_arrivals(settings, repository, source, around.catalog, now=around.now, observe=around.observe)
            heads = _readable(area, around.observe)
            window = retention.policy_for(settings, source).window
            found = retention.promised(windows(area.wal, heads), heads, window, around.now)
        refuse_gaps(source, heads, found)
        until = max((window.until for window in found), default=None)
        return Result(
            {"segment": closed, "backups": len(heads), "recoverable_until": None if until is None else str(until)}
        )

    return execute(ExecutionRecord(job_id), verb, settings=settings, title="archive-wal", subject=source)


def _readable(area: SourceArea, observe: Observer) -> tuple[Head, ...]:
    """The heads that can be read; one that cannot must not hide a gap behind the others."""
    heads, unreadable = area.readable_heads()
    for label, error in unreadable.items():
        observe.hear(
            Noticed("high", "head-damaged", f"the head of {area.name} {label} cannot be read: {error.message}")
        )
    return heads


def _closed(source: SourceSettings, area: SourceArea, observe: Observer) -> str | None:
    """The segment that was closed and is stored now; None for a standby, which closes none."""
    if inspect(source).in_recovery:
        return None
    with connect(source) as session:
        segment = switch_wal(session)
    wait_for(source, area, [segment], observe=observe)
    return segment.name


def refuse_gaps(source: str, heads: Sequence[Head], found: Sequence[Window]) -> None:
    """Go on only if every backup can be recovered to the end of what is stored.

    Raises:
        WalGap: one cannot.
    """
    reachable = {window.label for window in found}
    faults = [f"backup {head.label} lacks WAL of its own" for head in heads if str(head.label) not in reachable]
    faults += [f"{window.gap.name} is missing after backup {window.label}" for window in found if window.gap]
    if faults:
        raise WalGap(f"WAL of {source} is not continuous: {'; '.join(faults[:5])}")
