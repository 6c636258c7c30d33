"""Take a backup of a source."""

from __future__ import annotations

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import backup, upkeep
from seawall.arrivals import locking_arrivals
from seawall.catalog import BackupOutcome
from seawall.catalog.facts import Facts, backup_facts
from seawall.catalog.recording import ExecutionRecord, Result, record_judgement, record_taken
from seawall.events import Resumed, keeping
from seawall.model import BackupKind
from seawall.repository import sealing_of
from seawall.settings import Settings
from seawall.storage.wrappers import cancellable_sleep
from seawall.throttle import source_bucket
from tasks.execution import Surroundings, execute
from tasks.opening import RETRY_SECONDS, can_help, opened


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
        `label`, sizes, the reason if another kind was taken than asked for, and what of earlier attempts was `resumed`.
    """

    def verb(around: Surroundings) -> Result:
        resumed: list[Resumed] = []
        with opened(settings) as repository:
            head = backup.take(
                settings.source(source),
                locking_arrivals(settings.repository, repository, source, around.observe),
                sealing_of(settings.sealing),
                kind=kind,
                block_maps=settings.block_maps(source),
                pace=source_bucket(settings, source, sleep=cancellable_sleep(around.observe.cancel)),
                quota_bytes=settings.repository.quota_bytes,
                now=around.now,
                observe=keeping(around.observe, resumed),
                clock=around.clock,
            )
            # The set is listed in the repository by now; the catalog follows, never leads.
            record_taken(
                around.catalog,
                settings,
                repository,
                head,
                job_id=job_id,
                execution_id=_row(around),
                now=around.now,
            )
            record_judgement(around.catalog, repository, head, around.observe, now=around.now)
            # It is whole and recorded: from here on, a lock that fails costs nothing but itself.
            upkeep.secure_primary(
                settings, repository, source, around.catalog, now=around.clock(), observe=around.observe
            )
        return Result(backup_facts(head, kind, resumed), BackupOutcome.of(head))

    return execute(ExecutionRecord(job_id), verb, settings=settings, title="backup", subject=source)


def _row(around: Surroundings) -> UUID:
    if around.record_id is None:
        raise TypeError("an execution always has a row")
    return around.record_id
