"""What other locations still wait for: a backup stays here until each location that would keep it longer has it.

Else a short retention here and a mirror that fails for as long would lose what the long retention there promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime

from seawall import locations
from seawall.errors import NotARepository, StorageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Head
from seawall.repository import Repository
from seawall.retention.decide import plan
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
    storage = locations.opened(settings, name, observe)
    try:
        return frozenset(Repository.open(storage).source(source).labels(with_expired=True))
    except NotARepository:
        return frozenset()
    finally:
        storage.close()
