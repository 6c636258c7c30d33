"""Kill: SIGKILL at every write boundary of each verb, and a look at what is left.

After each kill: every backup that was listed is still listed and proved; one that is new is proved in full; WAL has no
gap; garbage stays for its grace and goes after it; the same verb succeeds when it is run again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from campaigns import sample, scenes, victims
from campaigns.sample import SOURCE
from campaigns.victims import Scene, Victim
from seawall import restore, retention, verify
from seawall.archive.continuity import reachable_until
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Proof, RecoveryTarget, SealingMode
from seawall.postgres.binaries import Account
from seawall.repository import SourceArea, documents
from seawall.restore import lay, tree
from seawall.storage.draft import CLAIM, TEMPORARY
from seawall.wal import TimelineHistory

GRACE = timedelta(hours=24)
KILLED = -9


@dataclass(frozen=True, slots=True)
class Killed:
    """One kill: the verb, which boundary, what the boundary was, and what was wrong afterwards (nothing)."""

    verb: str
    number: int
    point: str
    faults: tuple[str, ...]


@dataclass
class Tally:
    """All kills of a campaign."""

    kills: list[Killed] = field(default_factory=list)
    boundaries: Counter[str] = field(default_factory=Counter)

    def add(self, verb: str, number: int, point: str, faults: Iterable[str]) -> None:
        self.kills.append(Killed(verb, number, point, tuple(faults)))

    @property
    def faults(self) -> list[str]:
        return [f"{k.verb} at {k.number} ({k.point}): {fault}" for k in self.kills for fault in k.faults]

    def forms(self) -> int:
        """How many different kinds of boundary were hit: the call, its phase, and the kind of object."""
        return len({(kill.verb, kill.point) for kill in self.kills})

    def by_verb(self) -> dict[str, int]:
        return dict(Counter(kill.verb for kill in self.kills))


@dataclass
class Trial:
    """One victim in its scene.

    Args:
        verb: what is killed.
        arguments: made anew for each run, because labels are used once.
    """

    verb: Victim
    scene: Scene
    arguments: Callable[[], tuple[str, ...]] = tuple

    @property
    def report(self) -> Path:
        return self.scene.home / "boundaries"

    def count(self) -> int:
        """How many boundaries the verb passes when nobody kills it."""
        self.finish()
        return len(self.report.read_text(encoding="utf-8").splitlines())

    def finish(self) -> None:
        """Run the verb to its end."""
        code = self.run(0)
        if code != 0:
            raise RuntimeError(f"{self.verb.__name__} ended with {code}: {self._error()}")

    def run(self, number: int, seconds: float = 300.0) -> int:
        process = victims.start(self.verb, self.scene, *self.arguments(), number=number, report=self.report)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{self.verb.__name__} did not end within {seconds:.0f} s")
        return process.exitcode

    def point(self) -> str:
        """The boundary at which the verb died."""
        return self.report.read_text(encoding="utf-8").splitlines()[-1]

    def _error(self) -> str:
        said = self.scene.home / "error"
        return said.read_text(encoding="utf-8") if said.exists() else "it said nothing"


# ---- what must be true after a kill


@dataclass
class Looker:
    """Looks at a repository after a kill; each method yields what is wrong."""

    scene: Scene
    ring: KeyRing

    @property
    def area(self) -> SourceArea:
        return self.scene.open().source(SOURCE)

    def labels(self) -> tuple[BackupLabel, ...]:
        return self.area.labels()

    def listed(self, before: Sequence[BackupLabel]) -> Iterator[str]:
        """Nothing that was listed is lost, and what is new is whole."""
        area, after = self.area, self.labels()
        yield from (f"{label} is not listed any more" for label in before if label not in after)
        for label in after:
            level = Proof.HASH_GOOD if label in before else Proof.WAL_CONTINUOUS
            verdict = verify.check(area, label, self.ring, up_to=level, now=victims.now(), observe=Observer())
            yield from (f"{label}: {finding.code} {finding.message}" for finding in verdict.findings)

    def has_resumed(self) -> bool:
        """Whether the newest backup uses what one that was killed had stored."""
        area = self.area
        labels = {area.layout.label_of(stored.name) for stored in area.stored_objects(area.labels()[-1])}
        return not labels <= set(area.labels(with_expired=True))

    def without_gap(self) -> Iterator[str]:
        """From the oldest backup on, WAL leads without a gap to the newest segment."""
        area = self.area
        for head in area.heads():
            history = area.wal.histories().get(2) or TimelineHistory(head.timeline)
            _, gap = reachable_until(area.wal, head.start_lsn, history, segment_bytes=head.segment_bytes)
            if gap is not None:
                yield f"WAL behind {head.label} has a gap at {gap.name}"

    def garbage(self) -> Iterator[str]:
        """What was never committed stays for its grace, goes after it, and takes nothing else along."""
        self.end_leases()
        self._age_leftovers(GRACE - timedelta(hours=1))
        kept = self._names()
        self._collect()
        yield from (f"{name} was removed before its grace" for name in kept - self._names())
        self._age_leftovers(GRACE + timedelta(hours=1))
        self._collect()
        for label in self._uncommitted() - self._kept_with_reason():
            yield f"{label} is still there after its grace"
        yield from (f"{path.name} is still there after its grace" for path in self._drafts())

    def end_leases(self) -> None:
        """What five minutes would do for the lease of the dead."""
        scenes.age(self.scene.place / "leases", timedelta(minutes=10))

    def _collect(self) -> None:
        retention.collect(self.scene.open(), SOURCE, actor="campaign", now=victims.now(), observe=Observer())

    def _age_leftovers(self, by: timedelta) -> None:
        uncommitted = {str(label) for label in self._uncommitted()}
        drafts = set(self._drafts())
        scenes.age(self.scene.place, by, lambda path: path in drafts or bool(uncommitted & set(path.parts)))

    def _uncommitted(self) -> set[BackupLabel]:
        area = self.area
        return set(area.begun()) - set(area.labels(with_expired=True))

    def _kept_with_reason(self) -> set[BackupLabel]:
        """Sets that are not listed and stay all the same.

        Head and copy without a manifest may be a backup whose manifest was lost: that is left to an administrator. Of
        a set that was let go, what a listed incremental, or one that is left so, takes from it stays.
        """
        area = self.area
        left = {head.label for head in area.unfinished()}
        names = "\n".join(name for label in (*area.labels(), *left) for name in area.needed_objects(label))
        return left | {label for label in area.begun() if area.layout.backup(label) in names}

    def _drafts(self) -> Iterator[Path]:
        return (path for path in self.scene.place.rglob(".*") if path.name.startswith((TEMPORARY, CLAIM)))

    def _names(self) -> set[str]:
        """Objects that a collection has no other reason to remove."""
        area, names = self.area, {stat.name for stat in self.area.storage.list()}
        marks = [documents.get(area.storage, name) for name in names if name.startswith(area.layout.expired)]
        let_go = {str(mark["label"]) for mark in marks if "label" in mark}
        runs = [(mark["first"], mark["last"]) for mark in marks if "first" in mark]
        return {
            name
            for name in names
            # A tail goes without a mark when a longer one or its segment is stored.
            if not name.startswith(("audit/", "leases/", "probes/", area.layout.expired))
            and ".tail-" not in name
            and not let_go & set(name.split("/"))
            and not any(first <= name.rsplit("/", 1)[1][:24] <= last for first, last in runs if "/wal/" in name)
        }

    def restored(self, label: BackupLabel, expected: dict[str, bytes]) -> Iterator[str]:
        """The set is laid down with the bytes that were backed up."""
        place = self.scene.home / "restored"
        repository = self.scene.open()
        plan = restore.plan(repository, SOURCE, RecoveryTarget(), place, label=label, now=victims.now())
        account = Account(place.parent.stat().st_uid, place.parent.stat().st_gid, "campaign", place)
        lay.lay(plan, repository.source(SOURCE), self.ring, account, workers=1, observe=Observer())
        tree.reveal_control(place)
        found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        yield from (
            f"{path} of {label} is not what was backed up"
            for path, data in expected.items()
            if not path.startswith("pg_tblspc/") and found.get(path) != data
        )
        for left in place.parent.glob("restored*"):
            shutil.rmtree(left)


# ---- verbs that need no server


@dataclass
class StillLife:
    """Kills verbs that need no server, each time in a fresh copy of a sample."""

    home: Path
    base: Scene
    made: sample.Sample
    ring: KeyRing
    trials: int = 0
    moments: int = 0

    def kill(self, name: str, points: int, tally: Tally) -> None:
        """Kill one verb at so many boundaries."""
        verb, prepare, arguments = self.verbs()[name]
        count = self._fresh(verb, prepare, arguments).count()
        tally.boundaries[name] = count
        for number in scenes.spread(count, points):
            trial = self._fresh(verb, prepare, arguments)
            before = trial.scene.open().source(SOURCE).labels()
            code = trial.run(number)
            point = trial.point() if code == KILLED else f"ended with {code}"
            tally.add(name, number, point, self._look(trial, before))
            shutil.rmtree(trial.scene.home)

    def verbs(self) -> dict[str, tuple[Victim, Callable[[Scene], None], Callable[[], tuple[str, ...]]]]:
        """What can be killed, how its scene is prepared, and its arguments."""
        oldest, middle, newest = map(str, self.made.labels)
        known: dict[str, tuple[Victim, Callable[[Scene], None], Callable[[], tuple[str, ...]]]] = {
            "expire": (victims.let_go, _unmark, lambda: (oldest,)),
            "collect": (victims.collect, _nothing, tuple),
            "rotate keys": (victims.rotate, _nothing, lambda: (newest,)),
            "write a set": (victims.write_set, _nothing, lambda: (self._free_moment(),)),
            "hold": (victims.hold, _nothing, lambda: (middle,)),
        }
        if self.base.mode is not SealingMode.AES_256_GCM:
            # The other modes have no data keys to wrap again.
            del known["rotate keys"]
        return known

    def _free_moment(self) -> str:
        """A time that no set of any trial began at, and that is past."""
        self.moments += 1
        return (victims.now() - timedelta(hours=12) + timedelta(seconds=self.moments)).isoformat()

    def _fresh(self, verb: Victim, prepare: Callable[[Scene], None], arguments: Callable[[], tuple[str, ...]]) -> Trial:
        self.trials += 1
        scene = scenes.copied(self.base, self.home / f"trial-{self.trials}")
        prepare(scene)
        return Trial(verb, scene, arguments)

    def _look(self, trial: Trial, before: Sequence[BackupLabel]) -> list[str]:
        looker = Looker(trial.scene, self.ring)
        # Whether the one that was being let go is listed still, or not any more: both are right.
        kept = [label for label in before if label != self.made.labels[0]]
        faults = list(looker.listed(kept))
        faults += looker.without_gap()
        faults += looker.garbage()
        trial.finish()
        faults += looker.listed(kept)
        # One of the sets, in turn: everything listed restores.
        label = kept[self.trials % len(kept)]
        faults += looker.restored(label, self.made.expected[label])
        if trial.verb is victims.collect and self.made.labels[0] in looker.area.begun():
            faults.append("what was marked is still there after a second run")
        if trial.verb is victims.let_go and self.made.labels[0] in looker.labels():
            faults.append("what is let go is still listed after a second run")
        return faults


def _nothing(_scene: Scene) -> None:
    return


def _unmark(scene: Scene) -> None:
    for mark in (scene.place / "sources" / SOURCE / "expired").iterdir():
        mark.unlink()
