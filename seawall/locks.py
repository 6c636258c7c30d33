"""Locks on what lies in a location: until when each object stays as it is, and the pass that makes locks longer.

What a mirror brings is locked as it comes, and what a backup stores in the primary for a day (`arrivals`). Afterwards,
and in the primary after each backup, each set that is listed there is secured: everything that it needs, bundles of
earlier sets and its own WAL included, is locked for at least as long as the location's retention keeps the set; never
for less than before. **The manifest is locked last, and its date speaks for all that its set needs**, so that a later
pass asks for one object of each set and not for all.

WAL and audit come to the primary without being locked, since whoever pushes WAL must not wait for that. A pass locks
them in the order in which they came, in groups: so where as many in a row are locked as a group has, all that came
before them are, and the next pass need not ask for them.

Holds become legal holds. The document of a hold is put under it first and freed of it last: it says whether the legal
holds of a set are Seawall's to lift, and one that somebody else sets later is left alone.

Damage that was healed and a copy that was brought anew are younger than the manifest that speaks for them; so a pass
asks for each such object, and locks what could not be locked when it came.

Not guaranteed: that what came to a copy before locking was turned on is locked, but for what listed sets need, WAL and
audit; and in the primary, that WAL and audit which came since the last pass are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from seawall.audit import PREFIXES as AUDIT
from seawall.errors import ClockWentBackwards, Damaged, NameRefused, ObjectMissing, SeawallError, StorageDenied
from seawall.events import Observer
from seawall.model import BackupLabel, Head, Hold, SealingMode
from seawall.repository import SourceArea
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS, SourceLayout, is_tail
from seawall.retention.decide import CLOCK_TOLERANCE
from seawall.retention.keeping import kept_until, wal_kept_until
from seawall.retention.policy import RetentionPolicy
from seawall.retention.unneeded import Needed, own_wal
from seawall.storage.base import Stat, Storage
from seawall.storage.immutability import Lockable, Retention, lock_as, lockable
from seawall.storage.retry import RetryPolicy, repeated
from seawall.wal import Segment

_T = TypeVar("_T")
# So many are locked side by side, and so many locked ones in a row say that all before them are.
_GROUP = 32
_DAY = timedelta(days=1)


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
        if name.endswith("/manifest") or name.startswith((layout.leases, layout.expired)) or is_tail(name):
            return None
        if name.startswith((layout.backups, layout.keys)) and (label := _label(name, layout)) is not None:
            return self.sets.get(label)
        kept_with_wal = (layout.wal, layout.wal_lists, layout.keys, *AUDIT)
        if name.startswith(kept_with_wal) and not name.startswith(layout.histories):
            return self.wal
        # Identity, histories, script, holds: whoever restores the last set needs them.
        return self.last

    @property
    def last(self) -> datetime | None:
        return max(self.sets.values(), default=None)


def dates(
    source: str,
    heads: Sequence[Head],
    policy: RetentionPolicy,
    *,
    at_most: timedelta = timedelta(0),
    now: datetime,
) -> LockDates:
    """What the retention of a location means for locks there; pure. See `retention.keeping` for `at_most`."""
    until = kept_until(heads, policy, at_most=at_most, now=now)
    return LockDates(SourceLayout(source), until, wal_kept_until(policy, now=now))


def _label(name: str, layout: SourceLayout) -> BackupLabel | None:
    text = name.removeprefix(layout.backups).removeprefix(layout.keys).partition("/")[0]
    try:
        return BackupLabel.parse(text)
    except NameRefused:
        return None  # the key of a period of WAL


def _is_first(wrap: str) -> bool:
    return wrap.endswith("/0001.json")


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

    def secure(self, workers: int = 4, *, arrivals: bool = False) -> LockReport:
        """Lock, or lock for longer, what the listed sets need; put held sets under legal holds and free others.

        Args:
            arrivals: lock also the WAL and the audit that came since the last pass, as is needed where they come
                without a lock: in the primary.
        """
        if self.problem:
            return LockReport(self._wanted.last, problem=self.problem)

        def act(done: _Pass) -> None:
            done.run(self._now)
            if arrivals:
                done.lock_arrivals(self._now)

        return self._passed(act, workers)

    def catch_up(self, workers: int = 4) -> LockReport:
        """Lock the WAL and the audit that lie there without a lock: earlier runs stored them and could not lock them.

        It comes before anything new is brought and locked, which would say that all before it is.
        """
        return self._passed(lambda done: done.lock_arrivals(self._now), workers)

    def renew(self, healed: Mapping[str, str], workers: int = 4) -> LockReport:
        """Lock at once what healing put in place, as long as what it stands for; a manifest's date speaks for it too.

        Args:
            healed: the name under which the sound bytes lie now, by the object's own: the same, or under `repairs/`.
        """
        return self._passed(lambda done: done.renew(healed, self._now), workers)

    def _passed(self, act: Callable[[_Pass], None], workers: int) -> LockReport:
        area = SourceArea(self._storage, self._wanted.layout.source)
        heads, _ = area.readable_heads()
        with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="lock") as pool:
            done = _Pass(self, area, heads, pool)
            try:
                act(done)
            except StorageDenied as error:
                done.problems.append(error.message)
        return LockReport(
            self._wanted.last,
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
    # Until when each manifest is locked, as far as it was asked.
    until: dict[BackupLabel, datetime] = field(default_factory=dict)

    def run(self, now: datetime) -> None:
        for head in self.heads:
            until = self.locker._wanted.sets.get(head.label)
            if until is not None:
                self._telling(head, partial(self._secure, head, until))
        self._lock_common()
        holds, heads = self.area.holds(now), {head.label: head for head in self.heads}
        for hold in holds:
            if hold.label in heads:
                self._telling(heads[hold.label], partial(self._hold, heads[hold.label], hold))
        self._free_ended(holds, heads, now)
        # After the holds, so that what was put back and what was repaired get those of what they stand for too.
        short = [name for name, label in self._put_back() if self._is_short(name, label)]
        if short:
            self.renew({name: name for name in short}, now)
        for name in self._repaired():
            self._lock_as(name, f"{REPAIRS}{name}")

    def _free_ended(self, holds: Sequence[Hold], heads: Mapping[BackupLabel, Head], now: datetime) -> None:
        ended = [hold for hold in self.area.ended_holds(now) if hold.label in heads]
        # What a held set needs that cannot be read now nobody can tell, so that nothing is freed beside it.
        begun = set(self.area.begun()) if ended else set()
        unread = sorted(str(hold.label) for hold in holds if hold.label in begun - heads.keys())
        for hold in ended:
            head = heads[hold.label]
            if not unread:
                self._telling(head, partial(self._free, head, hold, holds, heads))
            elif self._is_held(self.area.layout.hold(hold.id)):
                self.problems.append(f"{hold.label}: not freed: {unread[0]} is held, and what it needs cannot be read")

    # ---- what was put back, with or without a lock

    def _put_back(self) -> list[tuple[str, BackupLabel]]:
        """What is younger than the manifest of its own set, and so came after that spoke for it: healed, or copied."""
        storage, layout = self.area.storage, self.area.layout
        came = {
            stat.name: stat.modified_at
            for folder in (layout.backups, layout.keys, layout.wal)
            for stat in storage.list(folder)
        }
        names: dict[BackupLabel, list[str]] = {}
        for name in came:
            if (label := _label(name, layout)) is not None and not name.startswith(layout.wal):
                names.setdefault(label, []).append(name)
        found = []
        for head in self.heads:
            manifest = layout.manifest(head.label)
            wal = [layout.segment(name) for name in own_wal(head)]
            own = [*names.get(head.label, ()), *wal, *(f"{name}.claim.json" for name in wal)]
            found += [(name, head.label) for name in own if self._came_after(name, manifest, came)]
        return found

    def _came_after(self, name: str, manifest: str, came: Mapping[str, datetime]) -> bool:
        # Later wraps of a key come with rotations, and are locked with what is common to all.
        if name not in came or manifest not in came or (name.startswith(self.area.layout.keys) and not _is_first(name)):
            return False
        return came[name] > came[manifest]

    def _is_short(self, name: str, label: BackupLabel) -> bool:
        """Whether it is locked for less than the set that it is of, or than one that builds upon that."""
        users = {str(label)}
        for head in self.heads:
            if head.prior in users:
                users.add(str(head.label))
        due = max((until for one, until in self.until.items() if str(one) in users), default=None)
        kept = self._retention(name)
        if due is not None and (kept.until is None or kept.until < due):
            return True
        return not kept.hold and self._is_held(self.area.layout.manifest(label))

    # ---- what every set needs, and what healing put in place

    def _lock_common(self) -> None:
        """Without these, no set can be restored, or told apart: as long as the last of them is locked."""
        until = self.locker._wanted.last
        if until is not None:
            self._each(self._common(), lambda name: self.locker._retain(name, until))

    def _common(self) -> list[str]:
        storage, layout = self.area.storage, self.area.layout
        at_root = [name for name in storage.children("") if name.endswith((".json", ".py"))]
        folders = (layout.identities, layout.histories, layout.holds)
        named = [stat.name for folder in folders for stat in storage.list(folder)]
        # The first wrap of a key is locked with what it opens; those that a rotation made came later.
        wraps = [stat.name for stat in storage.list(layout.keys) if not _is_first(stat.name)]
        return [*at_root, *named, *wraps]

    def _repaired(self) -> list[str]:
        storage = self.area.storage
        at_root = [name for name in storage.children(REPAIRS) if name.endswith(".json")]
        below = storage.list(f"{REPAIRS}{self.area.layout.root}")
        return at_root + [stat.name.removeprefix(REPAIRS) for stat in below]

    def renew(self, healed: Mapping[str, str], now: datetime) -> None:
        due = {name: until for name in healed if (until := self.locker._wanted.of(name)) is not None}
        for head in self.heads:
            self._telling(head, partial(self._needed_until, head, healed, due))
        # Manifests last: their dates speak for the others.
        for name in sorted(due, key=lambda name: (name.endswith("/manifest"), name)):
            self.locker._retain(healed[name], due[name])
        holds, heads = self.area.holds(now), {head.label: head for head in self.heads}
        for hold in holds:
            if hold.label in heads and self._is_held(self.area.layout.hold(hold.id)):
                for name in healed.keys() & set(self._all(heads[hold.label], hold)):
                    self._set(healed[name], on=True)
        for name, stored_as in healed.items():
            if stored_as != name:
                self._lock_as(name, stored_as)

    def _needed_until(self, head: Head, healed: Mapping[str, str], due: dict[str, datetime]) -> None:
        manifest = self.area.layout.manifest(head.label)
        wanted = self.locker._wanted.sets.get(head.label)
        # What a set needs is locked for as long as its manifest, which a wish that came later cannot make shorter.
        locked = None if manifest in healed else self._retention(manifest).until
        dates = [date for date in (wanted, locked) if date is not None]
        if dates:
            for name in healed.keys() & {*self._names(head), manifest}:
                due[name] = max(*dates, due.get(name, dates[0]))

    def _lock_as(self, name: str, stored_as: str) -> None:
        self.locker._again(f"lock {stored_as}", lambda: lock_as(self.locker._locks, name, stored_as))

    # ---- what came since the last pass

    def lock_arrivals(self, now: datetime) -> None:
        layout = self.area.layout
        segments = [stat for stat in self.area.storage.list(layout.wal) if not stat.name.startswith(layout.histories)]
        self._lock_wal_keys(self._lock_in_order(segments, now))
        self._lock_in_order(self.area.storage.list(layout.wal_lists), now)
        for prefix in AUDIT:
            self._lock_in_order(self.area.storage.list(prefix), now)

    def _lock_in_order(self, stats: Iterable[Stat], now: datetime) -> list[Stat]:
        """Lock what is not, the oldest first and in groups; what was locked, in that order."""
        wanted = self.locker._wanted
        lockable_ones = [stat for stat in stats if wanted.of(stat.name) is not None]
        ordered = sorted(lockable_ones, key=lambda stat: (stat.modified_at, stat.name))
        found = self._unlocked(ordered, now)
        for begin in range(0, len(found), _GROUP):
            group = found[begin : begin + _GROUP]
            self._lock_until({stat.name: self._kept_from_arrival(stat, now) for stat in group})
        return found

    def _lock_until(self, dates: Mapping[str, datetime]) -> None:
        self._each(dates, lambda name: self.locker._retain(name, dates[name]))

    def _unlocked(self, ordered: Sequence[Stat], now: datetime) -> list[Stat]:
        """Of what came, oldest first, what is not locked and would be; asked from the newest on."""
        found: list[Stat] = []
        in_a_row = 0
        for stat in reversed(ordered):
            # A group that was interrupted has at least one that is not locked.
            if in_a_row == _GROUP or self._kept_from_arrival(stat, now) <= now:
                break
            if self._retention(stat.name).until is None:
                found.append(stat)
                in_a_row = 0
            else:
                in_a_row += 1
        return found[::-1]

    def _kept_from_arrival(self, stat: Stat, now: datetime) -> datetime:
        """As long after it came as what comes now."""
        return self.locker._wanted.wal - (now - min(stat.modified_at, now))

    def _lock_wal_keys(self, arrived: Sequence[Stat]) -> None:
        """The keys of WAL that was just locked, also of a period that began before it."""
        if not arrived:
            return
        begin = f"wal-{arrived[0].modified_at - _DAY:%Y%m%dT%H%M%SZ}"
        keys = {key for key in self.area.keychain.ids() if begin <= key and key.startswith("wal-")}
        segments = [stat.name for stat in arrived if not stat.name.endswith(".json")]
        keys |= {key for name in (*segments[:1], *segments[-1:]) if (key := self.area.wal.key_of(name))}
        wraps = [wrap for key in sorted(keys) for wrap in self.area.keychain.generations(key)]
        self._each(wraps, lambda name: self.locker._retain(name, self.locker._wanted.wal))

    # ---- sets and holds

    def _telling(self, head: Head, act: Callable[[], None]) -> None:
        """A set of which something is missing keeps no other from being locked."""
        try:
            act()
        except (ObjectMissing, Damaged) as error:
            self.problems.append(f"{head.label}: {error.message}")

    def _secure(self, head: Head, until: datetime) -> None:
        manifest = self.area.layout.manifest(head.label)
        locked = self._retention(manifest).until
        self.until[head.label] = until if locked is None else max(locked, until)
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
        return self._retention(name).hold

    def _retention(self, name: str) -> Retention:
        return self.locker._again(name, lambda: self.locker._locks.retention(name))

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
    at_most: timedelta = timedelta(0),
    now: datetime,
    observe: Observer,
) -> Locker | None:
    """What locks copies in a location; None where the location locks nothing.

    Args:
        heads: of the sets that are listed in the primary, and in the location.
        at_most: see `retention.keeping.kept_until`.

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
    wanted = dates(source, heads, policy, at_most=at_most, now=now)
    return Locker(storage, locks, wanted, evidence, now=now, observe=observe)


def failed(error: SeawallError) -> LockReport:
    """The report of a location in which nothing could be locked."""
    return LockReport(problem=error.message)
