"""Copies of a repository in other places: what is missing there, and bringing it there.

A mirror holds the same objects under the same names, so it is a repository by itself: a restore needs nothing else.
Bytes are copied as they are sealed, and compared on their way with what the repository says of them. A set's manifest
comes last, after everything that the set needs, its WAL included; so a set that is listed in a mirror is whole there.
What lies there already is not sent again, and a run that was stopped goes on where it was.

A run holds the source's lease in the location that it writes to: no cleanup there removes what the run takes for
present, and a second run waits for another time. A run that was paused for longer than its lease stops before it lists
anything.

Leases, probes and marks of expiry are a location's own and are not copied: each keeps its sets as long as its own
retention says. The audit is copied from the primary, which is where it is written.

Not guaranteed: that WAL which no list names yet was sound where it was copied from, unless a private key is at hand.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from seawall.audit import PREFIX as AUDIT
from seawall.capacity import Room
from seawall.errors import (
    ClusterMismatch,
    Damaged,
    FormatTooNew,
    KeyMissing,
    NotARepository,
    ObjectExists,
    ObjectMissing,
    SeawallError,
    StorageDenied,
    StorageError,
)
from seawall.events import Advanced, Began, Ended, Noticed, Observer
from seawall.locations import refuse_other
from seawall.model import BackupLabel, Head
from seawall.repository import Lease, Repository, documents, identity
from seawall.repository.evidence import Evidence
from seawall.repository.identity import Identity
from seawall.repository.layout import IDENTITY, REPAIRS, SourceLayout, is_tail
from seawall.repository.sealed import Counted
from seawall.repository.wal_lists import spans
from seawall.storage.base import Bytes, Replayable, Storage
from seawall.wal import Segment

_SHARED = re.compile(r"seawall\.json|seawall-copy\.json|recover-[0-9a-f]{12}\.py")
_RETRIED_LATER = (Damaged, ObjectMissing)


@dataclass(frozen=True, slots=True)
class SetAtOrigin:
    """A listed set, and the names of all objects with data that it needs."""

    head: Head
    needs: frozenset[str]

    @property
    def label(self) -> BackupLabel:
        return self.head.label


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that belong together, in waves: each wave is whole before the next begins, and a failure ends the group.

    Args:
        subject: what the group makes available, such as a set's label.
    """

    subject: str
    waves: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for wave in self.waves for name in wave)


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What is to be copied, in order.

    Args:
        sizes: of each object to copy, in bytes.
        forget: tails of WAL there that are superseded here.
        other_size: objects that lie there with another size than here; nothing is done about them.
        needs: what each set needs, by its label: all that must lie there before it is listed.
        absent: what sets need and neither place shows.
        other_audit: how the audit there is another one than here; empty where it is the same as far as it goes. Such an
            audit is left as it is: it may be what tells that somebody wrote the one here anew.
    """

    source: str
    groups: tuple[Group, ...]
    sizes: Mapping[str, int]
    forget: tuple[str, ...] = ()
    other_size: tuple[str, ...] = ()
    needs: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    other_audit: str = ""

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())


def plan(
    source: str, sets: Sequence[SetAtOrigin], here: Mapping[str, int], there: Mapping[str, int], shared: Sequence[str]
) -> MirrorPlan:
    """Decide what is missing there; pure.

    Args:
        sets: listed here and not marked, in any order; the newest is made whole first.
        here: every object of the source here with its size.
        there: the same there.
        shared: names of objects of the repository as a whole that are missing there, the identity first.
    """
    layout = SourceLayout(source)
    missing = {name: size for name, size in here.items() if name not in there and _is_copied(layout, name)}
    other_size = {name for name in there if name in here and here[name] != there[name]}
    groups = _group("repository", [shared[:1], shared[1:]])
    first = (layout.identities, layout.keys, layout.histories)
    groups += _group("keys", [[name for name in sorted(missing) if name.startswith(first)]])
    wrapped = {name.removeprefix(layout.keys).partition("/")[0] for name in (*here, *there) if layout.keys in name}
    needs = {str(one.label): _needed(layout, one, wrapped) for one in sets}
    # What a set needs and neither place shows cannot be brought, and the set must not be listed without it.
    absent = frozenset[str]().union(*needs.values()) - here.keys() - there.keys()
    for one in sorted(sets, key=lambda known: known.head.stopped_at, reverse=True):
        # Where one of its objects lies there with another size, or nowhere, somebody has to look first.
        whole = needs[str(one.label)].isdisjoint(other_size | absent)
        groups += _set_group(layout, one, missing, whole=whole)
    # The lists come after what they name: one that is there says nothing of WAL that is still to come.
    listing = [name for name in sorted(missing) if _lists_any(name, here, layout)]
    groups += _group("wal", [[name for name in sorted(missing) if name.startswith(layout.wal)]])
    groups += _group("wal-lists", [listing])
    groups += _group("holds", [[name for name in sorted(missing) if name.startswith(layout.holds)]])
    chosen = {name for group in groups for name in group.names}
    return MirrorPlan(
        source,
        tuple(groups),
        {name: size for name, size in missing.items() if name in chosen},
        tuple(name for name in sorted(there) if is_tail(name) and name not in here),
        tuple(sorted(other_size)),
        needs,
        tuple(sorted(absent)),
    )


def _is_copied(layout: SourceLayout, name: str) -> bool:
    return not name.startswith((layout.expired, layout.leases))


def _lists_any(name: str, here: Mapping[str, int], layout: SourceLayout) -> bool:
    """Whether a list of WAL names anything that is copied; without that, the location's retention removes it again."""
    if not name.startswith(layout.wal_lists):
        return False
    ends = spans(name)
    if ends is None:
        return True
    first, last = map(layout.segment, ends)
    return any(first <= one <= f"{last}~" for one in here if one.startswith(layout.wal))


