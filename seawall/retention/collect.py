"""The second of two steps: remove for good what was marked long enough ago, and what was never a backup.

Everything is looked at again before anything goes: holds, what the policy says now of all that is there
(`second_look`), and object by object what other sets refer to. A set that was let go loses its manifest first; bundles
of it that an incremental refers to stay, and its data key with them, until no set that is still there names them. The
source's lease is held all the while, so no backup can begin to refer to an object that is about to go, and a cleanup
that lost its lease stops. What cannot be read is taken for needed.

Where the primary location does not answer, nobody knows what was held or begun there. Then a copy loses for good only
sets that another location still lists, and no WAL: the rest waits for the primary.

Not guaranteed: that anything goes at once. What is locked, held or needed is told, and looked at again next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from seawall.audit import AuditLog
from seawall.errors import Damaged, FormatTooNew, NameRefused, ObjectMissing, StorageDenied, UsageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel
from seawall.repository import Lease, Repository, SourceArea, documents
from seawall.repository.layout import REPAIRS
from seawall.repository.lease import CLEANUP
from seawall.retention.marks import compare_clocks
from seawall.retention.policy import RetentionPolicy
from seawall.retention.second_look import SecondLook, holds_on, look_again
from seawall.retention.unneeded import Needed
from seawall.storage.base import Stat, Storage
from seawall.storage.immutability import lockable
from seawall.wal import Segment

MINIMUM_GRACE = timedelta(hours=24)
# So many deletions between two proofs that the lease is still ours: a paused cleanup must not go on as if it were.
_DELETIONS_PER_CHECK = 64


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, and what it left and why; `swept` counts leftovers of interrupted puts."""

    sets: tuple[str, ...] = ()
    objects: int = 0
    freed_bytes: int = 0
    left: Mapping[str, str] = field(default_factory=dict)
    swept: int = 0


def collect(
    repository: Repository,
    source: str,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
    grace: timedelta = MINIMUM_GRACE,
    dry_run: bool = False,
    audit: AuditLog | None = None,
    origin: SourceArea | None = None,
    policy: RetentionPolicy | None = None,
    unsound: Mapping[BackupLabel, str] | None = None,
    alone: bool = False,
) -> Collected:
    """Remove what was marked at least `grace` ago, and sets never committed that are as old.

    An interrupted collection finishes next time: every deletion of something absent is success.

    Args:
        audit: where it is recorded, that of the primary location when this is another one; else the repository's own.
        origin: the same source in the primary location when this is another one. What its sets refer to stays here:
            a mirror may be bringing them at this moment. Its holds are in force here too.
        policy, unsound: by which what was marked is judged again; see `second_look.look_again`.
        alone: the primary location does not answer, and `origin` is the other locations that do; None for none.

    Raises:
        UsageError: a grace below 24 hours.
        ClockWentBackwards: this host's clock and the storage's disagree, or a set stopped in the future.
        LeaseHeld: a backup runs; it may refer to what would go.
        LeaseLost: this cleanup was paused for so long that a backup may have begun; the rest waits for the next one.
    """
    if grace < MINIMUM_GRACE:
        raise UsageError(f"a grace of {grace} is below the least of 24 hours")
    compare_clocks(repository, now)
    area = repository.source(source)

    def look() -> SecondLook:
        return look_again(area, holds_on(area, origin, now), policy, now=now, unsound=unsound)

    if dry_run:
        return _Collection(area, _Dry(), origin, look, alone=alone, now=now, observe=observe, grace=grace).run()
    with area.lease(actor, CLEANUP) as held:
        remover = _Remover(area, audit or AuditLog(repository.storage), held, actor=actor, now=now)
        done = _Collection(area, remover, origin, look, alone=alone, now=now, observe=observe, grace=grace).run()
        if done.objects:
            remover.conclude(done)
    swept = _sweep_uploads(area.storage, grace, observe) + _sweep_probes(area.storage, grace)
    return Collected(done.sets, done.objects, done.freed_bytes, done.left, swept)


def _sweep_uploads(storage: Storage, older_than: timedelta, observe: Observer) -> int:
    """Remove what broken uploads left; rights that are missing for that alone are told, as all else was cleaned up."""
    try:
        return storage.sweep(older_than)
    except StorageDenied as error:
        observe.hear(Noticed("medium", "not-swept", f"what broken uploads left stays: {error.message}"))
        return 0


def _sweep_probes(storage: Storage, older_than: timedelta) -> int:
    """Remove what checks left that may write and not delete, and canaries whose lock has ended; how many there were."""
    limit, swept = storage.now() - older_than, 0
    for stat in [stat for stat in storage.list("probes/") if stat.modified_at <= limit]:
        with suppress(StorageDenied):
            storage.delete(stat.name)
            swept += 1
    return swept


