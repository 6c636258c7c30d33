"""Proof, location by location, that what is locked there cannot be changed with Seawall's own credentials.

Whether a location locks is its service's word; whether the lock holds is what the attacks of
`storage.immutability.probe` show, made with every credential that this host has for the location: those that write, and
those that delete, where these are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from seawall import locations
from seawall.errors import Cancelled, LockBroken, SeawallError, StorageDenied
from seawall.events import Observer
from seawall.settings import LocationRole, LocationSettings, Settings
from seawall.storage.base import Storage
from seawall.storage.immutability import CANARIES, lockable, probe


class LockState(StrEnum):
    """What became of the attacks; `NONE`: the location locks nothing, so that nothing was attacked."""

    HOLDS = "holds"
    BROKEN = "broken"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LockReport:
    """What a probe of one location showed.

    Args:
        breaches: the attacks that succeeded, as sentences' ends: "could be deleted".
        canary: the object that was attacked; empty if none was.
        until: until when that is locked.
        error: why nothing is known.
        vanished: canaries of earlier probes lie there, but the location does not say any more that it locks.
    """

    name: str
    role: LocationRole
    url: str
    state: LockState
    breaches: tuple[str, ...] = ()
    canary: str = ""
    until: datetime | None = None
    error: SeawallError | None = None
    vanished: bool = False

    @property
    def sentence(self) -> str:
        match self.state:
            case LockState.HOLDS:
                return "a locked object could be neither overwritten nor deleted nor unlocked"
            case LockState.BROKEN:
                return f"a locked object {', '.join(self.breaches)}"
            case LockState.NONE:
                return "it locks nothing: whoever has credentials that delete can destroy the backups there"
            case LockState.UNKNOWN:
                return f"nothing is known: {self.error.message if self.error else ''}"


def probe_location(location: LocationSettings, settings: Settings, *, now: datetime, observe: Observer) -> LockReport:
    """Lock a canary in a location and attack it; what goes wrong is in the report.

    Raises:
        Cancelled: on request.
    """
    url = location.storage.url.partition("?")[0]
    try:
        with _opened(settings, location.name, observe) as storages:
            locks = lockable(storages[0])
            if locks is None or not locks.can_lock():
                return _unlocked(location, url, storages[0])
            found = probe(storages[0], now, storages[1:])
    except Cancelled:
        raise
    except SeawallError as error:
        return LockReport(location.name, location.role, url, LockState.UNKNOWN, error=error)
    state = LockState.HOLDS if found.holds else LockState.BROKEN
    return LockReport(location.name, location.role, url, state, found.breaches, found.canary, found.until)


def _unlocked(location: LocationSettings, url: str, storage: Storage) -> LockReport:
    """What is to be said of a location that does not say that it locks: it may have done so before."""
    if next(iter(storage.list(CANARIES)), None) is None:
        return LockReport(location.name, location.role, url, LockState.NONE)
    error = StorageDenied(
        f"{url} locked objects when it was probed before, and does not say so any more: nothing new is locked there",
        hint="Give the account back the right to ask, or find out who turned locks off (docs/how-to/immutability.md).",
    )
    return LockReport(location.name, location.role, url, LockState.UNKNOWN, error=error, vanished=True)


@contextmanager
def _opened(settings: Settings, name: str, observe: Observer) -> Iterator[Sequence[Storage]]:
    """A location with the credentials that write and, where they are others and here, with those that delete."""
    file = settings.location(name).storage.deleting_credentials_file
    ways = [False] if file is None or not file.exists() else [False, True]
    opened: list[Storage] = []
    try:
        for deleting in ways:
            opened.append(locations.opened(settings, name, observe, deleting=deleting))
        yield opened
    finally:
        for storage in opened:
            storage.close()


def failure(reports: Sequence[LockReport]) -> SeawallError | None:
    """The error that stands for locks that do not hold, or else for locations of which nothing is known."""
    broken = [f"{one.name}: {one.sentence}" for one in reports if one.state is LockState.BROKEN]
    if broken:
        return LockBroken("; ".join(broken))
    return next((one.error for one in reports if one.error is not None), None)