def _needed(layout: SourceLayout, one: SetAtOrigin, wrapped: AbstractSet[str]) -> frozenset[str]:
    """All that must lie in a location before a set is listed there: data, WAL, documents, and a wrap of its key.

    Args:
        wrapped: ids of the keys of which a wrap is known.
    """
    documents = {layout.objects(one.label), layout.head(one.label)}
    needed = one.needs | documents | {layout.segment(name) for name in own_wal(one.head)}
    if one.head.key_id and one.head.key_id not in wrapped:
        needed |= {layout.key(one.head.key_id, 1)}
    return frozenset(needed)


def _set_group(layout: SourceLayout, one: SetAtOrigin, missing: Mapping[str, int], *, whole: bool) -> list[Group]:
    """A set in the order that protects it: keys, data and WAL, then what names them, the manifest alone at the end.

    What an earlier group copies too is named here again: this set must not be listed there if that group failed.
    """
    label = one.label
    wal = {layout.segment(name) for name in own_wal(one.head)}
    claims = {f"{name}.claim.json" for name in wal}
    labels = {name.removeprefix(layout.backups).partition("/")[0] for name in one.needs} | {str(label)}
    data = (one.needs | wal | claims) & missing.keys()
    data |= {name for name in missing if name.startswith(tuple(f"{layout.keys}{key}/" for key in labels))}
    named = [layout.objects(label), layout.manifest_copy(label), layout.head(label)]
    last = [layout.manifest(label)] if whole else []
    waves = [sorted(data), [name for name in named if name in missing], [name for name in last if name in missing]]
    return _group(str(label), waves)


def _group(subject: str, waves: Sequence[Sequence[str]]) -> list[Group]:
    filled = tuple(tuple(wave) for wave in waves if wave)
    return [Group(subject, filled)] if filled else []


def own_wal(head: Head) -> list[str]:
    """Names of the segments without which a set cannot be made consistent."""
    first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
    last = Segment.ending_at(head.stop_lsn, head.timeline, head.segment_bytes)
    return [Segment(head.timeline, n, head.segment_bytes).name for n in range(first.number, last.number + 1)]


def begin(repository: Repository, destination: Storage) -> None:
    """Make an empty place a copy of this repository, by its identity; one that is a copy already stays as it is.

    Raises:
        ClusterMismatch: something else lies there.
    """
    try:
        refuse_other_repository(repository, destination)
    except NotARepository:
        if next(iter(destination.list()), None) is not None:
            raise ClusterMismatch(
                f"{destination.url} holds something that is no copy of this repository",
                hint="A mirror begins in an empty place; give it a prefix of its own.",
            ) from None
        # Written, not copied: at the origin either of the two may be damaged, and it is opened all the same.
        # Another run may begin the same copy at this moment.
        for name in identity.NAMES:
            with contextlib.suppress(ObjectExists):
                identity.put(destination, name, Identity(repository.id, repository.created_at))


