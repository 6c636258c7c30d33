"""Upkeep of storage locations: copies brought there, backups locked there, proofs renewed there, damage healed.

Each location is worked on by itself. One that is down is an alert, and neither the others nor the backups themselves
suffer from it; when it answers again, the next run brings it up to date and the alert is resolved.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from seawall import healing, locations, locks, losses, mirror, proofs, retention
from seawall.audit import PREFIX as AUDIT
from seawall.audit import AuditLog
from seawall.capacity import Room, room_in
from seawall.catalog.views import ObjectProof, Severity
from seawall.errors import (
    Cancelled,
    Damaged,
    LeaseHeld,
    NotARepository,
    Partial,
    SeawallError,
    StorageError,
    VerificationFailed,
)
from seawall.events import Noticed, Observer
from seawall.filling import filled
from seawall.healing import HealReport
from seawall.keys import KeyRing
from seawall.locks import Locker, LockReport
from seawall.mirror import MirrorPolicy, MirrorReport, Protection
from seawall.model import BackupLabel, Finding, Proof
from seawall.nearest import Copy, as_read, source_as_read, telling
from seawall.proofs import Budget, ProofReport
from seawall.repository import Repository, SourceArea
from seawall.repository.evidence import Evidence
from seawall.repository.lease import MIRROR
from seawall.repository.wal_lists import How
from seawall.retention.copies import Unwanted
from seawall.settings import PRIMARY, Settings
from seawall.storage.base import Storage
from seawall.storage.immutability import shall_lock
from seawall.watch import judge, known_name

# As long as a backup waits: a cleanup ends by itself, within minutes.
_CLEANUP_PATIENCE = timedelta(minutes=15)
# So many refusals in a row are no chance any more: runs begin each hour, and after each backup.
_BLOCKED = 3

if TYPE_CHECKING:
    from seawall.catalog import Catalog, Logbook

Known = dict[str, tuple[Proof | None, datetime]]


# ---- mirrors


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What became of one source's copies.

    Args:
        reports: by location.
        failures: why a location could not be brought up to date.
        locks: what became of the locks, by location, the primary among them; one that locks nothing is not in it.
        protection: of every listed backup, oldest first.
    """

    source: str
    reports: Mapping[str, MirrorReport]
    failures: Mapping[str, SeawallError]
    protection: tuple[Protection, ...]
    locks: Mapping[str, LockReport] = field(default_factory=dict)

    @property
    def unprotected(self) -> tuple[Protection, ...]:
        return tuple(one for one in self.protection if not one.protected)


def policy_of(settings: Settings, source: str) -> MirrorPolicy:
    """How many copies a source's backups shall have; a source that is not configured here has no mirrors."""
    configured = settings.sources.get(source)
    if configured is None:
        return MirrorPolicy(())
    return MirrorPolicy(configured.mirrors, configured.copies, timedelta(hours=configured.copy_within_hours))


