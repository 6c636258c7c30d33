"""Retention where a repository has copies: each location keeps its sets by its own rules.

A backup stays here until each location that would keep it longer has it: else a short retention here and a mirror that
fails for as long would lose what the long retention there promised. What a location would let go again at once is not
brought there. A cleanup there keeps whatever the primary's sets refer to, because a mirror may be bringing them.

Where the primary does not answer, copies are cleaned all the same, recorded in their own locations and more carefully:
see `collect`. The next cleanup with the primary carries the records into its audit, and finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime

from seawall import locations
from seawall.audit import AuditApart, AuditLog, carry
from seawall.errors import NotARepository, StorageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Head
from seawall.nearest import Nearest
from seawall.repository import Repository, SourceArea
from seawall.retention.collect import Collected, collect
from seawall.retention.decide import RetentionPlan, plan
from seawall.retention.marks import expire, plan_for
from seawall.retention.policy import RetentionPolicy, policy_for
from seawall.settings import Settings


def awaited_by(
    heads: Sequence[Head],
    policies: Mapping[str, RetentionPolicy],
    there: Mapping[str, AbstractSet[BackupLabel]],
    *,
    now: datetime,
) -> dict[BackupLabel, tuple[str, ...]]:
    """The locations that would keep a set and have none of it, by set; pure.

    Args:
        heads: of the sets listed here.
        policies: of each location that shall hold copies.
        there: the sets that each location has; one that did not answer is left out, and lacks everything.
    """
    found: dict[BackupLabel, tuple[str, ...]] = {}
    for name, policy in policies.items():
        for decision in plan(name, heads, (), policy, now=now, at_rest=True).keep:
            if decision.label not in there.get(name, frozenset()):
                found[decision.label] = (*found.get(decision.label, ()), name)
    return found


def awaited(
    settings: Settings, source: str, heads: Sequence[Head], *, now: datetime, observe: Observer
) -> dict[BackupLabel, tuple[str, ...]]:
    """Ask the locations that mirror a source what they have, and say what they still wait for.

    A location that does not answer waits for all that it would keep.
    """
    names = settings.sources[source].mirrors if source in settings.sources else ()
    there = {}
    for name in names:
        try:
            there[name] = _labels_in(settings, name, source, observe)
        except StorageError as error:
            text = f"location {name} does not answer; what it would keep stays here: {error.message}"
            observe.hear(Noticed("high", "location-silent", text))
    return awaited_by(heads, {name: policy_for(settings, source, name) for name in names}, there, now=now)


def _labels_in(settings: Settings, name: str, source: str, observe: Observer) -> frozenset[BackupLabel]:
    with closing(locations.opened(settings, name, observe)) as storage:
        try:
            return frozenset(Repository.open(storage).source(source).labels(with_expired=True))
        except NotARepository:
            return frozenset()


@dataclass(frozen=True, slots=True)
class Unwanted:
    """What a location would let go again at once: sets, and segments of WAL."""

    sets: frozenset[BackupLabel] = frozenset()
    segments: frozenset[str] = frozenset()


def unwanted(area: SourceArea, policy: RetentionPolicy, *, now: datetime) -> Unwanted:
    """What of a source a location with such a policy would not keep; reads the primary.

    Args:
        area: of the primary.
    """
    made = plan_for(area, policy, now=now, at_rest=True)
    segments = area.wal.segments()
    useless = {name for name in segments for wal in made.wal if wal.first <= name <= wal.last}
    return Unwanted(frozenset(decision.label for decision in made.expire), frozenset(useless))


# Of a source, in the repository of an id, in a location: the sets that were found wrong, and why (`catalog.doubts`).
Doubts = Callable[[SourceArea, str, str], Mapping[BackupLabel, str]]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What retention decided and did in one location; `marked` counts new marks."""

    plan: RetentionPlan
    marked: int
    collected: Collected


def clean_copy(
    settings: Settings,
    primary: Repository,
    source: str,
    location: str,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
    dry_run: bool = False,
    doubts: Doubts | None = None,
) -> Cleaned:
    """Both steps of retention for a source's copies in another location, recorded in the primary's audit.

    What was recorded in the location while the primary did not answer is carried into that audit first.

    Args:
        doubts: which sets there were found wrong when they were read back.

    Raises:
        NotARepository, ClusterMismatch: no copy of the primary lies there.
        SettingsError: it is the same place as another location.
        Damaged: one of the two audits is broken.
        ClockWentBackwards, LeaseHeld, LeaseLost, RetentionRefused: nothing, or no more, is let go.
        StorageError: a location does not answer.
    """
    with _copy(settings, location, observe) as copy:
        locations.refuse_other(primary, copy)
        if not dry_run:
            carry(copy.storage, primary.storage, now=now)
        cleaning = _Cleaning(settings, source, location, AuditLog(primary.storage), primary.source(source), doubts)
        return cleaning.run(copy, actor=actor, now=now, observe=observe, dry_run=dry_run)


def clean_copy_alone(
    settings: Settings,
    others: Nearest,
    source: str,
    location: str,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
    dry_run: bool = False,
    doubts: Doubts | None = None,
) -> Cleaned:
    """As `clean_copy`, while the primary does not answer: recorded in the location itself.

    Marks are made as ever, since they can be taken back. For good, only those sets go that a further location lists.

    Args:
        others: the locations that answer and hold one repository (`locations.others`).
        doubts: which sets there were found wrong when they were read back.

    Raises:
        NotARepository: the location is none of them.
        SettingsError, Damaged, ClockWentBackwards, LeaseHeld, LeaseLost, RetentionRefused, StorageError: see there.
    """
    if location not in others.names:
        raise NotARepository(
            f"location {location} does not answer, or holds another repository than {' and '.join(others.names)}",
            hint="`seawall location check` says what is wrong with it.",
        )
    further = others.without(location)
    origin = None if further is None else Repository.open(further).source(source)
    with _copy(settings, location, observe) as copy:
        cleaning = _Cleaning(settings, source, location, AuditApart(copy.storage), origin, doubts, alone=True)
        return cleaning.run(copy, actor=actor, now=now, observe=observe, dry_run=dry_run)


@contextmanager
def _copy(settings: Settings, location: str, observe: Observer) -> Iterator[Repository]:
    # Its rules may keep less than those of the place that it is as well.
    locations.refuse_overlap(settings, location)
    with closing(locations.opened(settings, location, observe, deleting=True)) as storage:
        yield Repository.open(storage)


@dataclass(frozen=True, slots=True)
class _Cleaning:
    """Both steps in one location; `origin` and `alone` as in `collect`."""

    settings: Settings
    source: str
    location: str
    audit: AuditLog
    origin: SourceArea | None
    doubts: Doubts | None = None
    alone: bool = False

    def run(self, copy: Repository, *, actor: str, now: datetime, observe: Observer, dry_run: bool) -> Cleaned:
        policy = policy_for(self.settings, self.source, self.location)
        area = copy.source(self.source)
        unsound = self.doubts(area, copy.id, self.location) if self.doubts else {}
        made = plan_for(area, policy, now=now, origin=self.origin, unsound=unsound)
        marked = 0 if dry_run else expire(copy, made, actor=actor, now=now, audit=self.audit, origin=self.origin)
        collected = collect(
            copy, self.source, actor=actor, now=now, observe=observe, dry_run=dry_run, audit=self.audit,
            origin=self.origin, policy=policy, unsound=unsound, alone=self.alone,
        )  # fmt: skip
        return Cleaned(made, marked, collected)
