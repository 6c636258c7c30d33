"""Let backups go by policy: mark, and remove what was marked at least a day ago."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import retention
from seawall.catalog import Catalog
from seawall.model import BackupLabel
from seawall.repository import Repository
from seawall.retention import Collected, RetentionPlan, RetentionPolicy
from seawall.settings import Settings
from tasks.execution import Facts, Result, Surroundings, execute
from tasks.opening import can_help, file_of, opened


@task(
    name="retention-cleanup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def clean(settings: Settings, source: str, *, dry_run: bool) -> Facts:
    """Apply a source's retention.

    Returns:
        What is kept and let go, each with its reasons, and what was removed for good.
    """

    def verb(around: Surroundings) -> Result:
        policy = RetentionPolicy.of_days(settings.source(source).retention_days)
        with opened(settings) as repository:
            area, now = repository.source(source), around.now
            plan = retention.plan(source, area.heads(), area.holds(now), policy, now=now, wal_names=area.wal.names())
            marked = 0 if dry_run else retention.expire(repository, plan, actor=around.actor, now=now)
            collected = retention.collect(
                repository, source, actor=around.actor, now=now, observe=around.observe, dry_run=dry_run
            )
            if not dry_run:
                _record(around, repository, source, collected)
        return Result(_facts(plan, collected, marked))

    return execute(None, verb, settings=settings, title="retention-cleanup", subject=source)


def _record(around: Surroundings, repository: Repository, source: str, collected: Collected) -> None:
    catalog: Catalog = around.catalog
    for label in collected.sets:
        file = file_of(catalog, repository, source, BackupLabel.parse(label))
        if file is not None:
            catalog.record_expiry(file.id, now=around.now)
        catalog.audit(around.actor, "retention.collect", f"{source} {label}", {}, around.now)


def _facts(plan: RetentionPlan, collected: Collected, marked: int) -> Facts:
    return {
        "keep": {str(decision.label): list(decision.reasons) for decision in plan.keep},
        "expire": {str(decision.label): list(decision.reasons) for decision in plan.expire},
        "marked": marked,
        "collected": list(collected.sets),
        "freed_bytes": collected.freed_bytes,
        "left": dict(collected.left),
    }
