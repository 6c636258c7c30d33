"""Take a backup of a source."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import backup
from seawall.catalog import BackupOutcome
from seawall.model import BackupKind
from seawall.repository import sealing_of
from seawall.settings import Settings
from tasks.execution import Facts, Result, Surroundings, execute
from tasks.opening import RETRY_SECONDS, can_help, expiry_of, location_of, opened
from tasks.records import ExecutionRecord


@task(
    name="take-backup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=can_help,
)
def take(settings: Settings, source: str, job_id: UUID, kind: BackupKind) -> Facts:
    """Take a backup, list it and record it.

    Returns:
        `label`, sizes, and the reason if another kind was taken than asked for.
    """

    def verb(around: Surroundings) -> Result:
        with opened(settings) as repository:
            head = backup.take(
                settings.source(source),
                repository,
                sealing_of(settings.sealing),
                kind=kind,
                now=around.now,
                observe=around.observe,
                clock=around.clock,
            )
            # The set is listed in the repository by now; the catalog follows, never leads.
            around.catalog.record_backup(
                head,
                job_id=job_id,
                execution_id=_row(around),
                repository_id=repository.id,
                storage_location=location_of(around.catalog, settings, repository, now=around.now),
                expires_at=expiry_of(settings, source, head),
                now=around.now,
            )
        facts: Facts = {
            "label": str(head.label),
            "kind": head.kind.value,
            "asked": kind.value,
            "reason": head.reason,
            "plain_bytes": head.plain_bytes,
            "stored_bytes": head.stored_bytes,
            "health": head.health.value,
        }
        return Result(facts, BackupOutcome.of(head))

    return execute(ExecutionRecord(job_id), verb, settings=settings, title="backup", subject=source)


def _row(around: Surroundings) -> UUID:
    if around.record_id is None:
        raise TypeError("an execution always has a row")
    return around.record_id