def survey(
    repository: Repository,
    source: str,
    destination: Storage,
    evidence: Evidence,
    *,
    unwanted: Collection[BackupLabel] = (),
    unwanted_wal: Collection[str] = (),
) -> MirrorPlan:
    """Look at both places and plan.

    Args:
        unwanted: sets that the location's own retention would let go again (`retention.unwanted`).
        unwanted_wal: the same of segments.

    Raises:
        NotARepository: it is no copy yet (see `begin`), or what held the copy is not mounted there.
        ClusterMismatch: another repository lies there.
        StorageError: a place does not answer; nothing is known.
    """
    refuse_other_repository(repository, destination)
    area = repository.source(source)
    heads, _ = area.readable_heads()
    sets = []
    for head in heads:
        if head.label in unwanted:
            continue
        try:
            sets.append(SetAtOrigin(head, frozenset(evidence.needs(source, head.label))))
        except Damaged:
            # What it needs is not known, so nobody could say that it is whole there.
            continue
    root = area.layout.root
    here = sizes(repository.storage, root)
    needed = {name for one in sets for name in own_wal(one.head)}
    for segment, name in area.wal.objects():
        if segment in unwanted_wal and segment not in needed:
            here.pop(name, None)
    there = sizes(destination, root)
    other_audit, shared = _shared(repository.storage, destination)
    return replace(plan(source, sets, here, there, shared), other_audit=other_audit)


def sizes(storage: Storage, root: str) -> dict[str, int]:
    """Objects with their sizes; of one that is damaged and locked, the size of what repaired it."""
    found = {stat.name: stat.size_bytes for stat in storage.list(root)}
    repaired = {stat.name.removeprefix(REPAIRS): stat.size_bytes for stat in storage.list(f"{REPAIRS}{root}")}
    return found | {name: size for name, size in repaired.items() if name in found}


def refuse_other_repository(repository: Repository, destination: Storage) -> None:
    """Go on only where a copy of this repository lies.

    Raises:
        NotARepository: none lies there, or what held it is not mounted.
        ClusterMismatch: another repository does.
    """
    try:
        other = Repository.open(destination)
    except NotARepository as error:
        # An empty place where a copy should be is most often one that is not mounted; writing there would fill
        # another disk.
        raise NotARepository(
            f"{destination.url} holds no copy of this repository",
            hint="Mount what belongs there, or begin a new copy with `seawall mirror --begin`.",
        ) from error
    refuse_other(repository, other)


def _shared(origin: Storage, destination: Storage) -> tuple[str, tuple[str, ...]]:
    """What is wrong with the audit there; and identity and script, then the audit, as far as they are missing there."""
    # There first: what another run brings meanwhile is no record that is missing here.
    theirs, ours = ([stat.name for stat in storage.list(AUDIT)] for storage in (destination, origin))
    other = _other_audit(origin, destination, ours, theirs)
    there = {*_at_root(destination), *theirs}
    # The identity comes first: what begins to be a copy must be known as one.
    here = sorted(_at_root(origin), key=lambda name: name != IDENTITY)
    return other, tuple(name for name in (*here, *(() if other else ours)) if name not in there)


def _other_audit(origin: Storage, destination: Storage, ours: Sequence[str], theirs: Sequence[str]) -> str:
    """How the audit there went on otherwise than here. Each record names the one before it, so one comparison tells."""
    if not ours or not theirs or not origin.capabilities.consistent_list:
        return ""
    if theirs[-1] > ours[-1]:
        return f"it has records up to {theirs[-1]}, and {origin.url} only up to {ours[-1]}"
    # A record that is damaged tells nothing, and is found as such.
    with contextlib.suppress(Damaged, FormatTooNew, ObjectMissing):
        if documents.get(origin, theirs[-1]) != documents.get(destination, theirs[-1]):
            return f"{theirs[-1]} is another record there than in {origin.url}"
    return ""


def _at_root(storage: Storage) -> list[str]:
    return [name for name in storage.children("") if _SHARED.fullmatch(name)]