def mirror_source(
    settings: Settings,
    repository: Repository,
    source: str,
    ring: KeyRing | None,
    catalog: Catalog | None,
    *,
    only: Sequence[str] = (),
    begin: bool = False,
    from_copies: bool = False,
    actor: str = "",
    now: datetime,
    observe: Observer,
) -> Mirrored:
    """Bring a source's copies up to date in every location that its policy names, and judge how it stands.

    What lies in the primary is locked there too, unless this is about some locations alone.

    Args:
        ring: lets WAL that no list names yet be proved before it is copied, if it holds a private key.
        catalog: is told what lies where, and of what is wrong; None tells nobody.
        only: of these locations alone.
        begin: whether an empty location becomes a copy; else it counts as down, because it may not be mounted.
        from_copies: the repository is read in other locations than the primary, which is gone or is to be filled.
        actor: who fills the primary, for its audit and the catalog's; this process if omitted.

    Raises:
        Cancelled: on request.
    """
    policy = policy_of(settings, source)
    reports: dict[str, MirrorReport] = {}
    failures: dict[str, SeawallError] = {}
    held = {} if from_copies else {PRIMARY: frozenset(repository.source(source).labels())}
    unwanted: dict[str, frozenset[BackupLabel]] = {}
    locked: dict[str, LockReport] = {}
    for name in only or policy.locations:
        try:
            locations.refuse_overlap(settings, name)
            with closing(locations.opened(settings, name, observe)) as storage:
                if begin:
                    mirror.begin(repository, storage)
                useless = unwanted_in(settings, repository, source, name, now)
                unwanted[name] = useless.sets
                locker = _locker(settings, repository, source, name, storage, now=now, observe=observe)
                room = room_in(storage, settings.location(name).storage.quota_bytes)
                reports[name], report = _mirror_to(
                    repository,
                    source,
                    storage,
                    ring,
                    observe=observe,
                    useless=useless,
                    locker=locker,
                    room=room,
                    forgets=name != PRIMARY,
                )
                if report is not None:
                    locked[name] = report
                held[name] = frozenset(SourceArea(storage, source).labels())
                if name == PRIMARY:
                    who, copies = actor or _holder(), repository.storage
                    filled(copies, storage, reports[name], catalog, actor=who, now=now, observe=observe)
        except Cancelled:
            raise
        except SeawallError as error:
            failures[name] = error
            observe.hear(Noticed("medium", "mirror-failed", f"{source} is not copied to {name}: {error.message}"))
    # They are left alone, and what they have counts all the same.
    for name in [name for name in policy.locations if only and name not in only]:
        if (there := _seen(settings, repository, source, name, observe)) is not None:
            held[name], unwanted[name] = there, unwanted_in(settings, repository, source, name, now).sets
    # Last: the copies must not wait for what may take long the first time.
    primary = (
        None if only or from_copies else secure_primary(settings, repository, source, None, now=now, observe=observe)
    )
    if primary is not None:
        locked[PRIMARY] = primary
    heads, _ = repository.source(source).readable_heads()
    protection = mirror.protection(policy, heads, held, now=now, unwanted=unwanted)
    result = Mirrored(source, reports, failures, protection, locked)
    if catalog is not None:
        _record_mirrored(catalog, repository, settings, result, held, now=now)
    return result


def _seen(
    settings: Settings, repository: Repository, source: str, name: str, observe: Observer
) -> frozenset[BackupLabel] | None:
    """What is listed in a location; one that does not answer has nothing that could be counted."""
    try:
        with closing(locations.opened(settings, name, observe)) as storage:
            mirror.refuse_other_repository(repository, storage)
            return frozenset(SourceArea(storage, source).labels())
    except Cancelled:
        raise
    except SeawallError as error:
        observe.hear(Noticed("medium", "location-silent", f"location {name} is not asked for copies: {error.message}"))
        return None


def secure_primary(
    settings: Settings,
    repository: Repository,
    source: str,
    catalog: Logbook | None,
    *,
    now: datetime,
    observe: Observer,
) -> LockReport | None:
    """Lock what a source has in the primary location; None where nothing shall be locked, or the place locks nothing.

    A lock that fails is in the report and an alert: the backups stand without it.

    Args:
        catalog: is told of what is wrong; None tells nobody.

    Raises:
        Cancelled: on request.
    """
    locker = _locker(settings, repository, source, PRIMARY, repository.storage, now=now, observe=observe)
    report = _secured(locker, arrivals=True) if isinstance(locker, Locker) else locker
    if report is not None and report.problem:
        text = f"{source} is not wholly locked in the primary location: {report.problem}"
        observe.hear(Noticed("medium", "copies-not-locked", text))
    if report is not None and catalog is not None:
        judge(catalog, "copies-not-locked", f"{source} {PRIMARY}", report.problem, now)
    return report


def lock_arrivals(
    settings: Settings, repository: Repository, source: str, catalog: Logbook, *, now: datetime, observe: Observer
) -> LockReport | None:
    """Lock the WAL and the audit that came to the primary since the last pass; None where nothing shall be locked.

    It is the quick part of `secure_primary`, for between two of its passes: a lock that fails raises the same alert,
    which only a whole pass takes back.

    Raises:
        Cancelled: on request.
    """
    locker = _locker(settings, repository, source, PRIMARY, repository.storage, now=now, observe=observe)
    report = _tried(locker.catch_up) if isinstance(locker, Locker) else locker
    if report is not None and report.problem:
        judge(catalog, "copies-not-locked", f"{source} {PRIMARY}", report.problem, now)
    return report


def unwanted_in(settings: Settings, repository: Repository, source: str, location: str, now: datetime) -> Unwanted:
    """What the location's own retention would let go again at once."""
    if source not in settings.sources:
        return Unwanted()
    return retention.unwanted(repository.source(source), retention.policy_for(settings, source, location), now=now)


