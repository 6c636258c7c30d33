"""Restore into a scratch instance, check it, measure the RTO, and remove it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import restore, restoretest
from seawall.catalog import Catalog, VerificationType
from seawall.catalog.facts import Facts, restore_test_facts, restore_test_sentence
from seawall.catalog.recording import Both, Result, VerificationRecord
from seawall.errors import BackupMissing, VerificationFailed
from seawall.model import BackupLabel, RecoveryTarget
from seawall.postgres.binaries import Account
from seawall.restoretest import Assertion
from seawall.settings import Settings
from tasks.execution import Surroundings, execute, utc_now
from tasks.opening import can_help, file_of, opened, ring_of
from tasks.restore import binaries_of, workers_of


@task(
    name="restore-test",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=300,
    retry_condition_fn=can_help,
)
def test(
    settings: Settings,
    source: str,
    label: BackupLabel,
    assertions: Sequence[Assertion],
    seed: int,
    *,
    target: RecoveryTarget | None = None,
    job_id: UUID | None = None,
) -> Facts:
    """Restore one backup to a random later position and look at everything in it.

    Args:
        seed: chooses the position; recorded, so that the same test can be repeated.
        target: where to stop, if `drawn` chose that already.
        job_id: the job that this is a run of, if it is one.

    Raises:
        VerificationFailed: what was restored is wrong; the message says what.
    """

    def verb(around: Surroundings) -> Result:
        parent = settings.server.work_directory / "scratch"
        # The server's own account must reach it.
        parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with opened(settings) as repository, ring_of(settings) as ring:
            head = repository.source(source).head(label)
            report = restoretest.run(
                repository,
                source,
                ring=ring,
                binaries=binaries_of(settings, source, head.cluster.major_version),
                account=Account.for_servers(settings.server.account),
                parent=parent,
                target=target,
                label=label,
                assertions=assertions,
                now=around.now,
                rto=timedelta(hours=settings.server.rto_hours),
                randomness=random.Random(seed),  # noqa: S311 - chooses where to look, guards nothing
                observe=around.observe,
                workers=workers_of(settings, source),
            )
        if not report.good:
            raise VerificationFailed(restore_test_sentence(source, report))
        return Result(restore_test_facts(report, seed))

    record = Both.of(job_id, _record(settings, source, label))
    return execute(record, verb, settings=settings, title="restore-test", subject=source)


def drawn(settings: Settings, source: str, seed: int) -> tuple[BackupLabel, RecoveryTarget]:
    """A random position inside the recoverability window, and the backup from which it is reached.

    Raises:
        BackupMissing: the source has none.
    """
    randomness = random.Random(seed)  # noqa: S311 - chooses where to look, guards nothing
    with opened(settings) as repository:
        if not repository.source(source).labels():
            raise BackupMissing(f"{source} has no backup that could be tested")
        target = restoretest.random_target(repository, source, randomness)
        place = settings.server.work_directory / "scratch" / f"plan-{seed}"
        return restore.plan(repository, source, target, place, now=utc_now()).head.label, target


def _record(settings: Settings, source: str, label: BackupLabel) -> VerificationRecord | None:
    with Catalog.open(settings.catalog.url) as catalog, opened(settings) as repository:
        file = file_of(catalog, repository, source, label)
    return None if file is None else VerificationRecord(file.id, VerificationType.RESTORE_TEST)
