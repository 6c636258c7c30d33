"""Read a backup back and prove what it holds."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import processors, verify
from seawall.catalog import Catalog, anchors
from seawall.catalog.facts import Facts, verdict_facts, verdict_sentence
from seawall.catalog.recording import Both, Result, VerificationRecord
from seawall.errors import BackupMissing, VerificationFailed
from seawall.model import BackupLabel, Proof
from seawall.repository import Repository
from seawall.settings import Settings
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, file_of, opened, ring_of


@task(
    name="verify-backup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def check(
    settings: Settings, source: str, label: BackupLabel, up_to: Proof | None, job_id: UUID | None = None
) -> Facts:
    """Verify one backup set.

    Args:
        job_id: the job that this is a run of, if it is one.
        up_to: how far; as far as the keys on this host allow if None.

    Raises:
        VerificationFailed: something in it is wrong; the message says what.
    """
    level = up_to or deepest(settings)

    def verb(around: Surroundings) -> Result:
        with opened(settings) as repository, ring_of(settings) as ring:
            verdict = verify.check(
                repository.source(source),
                label,
                ring,
                up_to=level,
                observe=around.observe,
                now=around.now,
                clock=around.clock,
                workers=processors.wanted(settings.source(source).workers),
            )
            anchors.watched(around.catalog, repository, around.observe, now=around.now)
        if not verdict.good:
            raise VerificationFailed(verdict_sentence(source, verdict))
        return Result(verdict_facts(verdict))

    record = Both.of(job_id, _record(settings, source, label, level))
    return execute(record, verb, settings=settings, title="verify", subject=source)


def deepest(settings: Settings) -> Proof:
    """How far this host can prove: without a private key nothing can be decrypted, but every hash can be checked."""
    with ring_of(settings) as ring:
        can_read = any(key.has_secret for key in ring.list())
    return Proof.WAL_CONTINUOUS if can_read else Proof.HASH_GOOD


def _record(settings: Settings, source: str, label: BackupLabel, level: Proof) -> VerificationRecord | None:
    """A set that the catalog does not know (it was taken elsewhere) is verified all the same."""
    with Catalog.open(settings.catalog.url) as catalog, opened(settings) as repository:
        file = file_of(catalog, repository, source, label)
        return None if file is None else VerificationRecord.up_to(file.id, level)


def least_proved(settings: Settings, source: str) -> BackupLabel:
    """The listed backup set whose proof is oldest or missing.

    Raises:
        BackupMissing: the source has none.
    """
    with Catalog.open(settings.catalog.url) as catalog, opened(settings) as repository:
        labels = repository.source(source).labels()
        if not labels:
            raise BackupMissing(f"{source} has no backup that could be verified")
        return min(labels, key=lambda label: (_proved_at(catalog, repository, source, label), label.begun_at))


def _proved_at(catalog: Catalog, repository: Repository, source: str, label: BackupLabel) -> float:
    file = file_of(catalog, repository, source, label)
    verified_at: datetime | None = None if file is None else file.verified_at
    return 0.0 if verified_at is None else verified_at.timestamp()