def _mirror_to(
    repository: Repository,
    source: str,
    storage: Storage,
    ring: KeyRing | None,
    *,
    observe: Observer,
    useless: Unwanted,
    locker: Locker | LockReport | None,
    room: Room,
    forgets: bool,
) -> tuple[MirrorReport, LockReport | None]:
    evidence = Evidence([repository.storage], ring)
    there = SourceArea(storage, source)
    # What is not this repository is refused before anything, even a lease, is written there.
    mirror.refuse_other_repository(repository, storage)
    # Before the plan: nothing that it takes for present may go before the run is over.
    with there.lease(_holder(), MIRROR, patience=_CLEANUP_PATIENCE, wait=observe.wait) as held:
        chosen = mirror.survey(
            repository, source, storage, evidence, unwanted=useless.sets, unwanted_wal=useless.segments
        )
        if not forgets:
            # In the primary, a tail that no copy has yet is the newest WAL, and not one that was superseded; and its
            # audit is longer than theirs.
            chosen = replace(chosen, forget=(), other_audit="")
        copied = locker.copied if isinstance(locker, Locker) else mirror.nobody_is_told
        early = _tried(locker.catch_up) if isinstance(locker, Locker) else LockReport()
        origin = source_as_read(repository, source, ring, observe).storage
        report = mirror.run(chosen, origin, storage, evidence, observe=observe, held=held, copied=copied, room=room)
        if not isinstance(locker, Locker):
            return report, locker
        locked = _secured(locker)
        return report, replace(locked, problem=locked.problem or early.problem)


def _locker(
    settings: Settings,
    repository: Repository,
    source: str,
    name: str,
    storage: Storage,
    *,
    now: datetime,
    observe: Observer,
) -> Locker | LockReport | None:
    """What locks copies in a location, or why nothing can; None where nothing shall or the location locks nothing."""
    if source not in settings.sources or not shall_lock(settings.location(name).storage, storage):
        return None
    policy, evidence = retention.policy_for(settings, source, name), Evidence([storage, repository.storage])
    try:
        here, _ = repository.source(source).readable_heads()
        there, _ = SourceArea(storage, source).readable_heads()
        heads = {head.label: head for head in (*here, *there)}
        at_most = timedelta(days=settings.location(name).storage.lock_at_most_days)
        return locks.locker_for(
            storage, source, list(heads.values()), policy, evidence, at_most=at_most, now=now, observe=observe
        )
    except Cancelled:
        raise
    except SeawallError as error:
        return locks.failed(error)


def _secured(locker: Locker, *, arrivals: bool = False) -> LockReport:
    return _tried(lambda: locker.secure(arrivals=arrivals))


def _tried(act: Callable[[], LockReport]) -> LockReport:
    """Locks that fail leave the copies as they are: those count, and the alert says that they are not locked."""
    try:
        return act()
    except Cancelled:
        raise
    except SeawallError as error:
        return locks.failed(error)


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _record_mirrored(
    catalog: Catalog,
    repository: Repository,
    settings: Settings,
    result: Mirrored,
    held: Mapping[str, frozenset[BackupLabel]],
    *,
    now: datetime,
) -> None:
    for name, labels in held.items():
        catalog.record_copies(repository.id, result.source, name, map(str, labels), now=now)
    for name, locked in result.locks.items():
        judge(catalog, "copies-not-locked", f"{result.source} {name}", locked.problem, now)
    for name in (*result.reports, *result.failures):
        subject = f"{result.source} {name}"
        report, error = result.reports.get(name), result.failures.get(name)
        _judge_blocked(catalog, subject, error if isinstance(error, LeaseHeld) else None, now)
        if isinstance(error, LeaseHeld):
            continue
        wrong = error.message if error else "; ".join(report.left.values()) if report and report.left else ""
        judge(catalog, "mirror-failed", subject, wrong, now)
        other = report.left.get(AUDIT, "") if report else ""
        if report is not None:
            judge(catalog, "audit-forked", subject, other, now, severity=Severity.CRITICAL)
        late = [str(one.label) for one in result.protection if name in one.late]
        hours = settings.source(result.source).copy_within_hours if result.source in settings.sources else 0
        text = f"{len(late)} backups of {result.source} are not in {name} after {hours} hours: {', '.join(late[:5])}"
        judge(catalog, "mirror-late", subject, text if late else "", now)