@dataclass(frozen=True, slots=True)
class MirrorReport:
    """What a run did.

    Args:
        left: what could not be copied, each with its reason; everything else is there.
        committed: labels of sets that became whole there.
    """

    source: str
    objects: int
    stored_bytes: int
    took: timedelta
    committed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def nobody_is_told(_name: str) -> None:
    """For a run whose objects nobody locks."""


def run(
    chosen: MirrorPlan,
    origin: Storage,
    destination: Storage,
    evidence: Evidence,
    *,
    observe: Observer,
    workers: int = 4,
    held: Lease | None = None,
    copied: Callable[[str], None] = nobody_is_told,
    room: Room | None = None,
) -> MirrorReport:
    """Copy what a plan names.

    An object that is damaged or gone at the origin ends its group and no other; the manifest of its set is not copied.
    A set for which there is no room is not begun; a smaller one after it may fit, and WAL always comes.

    Args:
        evidence: of the origin.
        copied: called with the name of each object that was stored there, from several threads.
        room: what can still be written to the destination; without it, nothing is refused before it is full.
        held: the source's lease in the destination, taken before the plan was made; None where nobody else can write.

    Raises:
        LeaseLost: a cleanup or another run took over there; what was copied stays, and nothing more is listed.
        StorageUnreachable, StorageDenied, StorageFull: of either place; what was copied stays, the next run goes on.
        Cancelled: on request; the same.
    """
    return _Mirroring(chosen, origin, destination, evidence, observe, workers, held, copied, room).run()


@dataclass
class _Mirroring:
    chosen: MirrorPlan
    origin: Storage
    destination: Storage
    evidence: Evidence
    observe: Observer
    workers: int
    held: Lease | None
    copied: Callable[[str], None]
    room: Room | None
    objects: int = 0
    stored_bytes: int = 0
    committed: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def run(self) -> MirrorReport:
        begin = time.monotonic()
        self.observe.hear(Began("mirror", self.chosen.total_bytes))
        with ThreadPoolExecutor(max(self.workers, 1), thread_name_prefix="mirror") as pool:
            for group in self.chosen.groups:
                self._group(group, pool)
        self._prove_lease()
        for name in self.chosen.forget:
            # Who may not delete there leaves it to the cleanup of that location.
            with contextlib.suppress(StorageDenied):
                self.destination.delete(name)
        for name in self.chosen.other_size:
            self.left[name] = "it lies there with another size; `seawall verify --location` says which copy is sound"
        if self.chosen.other_audit:
            self.left[AUDIT] = self.chosen.other_audit
        for name in self.chosen.absent:
            self.left[name] = "a backup needs it, and neither location shows it"
        took = time.monotonic() - begin
        self.observe.hear(Ended("mirror", took))
        return MirrorReport(
            self.chosen.source,
            self.objects,
            self.stored_bytes,
            timedelta(seconds=took),
            tuple(self.committed),
            self.left,
        )

    def _group(self, group: Group, pool: ThreadPoolExecutor) -> None:
        if lacking := self._lacks_room(group):
            self.left[group.subject] = lacking
            self.observe.hear(Noticed("high", "mirror-left", f"{group.subject} is not copied: {lacking}"))
            return
        for wave in group.waves:
            # Before what lists a set above all: whoever holds the lease now may be removing what it needs.
            self._prove_lease()
            if wave[-1].endswith("/manifest") and (gone := self._gone(group.subject)):
                self.left[gone] = "a backup needs it, and it is not there any more"
                return
            wrong = {name: error for name, error in zip(wave, pool.map(self._copy, wave), strict=True) if error}
            for name, error in wrong.items():
                self.left[name] = error.message
                self.observe.hear(Noticed("medium", "mirror-left", f"{name} is not copied: {error.message}"))
            # What follows may only exist when all of this does.
            if wrong:
                return
        if group.names[-1].endswith("/manifest"):
            self.committed.append(group.subject)

    def _lacks_room(self, group: Group) -> str:
        """Why a set is not begun; empty where it fits. What is no set is small, or must never wait."""
        left = None if self.room is None else self.room.left_bytes
        if self.room is None or left is None or group.subject not in self.chosen.needs:
            return ""
        needed = sum(self.chosen.sizes[name] for name in set(group.names) - self.done)
        if needed + self.stored_bytes <= left:
            return ""
        said = f"{needed:,} bytes are missing of it; {self.room.sentence}"
        return f"{said}, of which this run took {self.stored_bytes:,}" if self.stored_bytes else said

    def _gone(self, label: str) -> str:
        """What a set needs and a list there still shows, although it was removed; empty where lists do not lag."""
        if self.destination.capabilities.consistent_list:
            return ""
        return next((name for name in sorted(self.chosen.needs[label]) if not _is_there(self.destination, name)), "")

    def _prove_lease(self) -> None:
        if self.held is not None:
            self.held.check()

    def _copy(self, name: str) -> SeawallError | None:
        self.observe.checkpoint()
        if name in self.done:
            return None
        try:
            size = copy_object(name, self.origin, self.destination, self.evidence, observe=self.observe)
        except _RETRIED_LATER as error:
            # The receiver replaced it meanwhile by a longer one, or by the whole segment: a later run brings that.
            superseded = is_tail(name) and not _is_there(self.origin, name)
            return None if superseded else error
        self.copied(name)
        self.done.add(name)
        self.objects += 1
        self.stored_bytes += size
        self.observe.hear(Advanced("mirror", size, size))
        return None


