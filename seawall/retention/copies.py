"""Retention where a repository has copies: each location keeps its sets by its own rules.

A backup stays here until each location that would keep it longer has it: else a short retention here and a mirror that
fails for as long would lose what the long retention there promised. What a location would let go again at once is not
brought there. A cleanup there keeps whatever the primary's sets refer to, because a mirror may be bringing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from seawall import locations
from seawall.audit import AuditLog
from seawall.errors import ClusterMismatch, NotARepository, StorageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Head
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
) -> Cleaned:
    """Both steps of retention for a source's copies in another location, recorded in the primary's audit.

    Raises:
        NotARepository, ClusterMismatch: no copy of the primary lies there.
        SettingsError: it is the same place as another location.
        ClockWentBackwards, LeaseHeld, LeaseLost, RetentionRefused: nothing, or no more, is let go.
        StorageError: a location does not answer.
    """
    # Its rules may keep less than those of the place that it is as well.
    locations.refuse_overlap(settings, location)
    with closing(locations.opened(settings, location, observe, deleting=True)) as storage:
        copy = Repository.open(storage)
        if copy.id != primary.id:
            raise ClusterMismatch(f"{storage.url} is repository {copy.id}, not a copy of {primary.id}")
        policy, origin = policy_for(settings, source, location), primary.source(source)
        audit = AuditLog(primary.storage)
        made = plan_for(copy.source(source), policy, now=now, origin=origin)
        marked = 0 if dry_run else expire(copy, made, actor=actor, now=now, audit=audit, origin=origin)
        collected = collect(
            copy,
            source,
            actor=actor,
            now=now,
            observe=observe,
            dry_run=dry_run,
            audit=audit,
            origin=origin,
            policy=policy,
        )
    return Cleaned(made, marked, collected)