def _judge_blocked(catalog: Catalog, subject: str, held: LeaseHeld | None, now: datetime) -> None:
    """Once, somebody else brings copies there at this moment, or cleans up; again and again, something is stuck.

    The alert itself counts: as long as it is low, it only remembers, and no channel that tells what is grave tells it.
    """
    if held is None:
        catalog.resolve_alerts("mirror-blocked", subject=subject, now=now)
        return
    known = (one for one in catalog.alerts() if (one.alert_type, one.subject) == ("mirror-blocked", subject))
    times = 1 + next((one.occurrences for one in known), 0)
    severity = Severity.HIGH if times >= _BLOCKED else Severity.LOW
    text = f"{subject}: nothing was copied {times} times in a row: {held.message}"
    catalog.raise_alert("mirror-blocked", severity, text, subject=subject, now=now)


def mirror_failure(results: Sequence[Mirrored]) -> SeawallError | None:
    """The error that stands for locations that could not be brought up to date; None if all were."""
    failed = [f"{one.source} to {name}: {error.message}" for one in results for name, error in one.failures.items()]
    failed += [
        f"{one.source} to {name}: {len(report.left)} objects are left"
        for one in results
        for name, report in one.reports.items()
        if report.left
    ]
    if not failed:
        return None
    return Partial(
        f"not everything was copied: {'; '.join(failed)}",
        hint="The backups themselves stand, and the next run goes on. `seawall location check` says what is wrong.",
    )


# ---- proofs and healing


@dataclass(frozen=True, slots=True)
class Proved:
    """What one location's copy of a source proved to be, what was healed in it, and what should be there and is not."""

    source: str
    location: str
    report: ProofReport
    left: int
    healed: HealReport = field(default_factory=HealReport)
    missed: tuple[Finding, ...] = ()

    @property
    def good(self) -> bool:
        """Whether everything that was read is sound now, and nothing is missed."""
        return self.is_sound and not self.missed

    @property
    def is_sound(self) -> bool:
        return self.report.good or bool(self.healed.healed and not self.healed.left)


def prove(
    settings: Settings,
    source: str,
    ring: KeyRing,
    catalog: Catalog,
    budget: Budget,
    *,
    location: str = PRIMARY,
    up_to: Proof = Proof.DECRYPTABLE,
    heal: bool = True,
    actor: str,
    now: datetime,
    observe: Observer,
    workers: int = 2,
) -> Proved:
    """Renew the oldest proofs of a source in one location within a budget; heal what is found wrong, if told to.

    Args:
        catalog: remembers the proofs; without its memory everything counts as never proved.

    Raises:
        StorageError: the location does not answer; no proof is given.
        Cancelled: on request.
    """
    until = None if budget.time is None else time.monotonic() + budget.time.total_seconds()
    with closing(locations.opened(settings, location, observe)) as storage:
        repository = Repository.open(storage)
        area = repository.source(source)
        readable = SourceArea(as_read(Copy(location, storage), ring, observe), source)
        known = known_proofs(catalog, repository.id, location)
        objects = list(proofs.objects_of(readable, known))
        chosen = proofs.plan(objects, budget, now)
        report = proofs.run(chosen, readable, ring, up_to=up_to, until=until, now=now, observe=observe, workers=workers)
        if location == PRIMARY:
            # Mirrors are given the lists by the next copy.
            area.wal.lists.write(report.unlisted, How.OPENED)
        within = policy_of(settings, source).within
        missed = losses.missed(settings, area, location, within=within, now=now, observe=observe)
        healed = HealReport()
        if heal and (missed or not report.good):
            with closing(locations.opened(settings, location, observe, deleting=True)) as at:
                lost = [finding.subject for finding in missed if finding.code in losses.HEALABLE]
                healed = _heal(
                    settings, area, Copy(location, at), report, ring, lost=lost, actor=actor, now=now, observe=observe
                )
        _remember(catalog, repository.id, location, report, healed, now=now)
        if report.proved:
            catalog.note_proof(known_name(catalog, location, storage.url), now=now)
        gone = {name for name in known if name.startswith(area.layout.root)} - {one.name for one in objects}
        catalog.forget_proofs(repository.id, location, gone)
    mended = {one.name for one in healed.healed}
    still = tuple(finding for finding in missed if finding.subject not in mended)
    result = Proved(source, location, report, chosen.left + report.skipped, healed, still)
    judge(catalog, "copy-damaged", f"{source} {location}", "" if result.good else _damage(result), now)
    if location == PRIMARY and result.good:
        # It is filled by hand and once; whatever was left then is there now, or not kept any more.
        catalog.resolve_alerts("mirror-failed", subject=f"{source} {PRIMARY}", now=now)
    return result


def known_proofs(catalog: Catalog, repository_id: str, location: str) -> Known:
    """What the catalog remembers of a location's objects."""
    return {
        name: (None if one.proof is None else Proof(one.proof), one.proved_at)
        for name, one in catalog.object_proofs(repository_id, location).items()
    }