def copy_object(
    name: str, origin: Storage, destination: Storage, evidence: Evidence, *, observe: Observer | None = None
) -> int:
    """Copy one object after it was, or while it is, compared with what the repository says of it; its size.

    Raises:
        Damaged: it is not what was written; nothing was stored.
        ObjectMissing: it is gone here.
        StorageError: another number of bytes is stored than was sent, or a place does not answer.
    """
    sha256 = evidence.sha256(name)
    if not sha256 and evidence.can_tell(name):
        # A ring without a private key opens no WAL; what no list names is then copied as it is.
        with contextlib.suppress(KeyMissing):
            evidence.refuse_damaged(name, origin.get(name))
    sent = [0]

    def chunks() -> Iterator[Bytes]:
        counted = Counted(origin.get(name))
        for chunk in counted:
            if observe is not None:
                observe.checkpoint()
            yield chunk
        # Raised before the destination takes the object for finished, so that it is never there under its name.
        if sha256 and counted.sha256 != sha256:
            raise Damaged(f"{name} in {origin.url} is not what was stored: its SHA-256 differs")
        sent[0] = counted.stored_bytes

    try:
        stat = destination.put(name, Replayable(chunks))
    except ObjectExists:
        # Another run was faster.
        return destination.stat(name).size_bytes
    if stat.size_bytes != sent[0]:
        raise StorageError(f"{name}: {sent[0]} bytes were sent, {stat.size_bytes} are stored in {destination.url}")
    return stat.size_bytes


# ---- policy


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """How many copies a source's backups shall have.

    Args:
        locations: which shall hold them, besides the primary.
        copies: in so many locations, the primary among them, a backup counts as protected.
        within: so long after its end a copy may be missing.
    """

    locations: tuple[str, ...]
    copies: int = 1
    within: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Protection:
    """How a backup stands: where it lies, whether that is enough, and which locations are late."""

    label: BackupLabel
    locations: tuple[str, ...]
    protected: bool
    late: tuple[str, ...]


def protection(
    policy: MirrorPolicy,
    heads: Sequence[Head],
    held: Mapping[str, frozenset[BackupLabel]],
    *,
    now: datetime,
    unwanted: Mapping[str, Collection[BackupLabel]] | None = None,
) -> tuple[Protection, ...]:
    """Judge every listed backup; pure.

    Args:
        heads: of the sets listed in the primary.
        held: labels that are listed, by location; a location that did not answer is left out, and lacks everything.
        unwanted: what a location's own retention would let go, by location: nobody waits for it there.
    """
    result = []
    for head in heads:
        where = tuple(name for name in sorted(held) if head.label in held[name])
        spared = {name for name, labels in (unwanted or {}).items() if head.label in labels}
        missing = tuple(name for name in policy.locations if name not in where and name not in spared)
        wanted = min(policy.copies, 1 + len(policy.locations) - len(spared - set(where)))
        is_due = now - head.ended_at > policy.within
        result.append(Protection(head.label, where, len(where) >= wanted, missing if is_due else ()))
    return tuple(result)


def _is_there(storage: Storage, name: str) -> bool:
    try:
        storage.stat(name)
    except ObjectMissing:
        return False
    return True
