"""Read a backup back and prove what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import processors, verify
from seawall.catalog import BackupFile, Catalog, anchors
from seawall.catalog.facts import Facts, verdict_facts, verdict_sentence
from seawall.catalog.recording import Both, Result, VerificationRecord
from seawall.errors import BackupMissing, Partial, SeawallError, VerificationFailed
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Proof, Verdict
from seawall.nearest import source_as_read
from seawall.repository import Repository
from seawall.settings import PRIMARY, Settings
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, file_of, note_primary_down, opened, opened_origin, read_from, ring_of


@task(
    name="verify-backup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def check(
    settings: Settings,
    source: str,
    label: BackupLabel,
    up_to: Proof | None,
    job_id: UUID | None = None,
    *,
    copies: bool = False,
) -> Facts:
    """Verify one backup set.

    Args:
        job_id: the job that this is a run of, if it is one.
        up_to: how far; as far as the keys on this host allow if None.
        copies: while the primary location is gone, verify what the other locations hold. That is told under `partial`
            and recorded as such: it is no proof of the primary.

    Raises:
        VerificationFailed: something in it is wrong; the message says what.
        SeawallError: why nothing can be read.
    """
    level = up_to or deepest(settings)

    def verb(around: Surroundings) -> Result:
        with ExitStack() as stack:
            ring = stack.enter_context(ring_of(settings))
            reading = _reading(settings, around.observe, ring, around.catalog, copies=copies)
            repository, gone = stack.enter_context(reading)
            verdict = verify.check(
                source_as_read(repository, source, ring, around.observe),
                label,
                ring,
                up_to=level,
                observe=around.observe,
                now=around.now,
                clock=around.clock,
                workers=processors.wanted(settings.source(source).workers),
            )
            where = read_from(repository)
            if gone is None:
                anchors.watched(around.catalog, repository, around.observe, now=around.now)
            else:
                note_primary_down(around.catalog, gone, around.now)
        if not verdict.good:
            raise VerificationFailed(_sentence(source, verdict, where))
        lacking = None if gone is None else _of_copies(where, gone)
        return Result({**verdict_facts(verdict), "read_from": list(where)}, lacking=lacking)

    record = Both.of(job_id, _record(settings, source, label, level, copies=copies))
    return execute(record, verb, settings=settings, title="verify", subject=source)


@contextmanager
def _reading(
    settings: Settings, observe: Observer, ring: KeyRing | None, catalog: Catalog, *, copies: bool
) -> Iterator[tuple[Repository, SeawallError | None]]:
    """The primary; where that is gone and copies may stand in, those, and why."""
    if copies:
        with opened_origin(settings, observe, ring, catalog) as found:
            yield found
        return
    with opened(settings) as repository:
        yield repository, None


def _sentence(source: str, verdict: Verdict, where: Sequence[str]) -> str:
    told = verdict_sentence(source, verdict)
    return told if PRIMARY in where else f"as read in {' and '.join(where)}: {told}"


def _of_copies(where: Sequence[str], gone: SeawallError) -> Partial:
    return Partial(
        f"the primary location does not answer, verified were the copies in {' and '.join(where)}: {gone.message}",
        hint="What lies in the primary is not proved; it is verified when it answers again.",
    )


def deepest(settings: Settings) -> Proof:
    """How far this host can prove: without a private key nothing can be decrypted, but every hash can be checked."""
    with ring_of(settings) as ring:
        can_read = any(key.has_secret for key in ring.list())
    return Proof.WAL_CONTINUOUS if can_read else Proof.HASH_GOOD


def _record(
    settings: Settings, source: str, label: BackupLabel, level: Proof, *, copies: bool
) -> VerificationRecord | None:
    """A set that the catalog does not know (it was taken elsewhere) is verified all the same."""
    with ExitStack() as stack:
        catalog = stack.enter_context(Catalog.open(settings.catalog.url))
        repository, _ = stack.enter_context(_reading(settings, Observer(), None, catalog, copies=copies))
        file = file_of(catalog, repository, source, label)
        return None if file is None else VerificationRecord.up_to(file.id, level)


def least_proved(settings: Settings, source: str) -> BackupLabel:
    """The listed backup set whose proof is oldest or missing; of the copies, if the primary is gone.

    Raises:
        BackupMissing: the source has none.
        SeawallError: why nothing can be read.
    """
    with ExitStack() as stack:
        catalog = stack.enter_context(Catalog.open(settings.catalog.url))
        repository, gone = stack.enter_context(_reading(settings, Observer(), None, catalog, copies=True))
        labels = repository.source(source).labels()
        if not labels:
            raise BackupMissing(f"{source} has no backup that could be verified")
        files = {label: file_of(catalog, repository, source, label) for label in labels}
        proved_at = _read_at if gone else _proved_at
        return min(labels, key=lambda label: (proved_at(catalog, files[label]), label.begun_at))


def _proved_at(_catalog: Catalog, file: BackupFile | None) -> float:
    verified_at: datetime | None = None if file is None else file.verified_at
    return 0.0 if verified_at is None else verified_at.timestamp()


def _read_at(catalog: Catalog, file: BackupFile | None) -> float:
    """As `_proved_at`, or when copies of it were: else one and the same would be read again and again."""
    ends = () if file is None else catalog.verifications(file.id, limit=1)
    read = [one.verification_end.timestamp() for one in ends if one.verification_end is not None]
    return max([_proved_at(catalog, file), *read])
