"""Locks over a bucket: what S3, Azure and Google Cloud Storage have in common.

Whether a bucket locks is its service's word, asked once; and an object counts as locked when the service says so after
it was stored. Some services take the request and forget the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from seawall.errors import (
    NotARepository,
    ObjectLocked,
    StorageBusy,
    StorageDenied,
    StorageError,
    StorageUnreachable,
)
from seawall.storage.base import Bytes, Stat, checked_object_name
from seawall.storage.immutability import Retention
from seawall.storage.objects import Bucket, ObjectStorage

Attack: TypeAlias = tuple[str, Callable[[], object]]


class LockingBucket(Bucket, Protocol):
    """A bucket whose service knows locks.

    Args:
        lock_hint: what must be on for the service to lock anything.
    """

    lock_hint: str

    def can_lock(self) -> bool:
        """Whether the service says that objects here can be locked; False where it does not let us ask.

        Raises:
            StorageUnreachable, NotARepository: it does not answer, or there is no such bucket.
        """
        ...

    def locking(self, until: datetime) -> Bucket:
        """The same bucket, in which everything that is written is locked until then."""
        ...

    def lock(self, name: str, until: datetime) -> None:
        """Set the lock's end; whether it may be earlier than before is the service's to say."""
        ...

    def hold(self, name: str, on: bool) -> None: ...

    def retention(self, name: str) -> Retention:
        """What keeps an object as it is.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def attacks(self, name: str) -> list[Attack]:
        """Ways to harm a locked object, each with what it would show: "could be deleted"."""
        ...


class LockingStorage(ObjectStorage):
    """Objects in a bucket that can lock them (`immutability.Lockable`)."""

    bucket: LockingBucket

    def can_lock(self) -> bool:
        return self._again("look at the place", self.bucket.can_lock)

    def put_locked(self, name: str, chunks: Iterable[Bytes], until: datetime) -> Stat:
        self._refuse_unlockable(name)
        made = self.through(self.bucket.locking(whole_seconds(until))).put(name, chunks)
        # Some services lock what comes in one request only, and forget it for an upload in parts.
        self.retain(name, until)
        return made

    def retain(self, name: str, until: datetime) -> None:
        until, found = whole_seconds(until), self.retention(name).until
        if found is None or found < until:
            self._refuse_unlockable(name)
            self._again(f"lock {name}", lambda: self.bucket.lock(checked_object_name(name), until))

    def retention(self, name: str) -> Retention:
        return self._again(f"look at {name}", lambda: self.bucket.retention(checked_object_name(name)))

    def hold(self, name: str, on: bool) -> None:
        self._refuse_unlockable(name)
        self._again(f"hold {name}", lambda: self.bucket.hold(checked_object_name(name), on))

    def tamper(self, name: str) -> tuple[str, ...]:
        attacks = self.bucket.attacks(checked_object_name(name))
        return tuple(breach for breach, attack in attacks if succeeds(attack))

    def _refuse_unlockable(self, name: str) -> None:
        if not self.can_lock():
            raise StorageDenied(f"cannot lock {name}: {self.url} locks nothing", hint=self.bucket.lock_hint)


def can_lock_now(bucket: LockingBucket) -> bool:
    """As `can_lock`, for a list of capabilities: not, as long as the service does not say so."""
    try:
        return bucket.can_lock()
    except (StorageUnreachable, NotARepository):
        return False


def whole_seconds(until: datetime) -> datetime:
    """The moment itself or the next full second: services cut what is finer, and a lock never ends too early."""
    cut = until.replace(microsecond=0)
    return cut if cut == until else cut + timedelta(seconds=1)


def succeeds(attack: Callable[[], object]) -> bool:
    """Whether an attack was not refused; a storage that does not answer is no proof of either."""
    try:
        attack()
    except (StorageUnreachable, StorageBusy):
        raise
    except StorageError:
        # Some services answer a forbidden change of a lock with 400, "invalid request", or with 409.
        return False
    return True


def refuse_locked(name: str, url: str, kept: Retention, now: datetime) -> None:
    """Not asking to delete spares the storage's log a refusal for each locked object of each expiry.

    Raises:
        ObjectLocked: it is under a legal hold, or immutable at `now`.
    """
    if kept.hold:
        raise ObjectLocked(f"{name} in {url} is under a legal hold")
    if kept.until is not None and kept.until > now:
        raise ObjectLocked(f"{name} in {url} is immutable until {kept.until:%Y-%m-%d %H:%M} UTC")
