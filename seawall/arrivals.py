"""Locks on what a backup stores, from the moment that each object is there, where the place locks.

Until a backup is listed nobody knows how long it will be kept, nor whether it will be finished at all. So each object
is locked for a day, no longer than what an attempt that fails leaves behind stays anyway; the pass that follows the
commit (`seawall.locks`) makes that as long as retention keeps the set, and locks the manifest. See docs/adr/0022.

Not guaranteed: that a backup which takes longer than a day is locked without a gap, or that anything is where the
service fails to lock. That never fails a backup: it is told once, and the pass after the commit raises the alert.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from seawall.errors import Cancelled, SeawallError, StorageDenied
from seawall.events import Noticed, Observer
from seawall.repository import Repository
from seawall.repository.layout import SourceLayout
from seawall.settings import RepositorySettings
from seawall.storage.base import Bytes, Stat, Storage
from seawall.storage.immutability import Lockable, lockable, shall_lock
from seawall.storage.retry import RetryPolicy, repeated
from seawall.storage.wrappers import Wrapper

ARRIVAL_LOCK = timedelta(days=1)


def locking_arrivals(place: RepositorySettings, repository: Repository, source: str, observe: Observer) -> Repository:
    """The repository for a backup of a source to write to; the same one where nothing shall be locked.

    Args:
        place: the settings of where the repository lies.
        observe: is told if the place cannot lock after all.
    """
    locks = lockable(repository.storage)
    if locks is None or not shall_lock(place, repository.storage):
        return repository
    storage = LockedOnArrival(repository.storage, locks, SourceLayout(source), observe)
    return Repository(storage, repository.id, repository.created_at)


class LockedOnArrival(Wrapper):
    """A storage in which what belongs to a set is locked for a day once it is stored, but for the set's manifest."""

    def __init__(self, inner: Storage, locks: Lockable, layout: SourceLayout, observe: Observer) -> None:
        super().__init__(inner)
        self._locks, self._layout, self._observe = locks, layout, observe
        self._is_off = False

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        made = self.inner.put(name, chunks)
        if self._is_locked(name) and not self._is_off:
            self._lock(name, made.modified_at + ARRIVAL_LOCK)
        return made

    def _is_locked(self, name: str) -> bool:
        # The manifest's lock says that all that its set needs is locked for as long; the pass says so, last.
        # A lease and tails of WAL must be removable, and other WAL with its keys is locked by a pass, in order.
        layout = self._layout
        if name.endswith("/manifest") or name.startswith(f"{layout.keys}wal-"):
            return False
        return name.startswith((layout.backups, layout.keys))

    def _lock(self, name: str, until: datetime) -> None:
        try:
            if not self._locks.can_lock():
                self._is_off = True
                return
            repeated(f"lock {name}", lambda: self._locks.retain(name, until), RetryPolicy(), self._observe.wait)
        except Cancelled:
            raise
        except SeawallError as error:
            # Who may not lock now may not lock the next object either; others are tried again.
            self._is_off = isinstance(error, StorageDenied)
            text = f"{name} is not locked until its backup is listed: {error.message}"
            self._observe.hear(Noticed("medium", "copies-not-locked", text))
