"""Upkeep of storage locations: copies, proofs, health."""

from __future__ import annotations

from contextlib import ExitStack, closing
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import keepers, lockprobe, processors, upkeep, watch
from seawall.catalog.facts import Facts
from seawall.catalog.recording import ExecutionRecord, Result
from seawall.errors import NotARepository, Partial, SeawallError, StorageError
from seawall.locations import in_order
from seawall.model import Proof
from seawall.proofs import Budget
from seawall.settings import Settings
from seawall.storage import open_storage
from seawall.storage.immutability import shall_lock
from seawall.upkeep import Mirrored, Proved
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, note_primary_down, opened_origin, ring_of
from tasks.verify import deepest


def mirrored_or_locked(settings: Settings) -> list[str]:
    """The sources that a run of `mirror` is about when it names none."""
    with closing(open_storage(settings.repository)) as storage:
        locked = shall_lock(settings.repository, storage)
    return [one.name for one in settings.sources.values() if one.mirrors or locked]


@task(name="mirror", cache_policy=NO_CACHE, persist_result=False)
def mirror(settings: Settings, sources: list[str], job_id: UUID | None) -> Facts:
    """Bring copies up to date in every location that sources name; the next run goes on where this one stopped.

    Where the primary is gone, the others are brought up to date from each other; that is told under `partial`.

    Raises:
        Partial: a location did not answer, or something could not be copied; the backups themselves stand.
        SeawallError: why the primary cannot be opened, where no other location can stand in.
    """

    def verb(around: Surroundings) -> Result:
        with ExitStack() as stack:
            ring = stack.enter_context(ring_of(settings))
            opening = opened_origin(settings, around.observe, ring, around.catalog)
            repository, gone = stack.enter_context(opening)
            if gone is not None:
                note_primary_down(around.catalog, gone, around.now)
            results = [
                upkeep.mirror_source(
                    settings, repository, name, ring, around.catalog,
                    from_copies=gone is not None, actor=around.actor, now=around.now, observe=around.observe,
                )
                for name in sources
            ]  # fmt: skip
        failure = upkeep.mirror_failure(results)
        if failure is not None:
            raise failure
        return Result(
            {one.source: _mirrored(one) for one in results}, lacking=None if gone is None else _among_copies(gone)
        )

    record = None if job_id is None else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="mirror", subject=",".join(sources))


def _among_copies(gone: SeawallError) -> Partial:
    return Partial(
        f"the primary location does not answer, copies were taken from the other locations alone: {gone.message}",
        hint="What only the primary has comes when it answers again. If it is lost, see docs/how-to/locations.md.",
    )


def _mirrored(result: Mirrored) -> dict[str, object]:
    return {
        "locations": {
            name: {"objects": report.objects, "stored_bytes": report.stored_bytes, "committed": list(report.committed)}
            for name, report in result.reports.items()
        },
        "not_locked": {name: report.problem for name, report in result.locks.items() if report.problem},
        "unprotected": [str(one.label) for one in result.unprotected],
    }


@task(
    name="renew-proofs",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def renew_proofs(settings: Settings, sources: list[str], budget: str, job_id: UUID | None) -> Facts:
    """Read the objects whose proofs are oldest, in each location as much as the budget admits, and heal what is wrong.

    Args:
        budget: an amount such as `50GB` or a time such as `30m`, for each source in each location.

    Raises:
        VerificationFailed: something is wrong that could not be healed.
        StorageError: a location did not answer; the others were read.
    """
    admitted = Budget.parse(budget)
    up_to = Proof.HASH_GOOD if deepest(settings) is Proof.HASH_GOOD else Proof.DECRYPTABLE

    def verb(around: Surroundings) -> Result:
        results: list[Proved] = []
        silent: list[SeawallError] = []
        with ring_of(settings) as ring:
            for source in sources:
                mirrors = upkeep.policy_of(settings, source).locations
                for location in (name for name in in_order(settings) if name in ("primary", *mirrors)):
                    try:
                        results.append(
                            upkeep.prove(
                                settings, source, ring, around.catalog, admitted, location=location, up_to=up_to,
                                actor=around.actor, now=around.now, observe=around.observe,
                                workers=processors.wanted(settings.source(source).workers),
                            )
                        )  # fmt: skip
                    except (StorageError, NotARepository) as error:
                        silent.append(error)
        failure = upkeep.proof_failure(results) or next(iter(silent), None)
        if failure is not None:
            raise failure
        return Result({"proved": [_proved(one) for one in results]})

    record = None if job_id is None else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="renew-proofs", subject=",".join(sources))


def _proved(result: Proved) -> dict[str, object]:
    return {
        "source": result.source,
        "location": result.location,
        "objects": len(result.report.proved),
        "stored_bytes": result.report.stored_bytes,
        "left": result.left,
        "healed": [one.name for one in result.healed.healed],
        "missed": [one.subject for one in result.missed],
    }


@task(name="check-locations", cache_policy=NO_CACHE, persist_result=False)
def check_locations(settings: Settings, job_id: UUID | None) -> Facts:
    """Try every location and measure what lies there; one that is down, full soon or misruled is an alert of its own.

    Raises:
        SeawallError: what the first location that is down answered.
    """

    def verb(around: Surroundings) -> Result:
        # First, and for every flow: who would tell of what is found?
        keepers.judge_all(settings, around.catalog, around.now)
        reports = watch.check_locations(settings, around.catalog, now=around.now, observe=around.observe)
        for report in reports:
            if report.error is not None:
                raise report.error
        return Result(
            {
                one.name: {
                    "write_seconds": round(one.write_seconds, 4),
                    "read_seconds": round(one.read_seconds, 4),
                    "used_bytes": None if one.usage is None else one.usage.used_bytes,
                    "free_bytes": one.free_bytes,
                    "findings": [f"{finding.severity}: {finding.message}" for finding in one.findings],
                }
                for one in reports
            }
        )

    record = None if job_id is None else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="location-health", subject="site")


@task(name="probe-locks", cache_policy=NO_CACHE, persist_result=False)
def probe_locks(settings: Settings, job_id: UUID | None) -> Facts:
    """Attack a locked canary in every location; one that locks nothing is told, and one that is down stops no other.

    Raises:
        LockBroken: a locked object could be changed.
        SeawallError: why nothing is known of the first location that did not answer.
    """

    def verb(around: Surroundings) -> Result:
        reports = watch.probe_locks(settings, around.catalog, now=around.now, observe=around.observe)
        failure = lockprobe.failure(reports)
        if failure is not None:
            raise failure
        return Result({one.name: {"state": one.state.value, "sentence": one.sentence} for one in reports})

    record = None if job_id is None else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="immutability-probe", subject="site")