def _heal(
    settings: Settings,
    area: SourceArea,
    at: Copy,
    report: ProofReport,
    ring: KeyRing,
    *,
    lost: Sequence[str],
    actor: str,
    now: datetime,
    observe: Observer,
) -> HealReport:
    names = {*report.wrong, *lost}
    for verdict in report.verdicts:
        if not verdict.good:
            names |= set(healing.suspects(area, verdict))
    return heal_objects(settings, at, sorted(names), ring, actor=actor, now=now, observe=observe)


def heal_objects(
    settings: Settings,
    at: Copy,
    names: Sequence[str],
    ring: KeyRing | None,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
) -> HealReport:
    """Replace what is damaged or missing of these objects in a location by proved copies from the other locations.

    Raises:
        StorageError: the location itself, or the primary with its audit, does not answer.
    """
    opened: list[Copy] = []
    try:
        for name in locations.in_order(settings):
            if name != at.name:
                _open_into(opened, settings, name, observe)
        copies = [at, *opened]
        primary = next((copy for copy in copies if copy.name == PRIMARY), None)
        if primary is None:
            raise StorageError("nothing is healed: the primary location, where the audit lies, cannot be opened")
        evidence = Evidence(telling(copies), ring)
        audit = AuditLog(primary.storage)
        report = healing.heal(at, copies, names, evidence, audit, actor=actor, now=now, observe=observe)
        _lock_healed(settings, primary.storage, at.name, report, now=now, observe=observe)
        return report
    finally:
        for copy in opened:
            copy.storage.close()


def _lock_healed(
    settings: Settings, primary: Storage, location: str, report: HealReport, *, now: datetime, observe: Observer
) -> None:
    """What was put in place is locked at once, as what it stands for: else it could be taken away again.

    The credentials are those that write: those that delete need not be able to lock.
    """
    by_source: dict[str, dict[str, str]] = {}
    for one in report.healed:
        source = one.name.split("/")[1] if one.name.startswith("sources/") else ""
        by_source.setdefault(source, {})[one.name] = one.stored_as
    for source, healed in by_source.items():
        with closing(locations.opened(settings, location, observe)) as storage:
            locker = _locker(settings, Repository.open(primary), source, location, storage, now=now, observe=observe)
            renewed = _tried(partial(locker.renew, healed)) if isinstance(locker, Locker) else locker
            problem = renewed.problem if renewed is not None else ""
        if problem:
            text = f"what was healed of {source} in {location} is not locked: {problem}"
            observe.hear(Noticed("high", "copies-not-locked", text))


def _open_into(opened: list[Copy], settings: Settings, name: str, observe: Observer) -> None:
    """A location that cannot be opened gives nothing; the others may."""
    try:
        opened.append(Copy(name, locations.opened(settings, name, observe)))
    except (StorageError, NotARepository, Damaged) as error:
        observe.hear(Noticed("medium", "location-silent", f"location {name} cannot be opened: {error.message}"))


def _remember(
    catalog: Catalog, repository_id: str, location: str, report: ProofReport, healed: HealReport, *, now: datetime
) -> None:
    mended = {one.name: Proof.HASH_GOOD for one in healed.healed}
    known = [ObjectProof(name, proof.value, now) for name, proof in {**report.proved, **mended}.items()]
    known += [ObjectProof(name, None, now, why) for name, why in report.wrong.items() if name not in mended]
    catalog.record_proofs(repository_id, location, known)


def _damage(result: Proved) -> str:
    report, missed = result.report, {finding.subject: finding.message for finding in result.missed}
    damaged = result.healed.left or report.wrong or {finding.subject: finding.message for finding in report.findings}
    wrong = missed if result.is_sound else {**damaged, **missed}
    return f"{len(wrong)} objects are wrong: " + "; ".join(f"{name}: {why}" for name, why in list(wrong.items())[:5])


def proof_failure(results: Sequence[Proved]) -> VerificationFailed | None:
    """The error that stands for copies that are not sound; None if all that was read is."""
    bad = [f"{one.source} in {one.location}: {_damage(one)}" for one in results if not one.good]
    if not bad:
        return None
    hint = "With copies elsewhere, `seawall verify SOURCE --location all --heal` replaces what is sound in one of them."
    return VerificationFailed(
        "; ".join(bad), hint=f"{hint} Else take a new full backup now, and keep this one until then."
    )