class _Dry:
    """Says what would be done and does nothing."""

    def announce(self, action: str, subject: str, details: Mapping[str, str]) -> None: ...

    def remove(self, name: str) -> None: ...


class _Remover:
    """Does it: the audit before the deed, and the lease proved again and again."""

    def __init__(self, area: SourceArea, audit: AuditLog, held: Lease, *, actor: str, now: datetime) -> None:
        self._area, self._audit, self._held = area, audit, held
        self._actor, self._now = actor, now
        self._deletions = 0

    def announce(self, action: str, subject: str, details: Mapping[str, str]) -> None:
        self._held.check()
        details = {**details, "location": self._area.storage.url}
        self._audit.append(self._actor, action, f"{self._area.name} {subject}", details, now=self._now)

    def conclude(self, done: Collected) -> None:
        """Record what came of it; what was announced and has no such record behind it was interrupted."""
        numbers = {"objects": done.objects, "freed_bytes": done.freed_bytes, "left": len(done.left)}
        details = {name: str(number) for name, number in numbers.items()}
        details |= {"sets": " ".join(done.sets), "location": self._area.storage.url}
        self._audit.append(self._actor, "collected", self._area.name, details, now=self._now)

    def remove(self, name: str) -> None:
        self._deletions += 1
        if self._deletions % _DELETIONS_PER_CHECK == 0:
            self._held.check()
        self._area.storage.delete(name)


