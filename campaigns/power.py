"""Power cuts: each verb runs once and is recorded; then the disk is made as cuts at many moments would leave it.

What is kept is the worst that POSIX admits (`disk.py`): nothing that was not synced, all names but no bytes, or a part
by chance. After each cut: every backup that is listed is whole, none that was listed before is lost, WAL has no gap,
what the verb had already told others is true, and the same verb succeeds when it is run again.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from campaigns import agents, sample, scenes, victims
from campaigns.disk import Disk, Kept, Step, differences, lay, steps
from campaigns.kill import Looker, StillLife, Trial
from campaigns.victims import Scene
from seawall.archive.incoming import OPEN
from seawall.keys import KeyRing
from seawall.model import BackupLabel
from seawall.postgres.instance import Instance
from seawall.wal import Lsn, Segment


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut: the verb, after which of its steps, what was kept, and what was wrong afterwards (nothing)."""

    verb: str
    after: int
    step: str
    kept: Kept
    faults: tuple[str, ...]


@dataclass
class Tally:
    """All cuts of a campaign, and how many steps each verb takes."""

    cuts: list[Cut] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    unseen: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        told = [f"{c.verb} after {c.after} ({c.step}), kept {c.kept.value}: {f}" for c in self.cuts for f in c.faults]
        return told + self.unseen

    def by_verb(self) -> dict[str, int]:
        return dict(Counter(cut.verb for cut in self.cuts))


Look = Callable[[Scene, Sequence[str]], Iterator[str]]


@dataclass
class Recorded:
    """One recorded run: where it began, what it did, and what looks at each cut.

    Args:
        base: the scene as it was before.
        ran: the copy that the verb ran in.
        disk: what lay in that copy before.
        look: yields what is wrong in a scene after a cut, given the promises made before it.
    """

    name: str
    base: Scene
    ran: Scene
    disk: Disk
    done: Sequence[Step]
    look: Look

    @property
    def places(self) -> tuple[Path, Path]:
        return self.ran.place, self.ran.spool

    def cut(self, points: int, randomness: random.Random, tally: Tally) -> None:
        """Cut the power at so many moments, each time in all ways that a disk may keep things."""
        tally.steps[self.name] = len(self.done)
        chosen = set(scenes.spread(len(self.done), points))
        promised: list[str] = []
        for number, step in enumerate(self.done, 1):
            self.disk.do(step)
            if step.kind == "promise":
                promised.append(step.name)
            if number in chosen:
                for kept in Kept:
                    faults = self._after(number, kept, randomness, promised)
                    tally.cuts.append(Cut(self.name, number, f"{step.kind} {Path(step.name).name}", kept, faults))
        tally.unseen += [f"{self.name}: {line}" for line in differences(self.disk, self.places)]

    def _after(self, number: int, kept: Kept, randomness: random.Random, promised: Sequence[str]) -> tuple[str, ...]:
        scene = scenes.copied(self.base, self.ran.home.with_name(f"{self.ran.home.name}-{number}-{kept.name}"))
        lay(self.disk.after_cut(kept, randomness), self.ran.home, scene.home, self.places)
        try:
            return tuple(self.look(scene, promised))
        finally:
            shutil.rmtree(scene.home)


@dataclass
class StillDisk:
    """Records verbs that need no server, and cuts the power under each."""

    life: StillLife
    ring: KeyRing
    seed: int

    def cut(self, name: str, points: int, tally: Tally) -> None:
        verb, prepare, arguments = self.life.verbs()[name]
        base = scenes.copied(self.life.base, self.life.home / f"base-{name.replace(' ', '-')}")
        prepare(base)
        ran = scenes.copied(base, self.life.home / f"ran-{name.replace(' ', '-')}")
        disk = Disk.of((ran.place, ran.spool))
        area = base.open().source(sample.SOURCE)
        before, held = area.labels(), {hold.id for hold in area.holds(victims.now())}
        log = ran.home / "steps"
        _end(victims.start_recorded(verb, ran, *arguments(), log=log), name)
        after = ran.open().source(sample.SOURCE).labels()

        def look(scene: Scene, promised: Sequence[str]) -> Iterator[str]:
            trial = Trial(verb, scene, arguments)
            if promised:
                yield from self._kept_promise(Looker(scene, self.ring), after, held)
            yield from self._look(trial, before)

        Recorded(name, base, ran, disk, steps(log), look).cut(points, random.Random(f"{self.seed} {name}"), tally)

    def _kept_promise(self, looker: Looker, after: Sequence[BackupLabel], held: set[str]) -> Iterator[str]:
        """What is true when a verb has ended stays true."""
        if (listed := looker.labels()) != after:
            yield f"the verb had ended, but the sets are {', '.join(map(str, listed))}"
        holds = {hold.id for hold in looker.area.holds(victims.now())}
        yield from (f"hold {one} is not as the verb left it" for one in sorted(holds ^ held))

    def _look(self, trial: Trial, before: Sequence[BackupLabel]) -> Iterator[str]:
        looker = Looker(trial.scene, self.ring)
        # The one that is being let go may be listed still, or not any more.
        going = self.life.made.labels[0]
        kept = [label for label in before if label != going]
        yield from looker.listed(kept)
        yield from looker.without_gap()
        looker.end_leases()
        trial.finish()
        yield from looker.listed(kept)
        if trial.verb in (victims.let_go, victims.collect) and going in looker.labels():
            yield "what is let go is listed after a second run"


