"""A repository in three places, what is done with it, and what must hold of it.

Time passes in hours, and each place keeps backups by rules of its own. What must stay is counted here anew, from when
backups ended; the engine's own plans are not asked. What happens when is drawn in `lives`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from campaigns import sample
from campaigns.damage import as_laid, files_laid, flip, truncate
from campaigns.sample import SEGMENT_BYTES, SOURCE, SYSTEM_IDENTIFIER, Taken
from seawall import locations, restore, retention, traces, upkeep, verify
from seawall.audit import AuditLog
from seawall.catalog import Catalog
from seawall.errors import SeawallError, StorageUnreachable
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.mirror import own_wal
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    Head,
    Hold,
    RecoveryTarget,
    SealingMode,
    TargetKind,
)
from seawall.nearest import Copy, Nearest, as_read
from seawall.postgres.binaries import Account
from seawall.proofs import Budget
from seawall.repository import Repository, Sealing, SourceArea
from seawall.repository.area import new_hold_id
from seawall.repository.layout import REPAIRS
from seawall.restore import lay, tree
from seawall.settings import PRIMARY, RepositorySettings, Settings, parse
from seawall.storage.base import Storage
from seawall.storage.faulty import Faulty, KillPoint
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

# How long each place keeps every backup, and every moment: the copies for longer and for less than the primary.
DAYS: Mapping[str, int] = {PRIMARY: 7, "offsite": 21, "vault": 5}
LOCKED = "offsite"
_ACTOR = "campaign"
# What is damaged is healed within this, and was younger than the other: the last sound copy goes by no rule meanwhile.
HEALED_WITHIN = timedelta(hours=30)
_YOUNG = timedelta(days=3)


class Ground(MemoryStorage):
    """A place as its disk is: bytes change there past all rules and locks."""

    def __init__(self, name: str, clock: Callable[[], datetime]) -> None:
        self._then: datetime | None = None
        self.down = False
        super().__init__(name, clock=lambda: self._then or clock())

    def spoil(self, name: str, content: bytes | None) -> None:
        """Let an object have other bytes, or be gone, with the date and the lock that it had."""
        self._then, kept = self.stat(name).modified_at, self._retained.pop(name, None)
        self.delete(name)
        if content is not None:
            self.put(name, [content])
            if kept is not None:
                self._retained[name] = kept
        self._then = None

    def bytes_of(self, name: str) -> bytes | None:
        return b"".join(self.get(name)) if name in self._objects else None

    def names(self, prefix: str = "") -> set[str]:
        return {stat.name for stat in self.list(prefix)}


@dataclass(frozen=True, slots=True)
class Known:
    """A backup that was committed: what it holds, and which objects it needs."""

    taken: Taken
    head: Head
    needs: frozenset[str]

    @property
    def label(self) -> BackupLabel:
        return self.taken.label


@dataclass
class Life:
    """One repository in three places, whoever works on it, and what is known of it past all of them."""

    ring: KeyRing
    randomness: random.Random
    catalog: Catalog
    mode: SealingMode
    into: Path
    now: datetime = sample.NOON
    segment: int = 1
    backups: list[Known] = field(default_factory=list)
    sealed: dict[str, bytes] = field(default_factory=dict)
    wal: dict[str, bytes] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    damaged_since: datetime | None = None
    killing: KillPoint | None = None
    begun: Taken | None = None

    def __post_init__(self) -> None:
        self.grounds = {name: self._ground(name) for name in DAYS}
        self.settings = _settings()
        self.layout = SourceArea(self.grounds[PRIMARY], SOURCE).layout
        self.sealing = Sealing(self.mode, Compression.LZ4, 1, sample.recipients(self.ring), self.ring)

    def _ground(self, name: str) -> Ground:
        return Ground(name, lambda: self.now)

    def begin(self) -> None:
        primary = Repository.create(self.grounds[PRIMARY], now=self.now)
        primary.install_recovery_script("# stands for recover.py\n")
        primary.source(SOURCE).claim(ClusterIdentity(SYSTEM_IDENTIFIER, 18, (1,)), self.now)
        self.back_up(full=True)
        self.mirror(begin=True)

    # ---- what is reached, and how

    def reach(self, place: RepositorySettings, **_how: object) -> Storage:
        """In place of `open_storage`: a place as the engine sees it, if it answers."""
        ground = self.grounds[place.url.removeprefix("memory:")]

        def at(point: str, name: str) -> None:
            if self.killing is not None:
                self.killing(point, name)
            if ground.down and not point.endswith(".after"):
                raise StorageUnreachable(f"{ground.url} does not answer")

        return Faulty(ground, at=at)

    def repository(self) -> Repository:
        return Repository.open(locations.opened(self.settings, PRIMARY, Observer()))

    @property
    def is_sound(self) -> bool:
        return self.damaged_since is None and not self.down

    @property
    def down(self) -> list[str]:
        return [name for name, ground in self.grounds.items() if ground.down]

    # ---- what is done

    def back_up(self, *, full: bool) -> None:
        area = self.repository().source(SOURCE)
        prior = self.backups[-1] if self.backups and not full else None
        start = self.segment
        self.archive(2)
        self.begun = None
        sample.back_up(
            self.sealing, area, self.now, start, self.randomness, about=self._begin_to_commit,
            prior=None if prior is None else prior.taken,
        )  # fmt: skip
        self.learn()

    def _begin_to_commit(self, taken: Taken) -> None:
        self.begun = taken

    def learn(self) -> None:
        """Know the newest backup if it was committed, also where its writer was killed right after that."""
        taken, self.begun = self.begun, None
        if taken is not None and taken.label in SourceArea(self.grounds[PRIMARY], SOURCE).labels():
            self._learn(taken)

    def _learn(self, taken: Taken) -> None:
        ground, layout, label = self.grounds[PRIMARY], self.layout, taken.label
        area = SourceArea(ground, SOURCE)
        needs = set(area.needed_objects(label)) | {layout.head(label), layout.objects(label), layout.manifest(label)}
        keys = {f"{layout.keys}{name.split('/')[3]}/" for name in needs}
        head = area.head(label)
        needs |= {layout.segment(name) for name in own_wal(head)}
        needs |= {name for name in ground.names(layout.keys) if name.startswith(tuple(keys))}
        self._seal(needs)
        self.backups.append(Known(taken, head, frozenset(needs)))

    def _seal(self, names: Iterable[str]) -> None:
        for name in names:
            content = self.grounds[PRIMARY].bytes_of(name)
            if content is not None:
                self.sealed.setdefault(name, content)

    def archive(self, count: int) -> None:
        wal = self.repository().source(SOURCE).wal
        for _ in range(count):
            one = Segment(1, self.segment, SEGMENT_BYTES)
            # A server gives the same segment again until it is told that it is stored.
            content = self.wal.setdefault(one.name, sample.wal_bytes(one, self.randomness))
            wal.put_segment(one.name, content, self.sealing)
            self._seal([self.layout.segment(one.name)])
            self.segment += 1
        if self.randomness.random() < 0.5:
            wal.write_list()

    def mirror(self, *, begin: bool = False) -> None:
        gone = self.grounds[PRIMARY].down
        repository = Repository.open(self.copies()) if gone else self.repository()
        done = upkeep.mirror_source(
            self.settings, repository, SOURCE, self.ring, self.catalog,
            begin=begin, from_copies=gone, now=self.now, observe=Observer(),
        )  # fmt: skip
        for name, error in done.failures.items():
            if not self.grounds[name].down:
                raise error

    def clean(self, name: str) -> None:
        if self.grounds[PRIMARY].down and name != PRIMARY:
            retention.clean_copy_alone(
                self.settings, self.copies(), SOURCE, name, actor=_ACTOR, now=self.now, observe=Observer()
            )
            return
        repository = self.repository()
        if name != PRIMARY:
            retention.clean_copy(
                self.settings, repository, SOURCE, name, actor=_ACTOR, now=self.now, observe=Observer()
            )
            return
        policy = retention.policy_for(self.settings, SOURCE)
        plan = retention.plan_for(
            repository.source(SOURCE),
            policy,
            now=self.now,
            awaited=lambda heads: retention.awaited(self.settings, SOURCE, heads, now=self.now, observe=Observer()),
        )
        retention.expire(repository, plan, actor=_ACTOR, now=self.now)
        retention.collect(repository, SOURCE, policy=policy, actor=_ACTOR, now=self.now, observe=Observer())

    def prove(self, name: str) -> upkeep.Proved:
        return upkeep.prove(
            self.settings, SOURCE, self.ring, self.catalog, Budget(), location=name, actor=_ACTOR,
            now=self.now, observe=Observer(), workers=1,
        )  # fmt: skip

    def heal(self) -> None:
        """Everything answers, and is proved and healed everywhere, until nothing is found any more."""
        for ground in self.grounds.values():
            ground.down = False
        for _ in range(2):
            # What is missing in a copy, the next mirror brings.
            self.mirror()
            proved = [self.prove(name) for name in DAYS]
        if failure := upkeep.proof_failure(proved):
            raise failure
        self.damaged_since = None

    def hold(self) -> None:
        """A hold is placed, or the one that there is released; each in the audit before."""
        repository = self.repository()
        area, audit = repository.source(SOURCE), AuditLog(repository.storage)
        for placed in area.holds(self.now):
            audit.append(_ACTOR, "release-hold", f"{SOURCE} {placed.id}", {}, now=self.now)
            area.release_hold(placed.id, owner=_ACTOR, now=self.now)
            return
        if not (labels := area.labels()):
            return
        label, hold_id = self.randomness.choice(labels), new_hold_id(self.now)
        audit.append(_ACTOR, "hold", f"{SOURCE} {label}", {"id": hold_id, "reason": "campaign"}, now=self.now)
        area.place_hold(label, reason="campaign", owner=_ACTOR, now=self.now, hold_id=hold_id)

    def holds(self) -> tuple[Hold, ...]:
        return self.repository().source(SOURCE).holds(self.now)

    def end_lost_holds(self) -> None:
        """A hold that is in the audit alone is ended there."""
        ground = self.grounds[PRIMARY]
        audit = AuditLog(ground)
        for finding in traces.missed(SourceArea(ground, SOURCE), now=self.now):
            if finding.code == "hold-lost":
                hold_id = finding.subject.removeprefix(self.layout.holds).removesuffix(".json")
                audit.append(_ACTOR, "release-hold", f"{SOURCE} {hold_id}", {}, now=self.now)

    def damage(self) -> None:
        """One object in one place; it lies unharmed in another one as well."""
        young = [one for one in self.backups if self.now - one.head.stopped_at < _YOUNG]
        names = sorted(set().union(*(one.needs for one in young)))
        choices = [(name, place) for name in names for place in self.true_places(name) if self._is_spare(name)]
        if not choices:
            return
        name, place = self.randomness.choice(choices)
        how = self.randomness.choice((flip, truncate, None))
        self.grounds[place].spoil(name, None if how is None else how(self.sealed[name], self.randomness))
        self.steps[-1] += f" of {name} in {place}"
        self.damaged_since = self.damaged_since or self.now

    def true_places(self, name: str) -> list[str]:
        """The places that hold an object's true bytes under its name."""
        true = self.sealed[name]
        return [place for place, ground in self.grounds.items() if ground.bytes_of(name) == true]

    def _is_spare(self, name: str) -> bool:
        return len(self.true_places(name)) > 1

    def lose(self) -> None:
        """The primary is gone with all that lay there alone, and is filled again from the copies."""
        # Not while the only sound copy of a damaged object may be here, nor while no copy answers.
        if self.damaged_since is not None or {name for name in DAYS if name != PRIMARY} <= set(self.down):
            return
        self.grounds[PRIMARY] = self._ground(PRIMARY)
        self.sealed = {name: content for name, content in self.sealed.items() if self._is_somewhere(name)}
        self.backups = [one for one in self.backups if one.needs <= self.sealed.keys()]
        if not self.backups:
            raise AssertionError("the life was to go on")
        self.fill()

    def fill(self) -> None:
        upkeep.mirror_source(
            self.settings, Repository.open(self.copies()), SOURCE, self.ring, self.catalog,
            only=[PRIMARY], begin=True, from_copies=True, now=self.now, observe=Observer(),
        )  # fmt: skip

    def copies(self) -> Nearest:
        found = locations.others(self.settings, Observer(), self.ring)
        if found is None:
            raise StorageUnreachable("no copy answers")
        return found

    # ---- what must hold

    def must(self, place: str, holds: Iterable[BackupLabel] = ()) -> list[Known]:
        """The backups that the rules of a place keep, by when they stopped, and what stands in for more."""
        begins = self.now - timedelta(days=DAYS[place])
        before = [one for one in self.backups if one.head.stopped_at < begins]
        fulls = [one for one in self.backups if one.head.kind is BackupKind.FULL]
        stay = {one.label for one in self.backups if one.head.stopped_at >= begins}
        stay |= {one.label for one in (*(before[-1:] or self.backups[:1]), *fulls[-1:])} | set(holds)
        return [one for one in self.backups if one.label in stay]

    def lost(self) -> Iterator[str]:
        """What the rules of any place keep, and is nowhere any more."""
        kept = {one.label: one for place in DAYS for one in self.must(place)}
        for one in kept.values():
            for name in sorted(one.needs):
                if not self._is_somewhere(name):
                    yield f"{one.label} lost {name} everywhere"

    def _is_somewhere(self, name: str) -> bool:
        beside = (ground.bytes_of(f"{REPAIRS}{name}") for ground in self.grounds.values())
        return bool(self.true_places(name)) or self.sealed[name] in beside

    def amiss(self) -> Iterator[str]:
        """What is wrong at the end, when all is healed, copied and cleaned."""
        for place, ground in self.grounds.items():
            yield from (f"{place}: {fault}" for fault in self._amiss_in(place, ground))
        alerts = [f"{one.alert_type} {one.subject}: {one.message}" for one in self.catalog.alerts()]
        yield from (f"an alert is left: {alert}" for alert in alerts)

    def _amiss_in(self, place: str, ground: Ground) -> Iterator[str]:
        repository = Repository.open(as_read(Copy(place, ground), self.ring, Observer()))
        area, must = repository.source(SOURCE), self.must(place)
        wanted, listed = [one.label for one in must], list(area.labels())
        if listed != wanted:
            yield f"lists {[*map(str, listed)]}, and its rules keep {[*map(str, wanted)]}"
        for one in must:
            if one.label in listed:
                try:
                    yield from self._misread(repository, one)
                except SeawallError as error:
                    yield f"{one.label} does not come back: {error.message}"
        yield from self._left_over(ground, must)
        yield from self._gaps(ground, place)
        AuditLog(ground).verify()
        mine = self.grounds[PRIMARY]
        yield from (f"{name} is another record than the primary's" for name in sorted(ground.names("audit/"))
                    if ground.bytes_of(name) != mine.bytes_of(name))  # fmt: skip

    def _misread(self, repository: Repository, one: Known) -> Iterator[str]:
        area = repository.source(SOURCE)
        verdict = verify.check(area, one.label, self.ring, now=self.now, observe=Observer(), workers=1)
        yield from (f"{one.label}: {finding.message}" for finding in verdict.findings)
        into = self.into / "restored"
        account = Account(self.into.stat().st_uid, self.into.stat().st_gid, _ACTOR, self.into)
        target = RecoveryTarget(TargetKind.IMMEDIATE)
        plan = restore.plan(repository, SOURCE, target, into, label=one.label, now=self.now)
        lay.lay(plan, area, self.ring, account, workers=1, observe=Observer())
        tree.reveal_control(into)
        if files_laid(into) != as_laid(one.taken.content):
            yield f"{one.label} comes back with other bytes"
        for left in self.into.glob("restored*"):
            shutil.rmtree(left)

    def _left_over(self, ground: Ground, must: Sequence[Known]) -> Iterator[str]:
        """Objects of backups that nothing needs, no mark can bring back and no lock keeps."""
        marks, backups = ground.names(self.layout.expired), self.layout.backups
        marked = [one for one in self.backups if self.layout.expiry(one.label) in marks]
        needed = {name for one in (*must, *marked) for name in one.needs}
        staying = {one.label for one in (*must, *marked)}
        staying |= {head.label for head in SourceArea(ground, SOURCE).unfinished()}
        for name in sorted(ground.names(backups) | ground.names(f"{REPAIRS}{backups}")):
            own, kept = name.removeprefix(REPAIRS), ground.retention(name).until
            label = BackupLabel.parse(own.split("/")[3])
            if own not in needed and label not in staying and (kept is None or kept <= self.now):
                yield f"{name} is left over"

    def _gaps(self, ground: Ground, place: str) -> Iterator[str]:
        """WAL that the place's window needs and is not there."""
        begins = self.now - timedelta(days=DAYS[place])
        before = [one for one in self.backups if one.head.stopped_at < begins]
        base = (before[-1:] or self.backups[:1])[0]
        start = self.layout.segment(own_wal(base.head)[0])
        for name, true in sorted(self.sealed.items()):
            if (
                name.startswith(self.layout.wal)
                and name >= start
                and true not in (ground.bytes_of(name), ground.bytes_of(f"{REPAIRS}{name}"))
            ):
                yield f"{name} is missing or not what it was"


def _settings() -> Settings:
    days = {name: {"window_days": n, "daily_days": n, **dict.fromkeys(_KINDS, n)} for name, n in DAYS.items()}
    rules = {"weekly_months": 0, "monthly_years": 0}
    return parse(
        {
            "repository": {"url": f"memory:{PRIMARY}", "lock": "off"},
            "locations": {
                name: {"url": f"memory:{name}", "lock": "auto" if name == LOCKED else "off"}
                for name in DAYS
                if name != PRIMARY
            },
            "sources": {
                SOURCE: {
                    "conninfo": "host=nowhere",
                    "mirrors": [name for name in DAYS if name != PRIMARY],
                    "copies": 2,
                    "retention": {
                        **rules,
                        **days[PRIMARY],
                        "locations": {name: rules | days[name] for name in DAYS if name != PRIMARY},
                    },
                }
            },
        }
    )


_KINDS = ("full_days", "differential_days", "incremental_days")
