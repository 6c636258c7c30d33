"""Verification as a policy: each object's proof has an age, and a nightly budget renews the oldest first.

A budget that does not suffice for everything still gets round: what was proved longest ago, or never, comes first.
The memory of proofs is whoever's calls this (the catalog); it is a convenience and no truth. Where it is lost, every
object counts as never proved, and the oldest backups are read first again.

States climb: present, hash good, decryptable; a backup is restorable when all its objects are decryptable and its WAL
is continuous, and restored when a restore test brought it back. What is found wrong is proved of nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby

from seawall import verify
from seawall.archive.intake import read_header, refuse_other_place
from seawall.errors import (
    BackupMissing,
    ClusterMismatch,
    Damaged,
    FormatTooNew,
    ObjectMissing,
    StorageDenied,
    StorageUnreachable,
    UsageError,
)
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.limits import BYTES
from seawall.model import BackupLabel, Finding, Proof, StoredObject, Verdict
from seawall.repository import SourceArea
from seawall.repository.sealed import Counted
from seawall.repository.wal_lists import How, WalLists

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_BUDGET = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join([*BYTES, *_SECONDS])})")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_WRONG_WAL = (Damaged, ObjectMissing, FormatTooNew, ClusterMismatch)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be read, in bytes or in time; None is no limit."""

    stored_bytes: int | None = None
    time: timedelta | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `50GB`, `500MiB`, `30m` or `2h`.

        Raises:
            UsageError: it is neither.
        """
        match = _BUDGET.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"{text!r} is no budget", hint="Write an amount such as 50GB, or a time such as 30m.")
        number, unit = float(match[1]), match[2]
        if unit in _SECONDS:
            return cls(time=timedelta(seconds=number * _SECONDS[unit]))
        return cls(stored_bytes=int(number * BYTES[unit]))


@dataclass(frozen=True, slots=True)
class Provable:
    """One object, and what is known of it.

    Args:
        source, label: the backup under which it is read; no label for WAL.
        proof: how far it was proved when it was last read; None if never, or if something was wrong with it.
    """

    source: str
    label: BackupLabel | None
    name: str
    stored_bytes: int
    proof: Proof | None = None
    proved_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """What is read now, in this order, and what waits.

    Args:
        oldest_left: when the one that waits longest was last proved; None if never, or if nothing waits.
    """

    chosen: tuple[Provable, ...]
    left: int
    left_bytes: int
    oldest_left: datetime | None

    @property
    def stored_bytes(self) -> int:
        return sum(one.stored_bytes for one in self.chosen)


def plan(objects: Sequence[Provable], budget: Budget, now: datetime, *, fresh: timedelta = timedelta(0)) -> ProofPlan:
    """Choose what is read: never proved first, then by the age of the proof; pure.

    A budget in bytes admits objects until the next one would exceed it, and always at least one: else an object larger
    than the budget would never be read. A budget in time admits all, and `run` stops when it is spent.

    Args:
        now: proofs from after it count as of now, so that a clock that was wrong once hides nothing for long.
        fresh: what was proved less than so long ago is not read again.
    """
    due = [one for one in objects if one.proved_at is None or now - min(one.proved_at, now) >= fresh]
    ordered = sorted(due, key=lambda one: (_age_key(one, now), one.source, str(one.label or "~"), one.name))
    admitted = _admitted(ordered, budget.stored_bytes)
    rest = ordered[admitted:]
    oldest = None if not rest or rest[0].proved_at is None else rest[0].proved_at
    return ProofPlan(tuple(ordered[:admitted]), len(rest), sum(one.stored_bytes for one in rest), oldest)


def _age_key(one: Provable, now: datetime) -> datetime:
    # What was found wrong is looked at again first: somebody may have healed it.
    return _LONG_AGO if one.proof is None or one.proved_at is None else min(one.proved_at, now)


def _admitted(ordered: Sequence[Provable], limit: int | None) -> int:
    if limit is None:
        return len(ordered)
    total = 0
    for count, one in enumerate(ordered):
        total += one.stored_bytes
        if total > limit and count:
            return count
    return len(ordered)


def objects_of(area: SourceArea, known: Mapping[str, tuple[Proof | None, datetime]]) -> Iterator[Provable]:
    """Every object of a source that can be proved: what its listed backups need, and its WAL.

    An object that several backups need is read under the first of them. A backup whose list cannot be read is given
    with its manifest alone, so that reading it says what is wrong.

    Args:
        known: by name, how far and when it was proved; None as proof for what was wrong.
    """
    seen: set[str] = set()
    for label in area.labels():
        for name, size in _of_set(area, label):
            if name not in seen:
                seen.add(name)
                yield Provable(area.name, label, name, size, *known.get(name, (None, None)))
    for stat in area.storage.list(area.layout.wal):
        if _SEGMENT.fullmatch(stat.name.rsplit("/", 1)[1]):
            yield Provable(area.name, None, stat.name, stat.size_bytes, *known.get(stat.name, (None, None)))


def _of_set(area: SourceArea, label: BackupLabel) -> list[tuple[str, int]]:
    names: list[tuple[str, int]] = []
    for name in (area.layout.manifest(label), area.layout.manifest_copy(label)):
        try:
            names.append((name, area.storage.stat(name).size_bytes))
        except ObjectMissing:
            names.append((name, 0))
    try:
        return names + [(stored.name, stored.stored_bytes) for stored in area.stored_objects(label)]
    except Damaged:
        return names


@dataclass(frozen=True, slots=True)
class ProofReport:
    """What a run proved and found.

    Args:
        proved: how far each object was proved that was read and is good.
        wrong: what was wrong with others, by name.
        verdicts: of the backups of which something was read.
        skipped: objects that the time did not suffice for.
        unlisted: WAL that was opened and is good, and that no clear list names yet, or only one that read it back.
    """

    proved: Mapping[str, Proof]
    wrong: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    stored_bytes: int
    took: timedelta
    skipped: int = 0
    unlisted: tuple[StoredObject, ...] = ()

    @property
    def good(self) -> bool:
        return not self.wrong and all(verdict.good for verdict in self.verdicts)

    @property
    def findings(self) -> tuple[Finding, ...]:
        wal = tuple(Finding("wal-damaged", name, why) for name, why in self.wrong.items() if "/wal/" in name)
        return (*(finding for verdict in self.verdicts for finding in verdict.findings), *wal)


def run(
    chosen: ProofPlan,
    area: SourceArea,
    ring: KeyRing,
    *,
    up_to: Proof = Proof.DECRYPTABLE,
    until: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: datetime,
    observe: Observer,
    workers: int = 2,
) -> ProofReport:
    """Read what a plan chose from one source, oldest proof first.

    Args:
        up_to: `hash-good` where no private key is at hand; WAL that no list names yet is then left out, since nothing
            can be said about it.
        until: by `clock`; no object is begun after it.
        now: becomes the time of the verdicts.

    Raises:
        StorageUnreachable, StorageDenied: nothing can be said; no proof is given.
        Cancelled: on request.
    """
    return _Run(
        area, ring, min(up_to, Proof.DECRYPTABLE, key=list(Proof).index), until, clock, now, observe, workers
    ).over([one for one in chosen.chosen if one.source == area.name])


@dataclass
class _Run:
    area: SourceArea
    ring: KeyRing
    up_to: Proof
    until: float | None
    clock: Callable[[], float]
    now: datetime
    observe: Observer
    workers: int
    proved: dict[str, Proof] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    stored_bytes: int = 0
    unlisted: list[StoredObject] = field(default_factory=list)

    def over(self, objects: Sequence[Provable]) -> ProofReport:
        begin = self.clock()
        read = 0
        # Neighbours of one backup are read together, because its manifest is opened for them.
        for label, group in groupby(objects, key=lambda one: one.label):
            if self._is_late():
                break
            members = list(group)
            read += self._wal(members) if label is None else self._set(label, members)
        took = timedelta(seconds=self.clock() - begin)
        skipped, unlisted = len(objects) - read, tuple(self.unlisted)
        return ProofReport(self.proved, self.wrong, tuple(self.verdicts), self.stored_bytes, took, skipped, unlisted)

    def _is_late(self) -> bool:
        return self.until is not None and self.clock() >= self.until

    def _set(self, label: BackupLabel, members: Sequence[Provable]) -> int:
        names = {one.name for one in members}

        def only(stored: StoredObject) -> bool:
            return stored.name in names and not self._is_late()

        try:
            verdict = verify.check(
                self.area, label, self.ring, up_to=self.up_to, only=only, now=self.now, observe=self.observe,
                workers=self.workers,
            )  # fmt: skip
        except BackupMissing as error:
            self.wrong |= dict.fromkeys(names, error.message)
            return len(names)
        self.verdicts.append(verdict)
        self.proved |= {name: proof for name, proof in verdict.proved.items() if name in names}
        found = {finding.subject: finding.message for finding in verdict.findings}
        self.wrong |= {name: found[name] for name in names if name in found}
        read = [one for one in members if one.name in self.proved or one.name in found]
        self.stored_bytes += sum(one.stored_bytes for one in read)
        return len(read)

    def _wal(self, members: Sequence[Provable]) -> int:
        identity, lists = self.area.identity(), self.area.wal.known_lists()
        for count, one in enumerate(members):
            self.observe.checkpoint()
            if self._is_late():
                return count
            try:
                self._segment(one, None if identity is None else identity.system_identifier, lists)
            except (StorageUnreachable, StorageDenied):
                raise
            except _WRONG_WAL as error:
                self.wrong[one.name] = error.message
        return len(members)

    def _segment(self, one: Provable, system_identifier: int | None, lists: WalLists) -> None:
        listed, opens = lists.find(one.name), self.up_to is Proof.DECRYPTABLE
        if not opens and (listed is None or self.up_to is not Proof.HASH_GOOD):
            return
        self.stored_bytes += one.stored_bytes
        stored = self._opened(one, system_identifier) if opens else self._hashed(one)
        # A message may open with one key and be damaged for the others; only its stored bytes tell.
        lists.refuse_other(one.name, stored.stored_bytes, stored.stored_sha256)
        self.proved[one.name] = self.up_to
        if opens and (listed is None or listed.how is How.READ):
            self.unlisted.append(stored)

    def _hashed(self, one: Provable) -> StoredObject:
        counted = Counted(self.area.storage.get(one.name))
        for _ in counted:
            self.observe.checkpoint()
        return StoredObject(one.name, counted.stored_bytes, counted.sha256, 0)

    def _opened(self, one: Provable, system_identifier: int | None) -> StoredObject:
        name = one.name.rsplit("/", 1)[1]
        data, stored = self.area.wal.proved(one.name, self.ring)
        header = read_header(data, name)
        refuse_other_place(header, name)
        if system_identifier is not None and header.system_identifier != system_identifier:
            raise ClusterMismatch(f"{name} is WAL of the cluster {header.system_identifier}")
        return stored


def state_of(
    objects: AbstractSet[str], known: Mapping[str, tuple[Proof | None, datetime]]
) -> tuple[Proof | None, datetime | None]:
    """How far a backup is proved by the proofs of its objects, and since when: the least of them, and the oldest."""
    levels, order = [known.get(name, (None, _LONG_AGO)) for name in objects], list(Proof)
    if not levels or any(proof is None for proof, _ in levels):
        return None, None
    least = min((proof for proof, _ in levels if proof is not None), key=order.index)
    return least, min(at for _, at in levels)