@dataclass
class ArchivingDisk:
    """Records the agent that archive_command asks; what it acknowledged must outlast a cut."""

    archiving: agents.Archiving
    seed: int

    def cut(self, points: int, tally: Tally) -> None:
        base = self.archiving.fresh()
        ran = scenes.copied(base, base.home.with_name("ran-agent"))
        disk, log = Disk.of((ran.place, ran.spool)), ran.home / "steps"
        process = victims.start_recorded(victims.serve, ran, log=log)
        scenes.until(ran.socket.exists, "the agent's socket")
        acknowledged: list[tuple[int, str]] = []
        for segment in self.archiving.segments():
            if self.archiving.push(ran, segment, spool=False):
                # The answer came after the steps that are in the log by now; a promise is due from here on.
                acknowledged.append((len(steps(log)), segment.name))
        (ran.home / "stop").touch()
        _end(process, "agent")
        done = list(steps(log))
        for at, name in reversed(acknowledged):
            done.insert(at, Step("promise", name))
        Recorded("agent", base, ran, disk, done, self._look).cut(points, random.Random(f"{self.seed} agent"), tally)

    def _look(self, scene: Scene, promised: Sequence[str]) -> Iterator[str]:
        acknowledged = {name for name in promised if name != victims.DONE}
        (scene.home / "stop").touch()
        yield from self.archiving.look(scene, acknowledged)
        yield from Looker(scene, self.archiving.ring).listed(self.archiving.made.labels[1:])


@dataclass
class ReceivingDisk:
    """Records a receiver beside a running server; what it reported as flushed, the server may have forgotten."""

    scene: Scene
    instance: Instance
    ring: KeyRing
    seed: int
    segments: int = 6

    def cut(self, points: int, tally: Tally) -> None:
        ran = scenes.copied(self.scene, self.scene.home.with_name("ran-receiver"))
        disk, log = Disk.of((ran.place, ran.spool)), ran.home / "steps"
        process = victims.start_recorded(victims.receive, ran, log=log)
        with self.instance.connect() as session:
            for _ in range(self.segments):
                session.execute("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 500) AS n")
                time.sleep(0.2)  # so that a part of each segment is reported before the whole of it
                row = session.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        area = ran.open().source(sample.SOURCE)
        scenes.until(lambda: row is not None and row[0] in area.wal.names(), "the last segment")
        (ran.home / "stop").touch()
        _end(process, "receiver")
        recorded = Recorded("receiver", self.scene, ran, disk, steps(log), self._look)
        recorded.cut(points, random.Random(f"{self.seed} receiver"), tally)

    def _look(self, scene: Scene, promised: Sequence[str]) -> Iterator[str]:
        """Every byte up to the last position that was reported lies in the repository or in the spool."""
        told = [Lsn(int(position)) for position in promised if position.isdecimal() and int(position)]
        if not told:
            return
        wal = scene.open().source(sample.SOURCE).wal
        spooled = {path.name.removesuffix(OPEN): path for path in scene.spool.rglob("0*") if path.is_file()}
        segment = Segment.containing(told[0], 1, sample.SEGMENT_BYTES)
        while segment.start.value < told[-1].value:
            needed = min(told[-1].value - segment.start.value, sample.SEGMENT_BYTES)
            written = (self.instance.data_directory / "pg_wal" / segment.name).read_bytes()[:needed]
            if segment.name in wal.names():
                found = wal.fetch(segment.name, self.ring)[:needed]
            else:
                found = spooled[segment.name].read_bytes()[:needed] if segment.name in spooled else b""
            if found != written:
                yield f"{segment.name} was reported up to {told[-1]}, and {needed} bytes of it are not there"
            segment = segment.next()


def _end(process: victims.Process, name: str) -> None:
    process.join(120)
    if process.exitcode != 0:
        raise RuntimeError(f"{name} ended with {process.exitcode} while it was recorded")