class _Collection:
    """One run of the second step."""

    def __init__(
        self,
        area: SourceArea,
        remover: _Dry | _Remover,
        origin: SourceArea | None,
        look: Callable[[], SecondLook],
        *,
        alone: bool,
        now: datetime,
        observe: Observer,
        grace: timedelta,
    ) -> None:
        self._area, self._remover, self._alone = area, remover, alone
        self._now, self._observe, self._grace = now, observe, grace
        self._coming = frozenset() if origin is None else frozenset(origin.labels())
        self._references = _References(area, origin)
        self._holds, self._look, self._second = holds_on(area, origin, now), look, SecondLook()
        stored = area.storage.list(f"{REPAIRS}{area.layout.root}")
        self._repaired = frozenset(stat.name.removeprefix(REPAIRS) for stat in stored)
        locks = lockable(area.storage)
        self._locks = locks if locks is not None and locks.can_lock() else None
        self._sets: list[str] = []
        self._gone: set[BackupLabel] = set()
        self._left: dict[str, str] = {}
        self._objects = self._freed = 0

    def run(self) -> Collected:
        ripe = dict(self._ripe_marks())
        if ripe:
            self._second = self._look()
        # Newest first: a dependent's references are gone before it is asked what its base is still needed for.
        for label, mark in sorted(_sets_of(ripe), key=lambda pair: pair[0].begun_at, reverse=True):
            self._collect_set(label, mark)
        if self._alone:
            waiting = (mark for mark, content in ripe.items() if "label" not in content)
            self._left |= dict.fromkeys(waiting, "the primary location does not answer")
            return self._collected()
        self._collect_uncommitted()
        self._collect_keys()
        # WAL last: it is judged by the sets that are still there.
        for mark, content in ripe.items():
            if "label" not in content:
                with self._telling(mark):
                    self._collect_wal(str(content["first"]), str(content["last"]), mark)
        self._collect_tails()
        return self._collected()

    def _collected(self) -> Collected:
        return Collected(tuple(self._sets), self._objects, self._freed, self._left)

    def _ripe_marks(self) -> Iterator[tuple[str, dict[str, object]]]:
        for stat in list(self._area.storage.list(self._area.layout.expired)):
            self._observe.checkpoint()
            with self._telling(stat.name):
                mark = documents.get(self._area.storage, stat.name)
                if self._now - documents.moment(mark["marked_at"], name=stat.name) < self._grace:
                    self._left[stat.name] = "its grace has not passed"
                else:
                    yield stat.name, mark

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """One thing that cannot be read must not keep the rest from being cleaned."""
        try:
            yield
        except (Damaged, FormatTooNew, NameRefused, KeyError, ValueError) as error:
            self._left[name] = f"it cannot be read: {error}"
            self._observe.hear(Noticed("high", "unreadable", f"{name} stays: {error}"))

    # ---- sets

    def _collect_set(self, label: BackupLabel, mark: str) -> None:
        # The second look: a hold may have come, and what was to stand instead of it may be gone.
        if any(hold.label == label for hold in self._holds):
            self._left[str(label)] = "a hold was placed on it"
        elif label in self._second.staying:
            self._left[str(label)] = f"it stays after all: {self._second.staying[label]}"
        elif self._alone and label not in self._coming:
            self._left[str(label)] = "the primary location does not answer, and no other location lists it"
        elif self._remove(label, "collect"):
            # The mark goes only with the last object: without it, what a lock kept would be listed again.
            self._delete(mark)

    def _collect_uncommitted(self) -> None:
        committed, waiting = set(self._area.labels(with_expired=True)), {h.label for h in self._area.unfinished()}
        for label in self._area.begun():
            if label in committed or self._area.is_expired(label):
                continue
            if label in self._coming:
                self._left[str(label)] = "its copy is not whole yet"
            elif label in waiting:
                self._left[str(label)] = "its manifest is missing, but its copy and its head are there"
            elif self._is_young(self._area.storage.list(self._area.layout.backup(label))):
                self._left[str(label)] = "it was never committed, but its grace has not passed"
            else:
                self._remove(label, "collect-uncommitted")

    def _is_young(self, stats: Iterable[Stat]) -> bool:
        newest = max((stat.modified_at for stat in stats), default=None)
        return newest is not None and self._now - newest < self._grace

    def _remove(self, label: BackupLabel, action: str) -> bool:
        """Remove what nobody needs of a set; false when something had to stay."""
        layout, storage = self._area.layout, self._area.storage
        unknown = self._references.unknown_but(label)
        if unknown:
            self._left[str(label)] = f"{unknown} may refer to it, and what that needs cannot be read"
            return False
        needed = self._references.to(label)
        first = (layout.manifest(label), layout.manifest_copy(label))
        listed = {stat.name for stat in storage.list(layout.backup(label))}
        # Also what only its repair is left of.
        listed.update(name for name in self._repaired if name.startswith(layout.backup(label)))
        names = sorted(listed - needed)
        keys = () if needed else self._area.keychain.generations(str(label))
        if needed:
            self._left[str(label)] = f"{len(needed)} objects of it stay, because later backups refer to them"
        if not names and not keys:
            return not needed
        # Nothing of a set goes while its manifest is locked, so there is nothing to record either.
        if kept := self._locked(layout.manifest(label)):
            self._left[str(label)] = kept
            return False
        self._remover.announce(action, str(label), {"objects": str(len(names)), "needed": str(len(needed))})
        # The manifest goes first: from then on no reader takes what is left for a backup. If it must stay, so
        # does all that it names.
        if not all(self._delete(name) for name in first if name in names):
            return False
        self._sets.append(str(label))
        self._references.forget(label)
        self._gone.add(label)
        gone = self._delete_all(name for name in names if name not in first)
        # The key goes last; without it nothing that a failing storage brings back could be read.
        return gone and not needed and self._delete_all(keys)

    def _collect_keys(self) -> None:
        """Data keys of sets of which nothing is left: a writer stopped right after it made its key."""
        begun = {str(label) for label in (*self._area.begun(), *self._coming)}
        for key_id in self._area.keychain.ids():
            # Keys of WAL periods have other ids, and stay for ever.
            if key_id in begun or not _is_label(key_id) or self._area.is_expired(BackupLabel.parse(key_id)):
                continue
            wraps = list(self._area.storage.list(f"{self._area.layout.keys}{key_id}/"))
            if wraps and not self._is_young(wraps):
                self._remover.announce("collect-key", key_id, {"wraps": str(len(wraps))})
                self._delete_all(stat.name for stat in wraps)

    # ---- WAL

    def _collect_wal(self, first: str, last: str, mark: str) -> None:
        heads, unreadable = self._area.readable_heads(with_expired=True)
        if unreadable:
            self._left[mark] = f"the head of {next(iter(unreadable))} cannot be read, so its WAL is unknown"
            return
        heads = tuple(head for head in heads if head.label not in self._gone)
        if not heads:
            self._left[mark] = "no backup is there to judge it by"
            return
        needed, size = Needed([*heads, *self._area.unfinished()], self._holds), heads[-1].segment_bytes
        unneeded = [
            (segment, name)
            for segment, name in self._area.wal.objects(int(first[:8], 16))
            if first <= segment <= last and not needed.covers(Segment.parse(segment, size))
        ]
        names = [name for segment, name in unneeded if self._second.frees(segment)]
        stay = len(unneeded) - len(names)
        if stay:
            self._left[mark] = f"{stay} of its {len(unneeded)} objects stay after all: the policy needs that WAL now"
        locked = {name: why for name in names if (why := self._locked(name))}
        if locked:
            # One line for all: thousands of segments may wait for their dates.
            self._left[mark] = f"{len(locked)} of its {len(names)} objects stay; the last {locked[max(locked)]}"
        names = [name for name in names if name not in locked]
        if not names and (locked or stay):
            return
        self._remover.announce("collect-wal", f"{first}..{last}", {"objects": str(len(names))})
        gone = self._delete_all(names) and not (locked or stay)
        if gone and self._collect_lists(int(first[:8], 16), first, last):
            self._delete(mark)

    def _collect_lists(self, timeline: int, first: str, last: str) -> bool:
        """Lists of WAL of which nothing is left; one that also names WAL that stays, stays with it."""
        stored = self._area.wal.segments()
        lists = self._area.wal.known_lists().names_within(timeline)
        touched = [(begin, end, name) for begin, end, name in lists if begin <= last and end >= first]
        return self._delete_all(
            name for begin, end, name in touched if not any(begin <= segment <= end for segment in stored)
        )

    def _collect_tails(self) -> None:
        """What the writers of WAL leave behind where they may write and not delete."""
        names = self._area.wal.superseded_tails()
        if names:
            self._remover.announce("collect-tails", "tails", {"objects": str(len(names))})
            self._delete_all(names)

    # ---- deleting

    def _locked(self, name: str) -> str:
        """What keeps an object, asked before anything is tried; empty where nothing does, or nothing locks here."""
        if self._locks is None:
            return ""
        try:
            kept = self._locks.retention(name)
        except ObjectMissing:
            return ""
        if kept.hold:
            return "is under a legal hold"
        locked = kept.until is not None and kept.until > self._area.storage.now()
        return f"is locked until {kept.until:%Y-%m-%d %H:%M} UTC" if locked else ""

    def _delete_all(self, names: Iterable[str]) -> bool:
        gone = True
        for name in names:
            self._observe.checkpoint()
            gone = self._delete(name) and gone
        return gone

    def _delete(self, name: str) -> bool:
        """Delete an object and what repaired it; true when both are gone (or would be, in a dry run)."""
        # What repaired it goes first: once the object is gone, nothing leads to it any more.
        repaired = name in self._repaired
        return (not repaired or self._delete_one(f"{REPAIRS}{name}")) and self._delete_one(name)

    def _delete_one(self, name: str) -> bool:
        """Delete one object; true when it is gone (or would be, in a dry run), false when it is locked."""
        try:
            size = self._area.storage.stat(name).size_bytes
            self._remover.remove(name)
        except ObjectMissing:
            return True
        except StorageDenied as error:
            # Locked is a normal state: the object goes when its lock ends.
            self._left[name] = error.message
            self._observe.hear(Noticed("low", "locked", f"{name} stays: {error.message}"))
            return False
        self._objects += 1
        self._freed += size
        return True


