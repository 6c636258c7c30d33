"""Close the WAL segment that is being written, see it stored, and prove that WAL has no gap."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall.archive.arrival import wait_for
from seawall.errors import WalGap
from seawall.postgres.inspect import inspect
from seawall.settings import Settings
from tasks.execution import Facts, Result, Surroundings, execute
from tasks.opening import can_help, opened
from tasks.records import ExecutionRecord


@task(
    name="archive-wal",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=30,
    retry_condition_fn=can_help,
)
def ship(settings: Settings, source: str, job_id: UUID) -> Facts:
    """Switch WAL, wait until what was closed is stored, and prove continuity since the oldest listed backup.

    Raises:
        ArchiveTimeout: WAL does not arrive.
        WalGap: a segment between is missing.
    """

    from seawall.archive import continuity

    def verb(around: Surroundings) -> Result:
        chosen = settings.source(source)
        with opened(settings) as repository:
            area = repository.source(source)
            cluster = inspect(chosen)
            area.claim(cluster.identity, around.now)
            closed = continuity.switch(chosen)
            wait_for(chosen, area, [closed], observe=around.observe)
            gaps = continuity.gaps(area)
        if gaps:
            raise WalGap(f"WAL of {source} has {len(gaps)} gaps: {'; '.join(map(str, gaps[:5]))}")
        return Result({"segment": closed.name, "timeline": cluster.timeline})

    return execute(ExecutionRecord(job_id), verb, settings=settings, title="archive-wal", subject=source)
