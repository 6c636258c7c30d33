"""Objects that nobody can change until a date, and the proof that it is so.

What locks is the storage, not Seawall: a lock that only this program respects would stop nobody who stole its
credentials. So the proof uses these very credentials, past every courtesy of the driver, against an object that is
worth nothing.

Not guaranteed: that a locked object stays in sight. Whoever may delete in a versioned bucket can hide it behind a
delete marker; the version below stays, and removing the marker brings it back.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from seawall.errors import ObjectMissing, StorageDenied
from seawall.settings import Locking, RepositorySettings
from seawall.storage.base import Bytes, Stat, Storage, layers

CANARIES = "probes/canary-"

# Long enough that no clock's error ends it during the probe, short enough that canaries do not pile up.
CANARY_LOCK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Retention:
    """What keeps an object as it is.

    Args:
        until: immutable up to that moment of the storage's clock; None for not at all.
        hold: under a legal hold, which has no end of its own.
    """

    until: datetime | None = None
    hold: bool = False

    def locked(self, now: datetime) -> bool:
        return self.hold or (self.until is not None and self.until > now)


@runtime_checkable
class Lockable(Protocol):
    """A storage that can lock objects, if the place that it is about can."""

    def can_lock(self) -> bool:
        """Whether the place says that it locks.

        Raises:
            StorageUnreachable, NotARepository: it does not answer, or there is no such place.
        """
        ...

    def put_locked(self, name: str, chunks: Iterable[Bytes], until: datetime) -> Stat:
        """As `put`, and immutable from the moment that it is there.

        Raises:
            StorageDenied: the place cannot lock, or these credentials may not.
        """
        ...

    def retain(self, name: str, until: datetime) -> None:
        """Make an object immutable until a moment, or for longer than it is; never for less.

        Raises:
            ObjectMissing: proved absent.
            StorageDenied: the place cannot lock, or these credentials may not.
        """
        ...

    def retention(self, name: str) -> Retention:
        """What keeps an object as it is.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def hold(self, name: str, on: bool) -> None:
        """Put an object under a legal hold, or lift that.

        Raises:
            ObjectMissing: proved absent.
            StorageDenied: the place cannot lock, or these credentials may not.
        """
        ...

    def tamper(self, name: str) -> tuple[str, ...]:
        """Try to shorten the lock of an object, to replace and to delete it; what succeeded, best nothing.

        Never for an object that is worth something.
        """
        ...


def shall_lock(place: RepositorySettings, storage: Storage) -> bool:
    """Whether what lies in a place shall be locked, and its driver knows locks; the place itself is not asked."""
    return place.lock is not Locking.OFF and lockable(storage) is not None


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a probe found.

    Args:
        canary: the object that was attacked, the last one of several; still there if `holds`.
        until: until when it was locked.
        breaches: which attacks succeeded, as sentences' ends: "could be deleted".
        removed: canaries of earlier probes whose lock had ended.
    """

    canary: str
    until: datetime
    breaches: tuple[str, ...]
    removed: int

    @property
    def holds(self) -> bool:
        return not self.breaches


def lockable(storage: Storage) -> Lockable | None:
    """What locks objects below the wrappers of a storage, or None where nothing does.

    It passes by the wrappers; the drivers themselves repeat requests that concern locks.
    """
    return next((layer for layer in layers(storage) if isinstance(layer, Lockable)), None)


def lock_as(locks: Lockable, name: str, stored_as: str) -> None:
    """Lock what stands for an object for as long as that, and under a legal hold like that; nothing for one not there.

    Raises:
        StorageDenied: the place cannot lock, or these credentials may not.
    """
    try:
        kept = locks.retention(name)
    except ObjectMissing:
        return
    if kept.until is not None:
        locks.retain(stored_as, kept.until)
    if kept.hold != locks.retention(stored_as).hold:
        locks.hold(stored_as, kept.hold)


def probe(storage: Storage, now: datetime, others: Sequence[Storage] = ()) -> ProbeReport:
    """Lock a canary, attack it with the same credentials and with others, and say what succeeded.

    Args:
        now: this host's clock.
        others: the same place, opened with other credentials, such as those that may delete.

    Raises:
        StorageDenied: the storage locks nothing, or these credentials may not lock.
        StorageError: it cannot be found out now.
    """
    locks = lockable(storage)
    if locks is None:
        raise StorageDenied(
            f"{storage.url} cannot lock objects",
            hint="Immutability needs S3, Azure or Google; see docs/how-to/immutability.md.",
        )
    removed = sum(_remove_old(one) for one in (storage, *others))
    until = now.replace(microsecond=0) + CANARY_LOCK
    canary, breaches = "", list[str]()
    for attacker in (storage, *others):
        # One for each: what an attack leaves lying over a canary must not stand before the next attacker.
        canary = f"{CANARIES}{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        locks.put_locked(canary, [b"canary"], until)
        breaches += _attacked(locks, lockable(attacker) or locks, canary, until)
    return ProbeReport(canary, until, tuple(dict.fromkeys(breaches)), removed)


def _attacked(locks: Lockable, attacker: Lockable, canary: str, until: datetime) -> tuple[str, ...]:
    found = locks.retention(canary)
    if found.until is None or found.until < until:
        return ("was stored without the lock that was asked for",)
    return attacker.tamper(canary)


def _remove_old(storage: Storage) -> int:
    removed = 0
    for stat in list(storage.list(CANARIES)):
        try:
            storage.delete(stat.name)
        except StorageDenied:
            # Locked still, or these credentials do not delete: then a cleanup does.
            continue
        removed += 1
    return removed