class _References:
    """Which objects of earlier sets the sets that are there refer to, marked ones included: they can come back."""

    def __init__(self, area: SourceArea, origin: SourceArea | None) -> None:
        self._area, self._origin = area, origin
        self._foreign: dict[BackupLabel, frozenset[str]] = {}
        self._unknown: dict[BackupLabel, str] = {}
        self._read = False

    def to(self, label: BackupLabel) -> frozenset[str]:
        """The objects of a set that others need."""
        own = self._area.layout.backup(label)
        names = (name for other, found in self._known().items() if other != label for name in found)
        return frozenset(name for name in names if name.startswith(own))

    def unknown_but(self, label: BackupLabel) -> str:
        """A later set of which nobody can say what it refers to, or nothing."""
        self._known()
        later = (str(other) for other in self._unknown if other.begun_at > label.begun_at)
        return next(later, "")

    def forget(self, label: BackupLabel) -> None:
        """A set whose manifest is gone needs nothing any more."""
        self._foreign.pop(label, None)
        self._unknown.pop(label, None)

    def _known(self) -> Mapping[BackupLabel, frozenset[str]]:
        if not self._read:
            self._read = True
            present = {*self._area.labels(with_expired=True), *(head.label for head in self._area.unfinished())}
            for label in sorted(present, key=lambda found: found.begun_at):
                self._look_at(label, self._area)
            if self._origin is not None:
                for label in set(self._origin.labels()) - present:
                    self._look_at(label, self._origin)
        return self._foreign

    def _look_at(self, label: BackupLabel, area: SourceArea) -> None:
        # Full backups are looked at too: one that was resumed refers to objects of the attempts before it.
        own = self._area.layout.backup(label)
        try:
            names = area.needed_objects(label)
        except (Damaged, FormatTooNew, NameRefused) as error:
            self._unknown[label] = str(error)
        else:
            self._foreign[label] = frozenset(name for name in names if not name.startswith(own))


def _sets_of(marks: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[BackupLabel, str]]:
    for name, mark in marks.items():
        if "label" in mark:
            yield BackupLabel.parse(str(mark["label"])), name


def _is_label(text: str) -> bool:
    try:
        BackupLabel.parse(text)
    except NameRefused:
        return False
    return True
