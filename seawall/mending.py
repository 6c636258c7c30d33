"""What a restore found damaged in a location, replaced once the restore is over.

A restore takes each object from the nearest sound copy and goes on. What it passed by on the way is healed as a
verification would do it: from a proved copy, with the audit before it, beside the object where a lock forbids more.

Not guaranteed: that it can be healed. Then it stays as it is, with a notice, and the restore counts all the same. What
is missing in a location is the business of mirrors and verifications: not every location has everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime

from seawall import locations, upkeep
from seawall.errors import SeawallError
from seawall.events import Noticed, Observer
from seawall.healing import HealReport
from seawall.keys import KeyRing
from seawall.nearest import Copy, Nearest
from seawall.settings import Settings
from seawall.storage.base import Storage


def mend(
    settings: Settings, read_from: Storage, ring: KeyRing, *, actor: str, now: datetime, observe: Observer
) -> Mapping[str, HealReport]:
    """Replace what was found damaged while it was read; what became of it, by location.

    Args:
        read_from: what the restore read, of one or of all locations.
    """
    damaged = read_from.damaged() if isinstance(read_from, Nearest) else {}
    done: dict[str, HealReport] = {}
    for location, names in damaged.items():
        try:
            done[location] = _healed(settings, location, names, ring, actor=actor, now=now, observe=observe)
        except SeawallError as error:
            text = f"what was found damaged in location {location} stays as it is: {error.message}"
            observe.hear(Noticed("high", "not-healed", text))
    return done


def _healed(
    settings: Settings,
    location: str,
    names: Sequence[str],
    ring: KeyRing,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
) -> HealReport:
    with closing(locations.opened(settings, location, observe, deleting=True)) as at:
        return upkeep.heal_objects(settings, Copy(location, at), names, ring, actor=actor, now=now, observe=observe)
