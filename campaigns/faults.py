"""Faults: each call to the storage goes wrong once, in each way that storages have; clocks jump; a lease is lost.

Every verb runs once on a sound storage to learn its calls. Then it runs again for each call and each trouble, on a
copy of the sample: it must succeed or say what happened, in an error of the class that names the cause. Nothing that
was listed is lost, what is new is whole, and on a sound storage the same verb then succeeds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from campaigns import sample
from campaigns.damage import LATER
from campaigns.sample import SOURCE, Sample
from seawall import retention, verify
from seawall.audit import AuditLog
from seawall.errors import (
    ClockWentBackwards,
    LeaseHeld,
    LeaseLost,
    ObjectExists,
    SeawallError,
    StorageFull,
    StorageUnreachable,
)
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Compression, Proof, SealingMode
from seawall.repository import Repository, SourceArea, documents, lease
from seawall.storage.base import Bytes, Stat, Storage
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper
from seawall.wal import Segment

Verb = Callable[["Stage"], object]


@dataclass
class Stage:
    """A copy of the sample in a storage whose clock is set by hand, and the faulty way to it."""

    made: Sample
    ring: KeyRing
    storage: Storage = field(init=False)
    moment: datetime = LATER
    faulty: Storage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = self._place()
        for stat in self.made.storage.list():
            self.moment = stat.modified_at
            self.storage.put(stat.name, self.made.storage.get(stat.name))
        self.moment = LATER
        self.faulty = self.storage

    def _place(self) -> Storage:
        return MemoryStorage(clock=lambda: self.moment)

    @property
    def repository(self) -> Repository:
        return Repository.open(self.faulty)

    @property
    def sound(self) -> SourceArea:
        """The source as it truly is, past all faults."""
        return SourceArea(self.storage, SOURCE)


# ---- what is done meanwhile


def write_set(stage: Stage) -> object:
    """A backup set, from its lease to its commit."""
    area = stage.repository.source(SOURCE)
    return sample.back_up(stage.made.sealing, area, stage.moment, 6, random.Random(1)).label


def archive(stage: Stage) -> object:
    """A segment, a tail of the next one, and the end of the tails before it."""
    wal = stage.repository.source(SOURCE).wal
    whole, opened = (Segment(2, number, sample.SEGMENT_BYTES) for number in (11, 12))
    data = sample.wal_bytes(whole, random.Random(2))
    wal.put_segment(whole.name, data, stage.made.sealing)
    wal.forget_tails(whole)
    wal.put_tail(opened, opened.start + 4096, sample.wal_bytes(opened, random.Random(3)), stage.made.sealing)
    return whole.name


def let_go(stage: Stage) -> object:
    """The oldest set is marked once more, after its mark was withdrawn."""
    oldest = stage.made.labels[0]
    stage.storage.delete(stage.sound.layout.expiry(oldest))
    plan = retention.RetentionPlan(SOURCE, stage.moment, (), (retention.Decision(oldest, ("campaign",), 0),))
    return retention.expire(stage.repository, plan, actor="campaign", now=stage.moment)


def collect(stage: Stage) -> object:
    """What was marked goes, two days later."""
    stage.moment += timedelta(days=2)
    return retention.collect(stage.repository, SOURCE, actor="campaign", now=stage.moment, observe=Observer())


def hold(stage: Stage) -> object:
    """A hold is placed and released, each in the audit before."""
    repository, label = stage.repository, stage.made.labels[2]
    AuditLog(repository.storage).append("campaign", "hold", str(label), {}, now=stage.moment)
    placed = repository.source(SOURCE).place_hold(label, reason="campaign", owner="campaign", now=stage.moment)
    repository.source(SOURCE).release_hold(placed.id, owner="campaign", now=stage.moment)
    return placed.id


def prove(stage: Stage) -> object:
    """The newest set is verified; an outage is no finding."""
    area = stage.repository.source(SOURCE)
    verdict = verify.check(area, stage.made.labels[2], stage.ring, now=stage.moment, observe=Observer(), workers=1)
    if verdict.findings:
        raise AssertionError(f"a storage that fails was taken for damage: {verdict.findings}")
    return verdict.reached


VERBS: Mapping[str, Verb] = {
    "write a set": write_set, "archive": archive, "expire": let_go, "collect": collect, "hold": hold, "verify": prove,
}  # fmt: skip

# ---- what goes wrong


class Twice(Wrapper):
    """A put whose first answer is lost on the way and that is sent again by something below: it meets itself."""

    def __init__(self, inner: Storage, number: int) -> None:
        super().__init__(inner)
        self._left = number

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        self._left -= 1
        stat = self.inner.put(name, chunks)
        if self._left == 0:
            return self.inner.put(name, [b"sent again"])
        return stat


class Interrupting(Wrapper):
    """Calls back before the call of that number, whatever it is."""

    def __init__(self, inner: Storage, number: int, act: Callable[[], object]) -> None:
        super().__init__(inner)
        self._left, self._act = number, act
        self.names: list[str] = []

    def _pass(self, name: str) -> None:
        self._left -= 1
        self.names.append(name)
        if self._left == 0:
            self._act()

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        self._pass(name)
        return self.inner.put(name, chunks)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._pass(name)
        return self.inner.get(name, offset, length)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        self._pass(prefix)
        return self.inner.list(prefix)

    def now(self) -> datetime:
        self._pass("now")
        return self.inner.now()


@dataclass(frozen=True, slots=True)
class Case:
    """One way in which a call goes wrong.

    Args:
        make: the way to the storage, for the call of that number.
        allowed: the errors that name this cause; success is always allowed, for what can be done without.
    """

    name: str
    make: Callable[[Stage, int], Storage]
    allowed: tuple[type[SeawallError], ...]
    operations: tuple[str, ...]


_UNREACHABLE = (StorageUnreachable,)


def _script(trouble: Trouble, operation: str = "*", **more: Any) -> Callable[[Stage, int], Storage]:
    def make(stage: Stage, number: int) -> Storage:
        fault = Fault(trouble, operation, skip=number - 1, **more)
        return Faulty(stage.storage, [fault], sleep=lambda seconds: _pause(stage, seconds))

    return make


def _pause(stage: Stage, seconds: float) -> None:
    stage.moment += timedelta(seconds=seconds)


def _jump(by: timedelta) -> Callable[[Stage, int], Storage]:
    return lambda stage, number: Interrupting(stage.storage, number, lambda: _pause(stage, by.total_seconds()))


def _usurp(stage: Stage, number: int) -> Storage:
    """Another writer takes the lease over, as one may that finds it run out while this one was paused."""

    def act() -> None:
        newest = lease.newest(stage.storage, stage.sound.layout)
        token = newest.token + 1 if newest else 1
        usurper = {"holder": "another", "purpose": "backup", "ttl_seconds": 1.0, "token": token, "nonce": "x"}
        documents.put(stage.storage, stage.sound.layout.lease(token), usurper)

    return Interrupting(stage.storage, number, act)


# What a list that lags behind may bring about: names that are taken, and leases that seem to run.
_STALE = (ObjectExists, LeaseHeld, LeaseLost)
_CLOCK = (ClockWentBackwards, LeaseLost, LeaseHeld)

CASES = (
    Case("fails before", _script(Trouble.FAIL_BEFORE), _UNREACHABLE, ("*",)),
    Case("fails after", _script(Trouble.FAIL_AFTER), _UNREACHABLE, ("*",)),
    Case("cut short", _script(Trouble.CUT_SHORT, "put", after_bytes=10), _UNREACHABLE, ("put",)),
    Case("cut short when read", _script(Trouble.CUT_SHORT, "get", after_bytes=10), _UNREACHABLE, ("get",)),
    Case("hangs for ten minutes", _script(Trouble.HANG, seconds=600.0), (LeaseLost, ClockWentBackwards), ("*",)),
    Case("answers stale", _script(Trouble.STALE, "list", lag=3), _STALE, ("list",)),
    Case("folders answer stale", _script(Trouble.STALE, "children", lag=3), _STALE, ("children",)),
    Case("disk full", _script(Trouble.DISK_FULL, "put"), (StorageFull,), ("put",)),
    Case("disk full in the middle", _script(Trouble.DISK_FULL, "put", after_bytes=200), (StorageFull,), ("put",)),
    Case("answers twice", lambda stage, number: Twice(stage.storage, number), (ObjectExists, LeaseHeld), ("put",)),
    Case("clock jumps forward", _jump(timedelta(days=1)), _CLOCK, ("put", "get", "list", "now")),
    Case("clock jumps back", _jump(timedelta(days=-1)), _CLOCK, ("put", "get", "list", "now")),
    Case("lease lost", _usurp, (LeaseLost, LeaseHeld), ("put", "get", "list", "now")),
)

# ---- the campaign


@dataclass
class Tally:
    """Trials by verb and case, with how each ended, and what was wrong."""

    cases: Sequence[str]
    trials: Counter[str] = field(default_factory=Counter)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def print(self) -> None:
        print(f"\n{'':<26}{'trials':>8}  how the verb ended")
        for case in self.cases:
            ends = {end: count for (name, end), count in sorted(self.ends.items()) if name == case}
            print(f"{case:<26}{sum(ends.values()):>8}  {', '.join(f'{k} {v}' for k, v in ends.items())}")
        print(f"{sum(self.trials.values())} trials: " + ", ".join(f"{k} {v}" for k, v in self.trials.items()))
        for line in self.wrong:
            print(f"  {line}")


def run(ring: KeyRing, seed: int, modes: Iterable[SealingMode] = (SealingMode.NONE,), share: float = 1.0) -> Tally:
    """The campaign; a share of the calls that is less than all is drawn at random."""
    tally, randomness = Tally([case.name for case in CASES]), random.Random(seed)
    for mode in modes:
        made = sample.make(ring, mode, Compression.LZ4, seed)
        for name, verb in VERBS.items():
            asked = calls(Stage(made, ring), verb)
            for case in CASES:
                for number in range(1, _matching(asked, case) + 1):
                    if randomness.random() < share:
                        _trial(Stage(made, ring), name, case, number, tally)
    return tally


def calls(stage: Stage, verb: Verb) -> list[str]:
    """The operations that a verb asks of the storage, in order."""
    faulty = Faulty(stage.storage)
    stage.faulty = faulty
    verb(stage)
    return [operation for operation, _ in faulty.calls]


def _matching(calls: list[str], case: Case) -> int:
    return len(calls) if "*" in case.operations else sum(call in case.operations for call in calls)


def _trial(stage: Stage, name: str, case: Case, number: int, tally: Tally) -> None:
    verb = VERBS[name]
    listed = stage.sound.labels()
    stage.faulty = case.make(stage, number)
    tally.trials[name] += 1
    try:
        verb(stage)
        end = "done"
    except SeawallError as error:
        end = error.code
        if not isinstance(error, case.allowed):
            tally.wrong.append(f"{name}, call {number} {case.name}: says {error.code}: {error}")
    except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
        end = type(error).__name__
        tally.wrong.append(f"{name}, call {number} {case.name}: {end}: {error}")
    tally.ends[case.name, end] += 1
    tally.wrong += [f"{name}, call {number} {case.name}: {fault}" for fault in look(stage, listed, name, verb)]


def look(stage: Stage, listed: tuple[BackupLabel, ...], name: str, verb: Verb) -> Iterator[str]:
    yield from _whole(stage, listed)
    # Five minutes end a lease that nobody released; a clock that had jumped back is right again.
    stage.moment = max(stage.moment, LATER) + timedelta(days=1, minutes=10)
    stage.faulty = stage.storage
    try:
        verb(stage)
    except SeawallError as error:
        yield f"{name} does not succeed afterwards: {error.code}: {error}"
    yield from _whole(stage, listed)


def _whole(stage: Stage, listed: tuple[BackupLabel, ...]) -> Iterator[str]:
    area = stage.sound
    now = area.labels()
    yield from (
        f"{label} is not listed any more" for label in listed if label not in now and label != stage.made.labels[0]
    )
    for label in now:
        level = Proof.PRESENT if label in listed else Proof.DECRYPTABLE
        verdict = verify.check(area, label, stage.ring, up_to=level, now=stage.moment, observe=Observer(), workers=1)
        yield from (f"{label}: {finding.message}" for finding in verdict.findings)
    for segment in area.wal.names():
        if segment in stage.made.wal and area.wal.fetch(segment, stage.ring) != stage.made.wal[segment]:
            yield f"{segment} is not what was stored"
