"""Let backups go by policy: mark, and remove what was marked at least a day ago."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import retention
from seawall.catalog.facts import Facts, retention_facts
from seawall.catalog.recording import ExecutionRecord, Result, record_collected
from seawall.errors import Cancelled, SeawallError
from seawall.events import Noticed
from seawall.repository import Repository
from seawall.settings import Settings
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, opened


@task(
    name="retention-cleanup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def clean(settings: Settings, source: str, job_id: UUID, *, dry_run: bool) -> Facts:
    """Apply a source's retention.

    Args:
        job_id: the job that this is a run of; a look that changes nothing is none.

    Returns:
        What is kept and let go, each with its reasons, and what was removed for good.
    """

    def verb(around: Surroundings) -> Result:
        policy = retention.policy_for(settings, source)
        with opened(settings, deleting=True) as repository:
            area, now = repository.source(source), around.now
            plan = retention.plan_for(
                area,
                policy,
                now=now,
                awaited=lambda heads: retention.awaited(settings, source, heads, now=now, observe=around.observe),
            )
            marked = 0 if dry_run else retention.expire(repository, plan, actor=around.actor, now=now)
            collected = retention.collect(
                repository,
                source,
                actor=around.actor,
                now=now,
                observe=around.observe,
                dry_run=dry_run,
                policy=policy,
            )
            if not dry_run:
                record_collected(around.catalog, repository, source, collected.sets, actor=around.actor, now=around.now)
            copies = _copies(settings, repository, source, around, dry_run=dry_run)
        return Result({**retention_facts(plan, collected, marked), "locations": copies})

    record = None if dry_run else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="retention-cleanup", subject=source)


def _copies(
    settings: Settings, repository: Repository, source: str, around: Surroundings, *, dry_run: bool
) -> dict[str, Facts]:
    """Clean the copies in every other location; one that is down is told, and keeps no other from being cleaned."""
    found: dict[str, Facts] = {}
    for name in settings.source(source).mirrors:
        try:
            done = retention.clean_copy(
                settings,
                repository,
                source,
                name,
                actor=around.actor,
                now=around.now,
                observe=around.observe,
                dry_run=dry_run,
            )
            found[name] = retention_facts(done.plan, done.collected, done.marked)
        except Cancelled:
            raise
        except SeawallError as error:
            found[name] = error.as_dict()
            text = f"{source} is not cleaned in {name}: {error.message}"
            around.observe.hear(Noticed("medium", "location-not-cleaned", text))
    return found
