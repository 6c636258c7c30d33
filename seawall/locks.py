"""Locks on the copies in a location: until when each object stays as it is, and the pass that makes locks longer.

What a mirror brings is locked as it comes. Afterwards each set that is listed there is secured: everything that it
needs, bundles of earlier sets and its own WAL included, is locked for at least as long as the location's retention
keeps the set; never for less than before. **The manifest is locked last, and its date speaks for all that its set
needs**, so that a later pass asks for one object of each set and not for all.

Holds become legal holds. The document of a hold is put under it first and freed of it last: it says whether the legal
holds of a set are Seawall's to lift, and one that somebody else sets later is left alone.

Not guaranteed: that what came before locking was turned on is locked, but for what listed sets need; and that WAL stays
locked which an interrupted run stored without coming to lock it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TypeVar

from seawall.errors import ClockWentBackwards, Damaged, NameRefused, ObjectMissing, SeawallError, StorageDenied
from seawall.events import Observer
from seawall.model import BackupLabel, Head, Hold, SealingMode
from seawall.repository import SourceArea
from seawall.repository.evidence import Evidence
from seawall.repository.layout import SourceLayout
from seawall.retention.decide import CLOCK_TOLERANCE
from seawall.retention.keeping import kept_until, wal_kept_until
from seawall.retention.policy import RetentionPolicy
from seawall.retention.unneeded import Needed, own_wal
from seawall.storage.base import Storage
from seawall.storage.immutability import Lockable, lockable
from seawall.storage.retry import RetryPolicy, repeated
from seawall.wal import Segment

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LockDates:
    """Until when objects of one source are locked in one location.

    Args:
        sets: by label, what the location's retention surely keeps; see `retention.keeping`.
        wal: for WAL that comes now, its keys and the audit.
    """

    layout: SourceLayout
    sets: Mapping[BackupLabel, datetime]
    wal: datetime

    def of(self, name: str) -> datetime | None:
        """The date for an object at the moment at which it comes; None for what is not locked then.

        A manifest is locked only when all that its set needs is.
        """
        layout = self.layout
        if name.endswith("/manifest") or name.startswith((layout.leases, layout.expired)) or ".tail-" in name:
            return None
        if name.startswith((layout.backups, layout.keys)) and (label := _label(name, layout)) is not None:
            return self.sets.get(label)
        if name.startswith((layout.wal, layout.keys, "audit/")) and not name.startswith(layout.histories):
            return self.wal
        # Identity, histories, script, holds: whoever restores the last set needs them.
        return max(self.sets.values(), default=None)


def dates(source: str, heads: Sequence[Head], policy: RetentionPolicy, *, now: datetime) -> LockDates:
    """What the retention of a location means for locks there; pure."""
    return LockDates(SourceLayout(source), kept_until(heads, policy, now=now), wal_kept_until(policy, now=now))


def _label(name: str, layout: SourceLayout) -> BackupLabel | None:
    text = name.removeprefix(layout.backups).removeprefix(layout.keys).partition("/")[0]
    try:
        return BackupLabel.parse(text)
    except NameRefused:
        return None  # the key of a period of WAL


@dataclass(frozen=True, slots=True)
class LockReport:
    """What became of the locks in one location.

    Args:
        until: the farthest date that was asked for; None if there was nothing to lock.
        secured: sets of which everything was locked, or locked for longer, by this run.
        held, freed: sets whose objects were put under legal holds, or freed of them.
        problem: why something is not locked; empty if everything is.
    """

    until: datetime | None = None
    secured: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    freed: tuple[str, ...] = ()
    problem: str = ""


class Locker:
    """Locks objects in one location, and remembers why it could not.

    Args:
        copies: of the repository, this location among them, that tell what sets need.
    """

    def __init__(
        self,
        storage: Storage,
        locks: Lockable,
        wanted: LockDates,
        evidence: Evidence,
        *,
        now: datetime,
        observe: Observer,
    ) -> None:
        self.problem = ""
        self._storage, self._locks, self._wanted, self._evidence = storage, locks, wanted, evidence
        self._now, self._observe = now, observe

    def copied(self, name: str) -> None:
        """Lock what a mirror just brought; where these credentials may not, it is brought all the same, and told."""
        until = self._wanted.of(name)
        if until is None or self.problem:
            return
        try:
            self._retain(name, until)
        except StorageDenied as error:
            self.problem = error.message

    def secure(self, workers: int = 4) -> LockReport:
        """Lock, or lock for longer, what the listed sets need; put held sets under legal holds and free others."""
        if self.problem:
            return LockReport(max(self._wanted.sets.values(), default=None), problem=self.problem)
        area = SourceArea(self._storage, self._wanted.layout.source)
        heads, _ = area.readable_heads()
        with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="lock") as pool:
            done = _Pass(self, area, heads, pool)
            try:
                done.run(self._now)
            except StorageDenied as error:
                done.problems.append(error.message)
        return LockReport(
            max(self._wanted.sets.values(), default=None),
            tuple(done.secured),
            tuple(done.held),
            tuple(done.freed),
            "; ".join(done.problems[:5]),
        )

    def _retain(self, name: str, until: datetime) -> None:
        self._again(f"lock {name}", lambda: self._locks.retain(name, until))

    def _again(self, what: str, call: Callable[[], _T]) -> _T:
        self._observe.checkpoint()
        return repeated(what, call, RetryPolicy(), self._observe.wait)


@dataclass
class _Pass:
    """One pass over the sets that are listed in a location."""

    locker: Locker
    area: SourceArea
    heads: tuple[Head, ...]
    pool: ThreadPoolExecutor
    secured: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def run(self, now: datetime) -> None:
        for head in self.heads:
            until = self.locker._wanted.sets.get(head.label)
            if until is not None:
                self._telling(head, partial(self._secure, head, until))
        holds, heads = self.area.holds(now), {head.label: head for head in self.heads}
        for hold in holds:
            if hold.label in heads:
                self._telling(heads[hold.label], partial(self._hold, heads[hold.label], hold))
        for hold in self.area.ended_holds(now):
            if hold.label in heads:
                self._telling(heads[hold.label], partial(self._free, heads[hold.label], hold, holds, heads))

    def _telling(self, head: Head, act: Callable[[], None]) -> None:
        """A set of which something is missing keeps no other from being locked."""
        try:
            act()
        except (ObjectMissing, Damaged) as error:
            self.problems.append(f"{head.label}: {error.message}")

    def _secure(self, head: Head, until: datetime) -> None:
        manifest = self.area.layout.manifest(head.label)
        locked = self.locker._again(manifest, lambda: self.locker._locks.retention(manifest)).until
        if locked is not None and locked >= until:
            return
        self._each(self._names(head), lambda name: self.locker._retain(name, until))
        # Last: from now on its date speaks for all the others.
        self.locker._retain(manifest, until)
        self.secured.append(str(head.label))

    def _hold(self, head: Head, hold: Hold) -> None:
        manifest, document = self.area.layout.manifest(head.label), self.area.layout.hold(hold.id)
        if self._is_held(document) and self._is_held(manifest):
            return
        # First what says that legal holds are Seawall's, last what says that all are there.
        self._set(document, on=True)
        self._each(self._covered(head, hold), lambda name: self._set(name, on=True))
        self._set(manifest, on=True)
        self.held.append(str(head.label))

    def _free(self, head: Head, hold: Hold, others: Sequence[Hold], heads: Mapping[BackupLabel, Head]) -> None:
        document = self.area.layout.hold(hold.id)
        if not self._is_held(document):
            return
        still = {name for one in others if one.label in heads for name in self._all(heads[one.label], one)}
        names = [name for name in self._all(head, hold) if name not in still]
        # The manifest first: while it is held it says that everything is.
        for name in names[-1:]:
            self._set(name, on=False)
        self._each(names[:-1], lambda name: self._set(name, on=False))
        self._set(document, on=False)
        self.freed.append(str(head.label))

    def _all(self, head: Head, hold: Hold) -> list[str]:
        return [*self._covered(head, hold), self.area.layout.manifest(head.label)]

    def _covered(self, head: Head, hold: Hold) -> list[str]:
        """What a hold keeps of a set and of the WAL behind it, but for the manifest."""
        names = set(self._names(head))
        if hold.through:
            needed = Needed([head], [hold])
            stored = self.area.wal.objects()
            names |= {name for segment, name in stored if needed.covers(Segment.parse(segment, head.segment_bytes))}
        return sorted(names)

    def _names(self, head: Head) -> list[str]:
        """Everything that a set needs, but for its manifest."""
        layout, source = self.area.layout, self.area.name
        needs = self.locker._evidence.needs(source, head.label).keys()
        wal = [layout.segment(name) for name in own_wal(head)]
        claims = [f"{name}.claim.json" for name in wal] if head.sealing is SealingMode.OPENPGP else []
        keys = {str(label) for name in needs if (label := _label(name, layout)) is not None} | {str(head.label)}
        keys |= self._wal_keys(head, (wal[0], wal[-1]))
        wraps = [name for key in sorted(keys) for name in self.area.keychain.generations(key)]
        named = [layout.objects(head.label), layout.manifest_copy(head.label), layout.head(head.label)]
        return [*sorted(needs), *wal, *claims, *wraps, *named]

    def _wal_keys(self, head: Head, ends: Iterable[str]) -> AbstractSet[str]:
        """The keys of a set's own WAL: those of its first and last segment, and what was made between them."""
        if head.sealing is not SealingMode.AES_256_GCM:
            return set()
        begin, end = f"wal-{head.began_at:%Y%m%dT%H%M%SZ}", f"wal-{head.stopped_at:%Y%m%dT%H%M%SZ}~"
        made = {key for key in self.area.keychain.ids() if begin <= key <= end}
        return made | {key for name in ends if (key := self.area.wal.key_of(name))}

    def _is_held(self, name: str) -> bool:
        return self.locker._again(name, lambda: self.locker._locks.retention(name)).hold

    def _set(self, name: str, *, on: bool) -> None:
        self.locker._again(f"hold {name}", lambda: self.locker._locks.hold(name, on))

    def _each(self, names: Iterable[str], act: Callable[[str], None]) -> None:
        for _ in self.pool.map(act, names):
            pass


def locker_for(
    storage: Storage,
    source: str,
    heads: Sequence[Head],
    policy: RetentionPolicy,
    evidence: Evidence,
    *,
    now: datetime,
    observe: Observer,
) -> Locker | None:
    """What locks copies in a location; None where the location locks nothing.

    Args:
        heads: of the sets that are listed in the primary, and in the location.

    Raises:
        ClockWentBackwards: this host's clock and the storage's disagree. A lock that is too long cannot be undone.
        StorageError: the location does not answer.
    """
    locks = lockable(storage)
    if locks is None or not locks.can_lock():
        return None
    theirs = storage.now()
    if abs(theirs - now) > CLOCK_TOLERANCE:
        raise ClockWentBackwards(
            f"this host says {now.isoformat()}, {storage.url} says {theirs.isoformat()}; nothing is locked by guess"
        )
    return Locker(storage, locks, dates(source, heads, policy, now=now), evidence, now=now, observe=observe)


def failed(error: SeawallError) -> LockReport:
    """The report of a location in which nothing could be locked."""
    return LockReport(problem=error.message)
