"""Kill the agent that archive_command asks, at its writes; what was acknowledged must come into the repository."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns import sample, scenes, victims
from campaigns.kill import KILLED, Looker, Tally, Trial
from campaigns.victims import Scene
from seawall.archive import client
from seawall.archive.agent import PUSHED
from seawall.keys import KeyRing
from seawall.wal import Segment

_SEGMENTS = 4


@dataclass
class Archiving:
    """A source whose server archives: this process plays the server's archiver, with the true command."""

    home: Path
    base: Scene
    made: sample.Sample
    ring: KeyRing
    trials: int = 0

    def kill(self, points: int, tally: Tally) -> None:
        """Kill the agent at so many boundaries; every other time the command may use the spool instead of it."""
        scene = self.fresh()
        count = self._whole_run(scene)
        tally.boundaries["agent"] = count
        for number in scenes.spread(count, points):
            scene = self.fresh()
            before = scene.open().source(sample.SOURCE).labels()
            point, acknowledged = self._killed_run(scene, number, spool=bool(self.trials % 2))
            faults = list(self.look(scene, acknowledged))
            faults += Looker(scene, self.ring).listed(before)
            faults += Looker(scene, self.ring).garbage()
            tally.add("agent", number, point, faults)
            shutil.rmtree(scene.home)

    def fresh(self) -> Scene:
        self.trials += 1
        return scenes.copied(self.base, self.home / f"agent-{self.trials}")

    def segments(self) -> list[Segment]:
        """What the server archives next: the sample's WAL ends before these."""
        return [Segment(2, 11 + number, sample.SEGMENT_BYTES) for number in range(_SEGMENTS)]

    def _written(self, scene: Scene, segment: Segment) -> Path:
        path = scene.home / segment.name
        if not path.exists():
            beginning = sample.wal_bytes(segment, random.Random(segment.number))
            path.write_bytes(beginning + bytes(sample.SEGMENT_BYTES - len(beginning)))
        return path

    def _whole_run(self, scene: Scene) -> int:
        """How many boundaries an agent passes that takes all segments."""
        trial = Trial(victims.serve, scene)
        process = victims.start(victims.serve, scene, report=trial.report)
        scenes.until(scene.socket.exists, "the agent's socket")
        for segment in self.segments():
            if not self.push(scene, segment, spool=False):
                raise RuntimeError(f"the agent did not take {segment.name}")
        (scene.home / "stop").touch()
        process.join(60)
        return len(trial.report.read_text(encoding="utf-8").splitlines())

    def _killed_run(self, scene: Scene, number: int, *, spool: bool) -> tuple[str, set[str]]:
        trial = Trial(victims.serve, scene)
        process = victims.start(victims.serve, scene, number=number, report=trial.report)
        scenes.until(lambda: scene.socket.exists() or process.exitcode is not None, "the agent's socket")
        taken = {s.name for s in self.segments() if self.push(scene, s, spool=spool)}
        # What threads do beside each other may leave the last boundaries out.
        (scene.home / "stop").touch()
        process.join(60)
        return (trial.point() if process.exitcode == KILLED else f"ended with {process.exitcode}"), taken

    def push(self, scene: Scene, segment: Segment, *, spool: bool) -> bool:
        """What PostgreSQL does with a segment; whether it may forget it."""
        words = [sys.executable, "-I", "-S", client.__file__, "push", "--socket", str(scene.socket)]
        words += ["--spool", str(scene.spool / PUSHED)] if spool else []
        words += ["--wait", "1", "--timeout", "20", str(self._written(scene, segment))]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def look(self, scene: Scene, acknowledged: set[str]) -> Iterator[str]:
        """The server's archiver tries again what nobody acknowledged; then all of it is stored, and right."""
        (scene.home / "stop").unlink()
        # A killed agent leaves its socket, on which nobody answers.
        scene.socket.unlink(missing_ok=True)
        process = victims.start(victims.serve, scene, report=scene.home / "again")
        scenes.until(scene.socket.exists, "the second agent's socket")
        for segment in self.segments():
            if segment.name not in acknowledged and not self.push(scene, segment, spool=False):
                yield f"{segment.name} is not taken when it is offered again"
        area = scene.open().source(sample.SOURCE)
        wanted = {segment.name for segment in self.segments()}
        scenes.until(lambda: wanted <= area.wal.names(), "what was acknowledged")
        (scene.home / "stop").touch()
        process.join(60)
        for segment in self.segments():
            if area.wal.fetch(segment.name, self.ring) != self._written(scene, segment).read_bytes():
                yield f"{segment.name} is not what the server wrote"
