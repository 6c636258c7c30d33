"""Faults of the network before a real S3 server: connections are cut, lost, refused, or hang, at each call of a verb.

The verbs, and what must be true after each trial, are those of `faults`. Here the trouble is none that a wrapper
raises: a proxy spoils the connections themselves, so that the driver, its timeouts and its repetitions are tried as
well. What hangs is not lost: it goes on to the server as soon as the trial is over, as late packets do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from campaigns import sample
from campaigns.faults import VERBS, Stage, Tally, calls, look
from seawall.errors import SeawallError, StorageUnreachable
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.storage import open_storage, s3
from seawall.storage.base import Bytes, Stat, Storage
from seawall.storage.faulty import Faulty
from seawall.storage.wrappers import Wrapper
from tools.storage_servers import S3Server
from tools.toxic import Toxic, toxic_proxy

# The driver waits a minute for an answer; hundreds of trials that hang cannot.
READ_SECONDS = 1
ATTEMPTS = 3
_ALL = 1 << 30


def _cut(toxic: Toxic, times: int) -> None:
    toxic.was_cut, toxic.cuts, toxic.cut_after = 0, times, 0


def _down(toxic: Toxic) -> None:
    toxic.refuse = True
    _cut(toxic, _ALL)


@dataclass(frozen=True, slots=True)
class Case:
    """What becomes of the connections from one call on; `lasts` if repeating the call cannot help."""

    strike: Callable[[Toxic], object]
    lasts: bool


CASES: Mapping[str, Case] = {
    "request cut once": Case(lambda toxic: _cut(toxic, 1), lasts=False),
    "answer lost once": Case(lambda toxic: setattr(toxic, "lose_answers", 1), lasts=False),
    "hangs once": Case(lambda toxic: setattr(toxic, "hangs", 1), lasts=False),
    "line down": Case(_down, lasts=True),
    "every answer lost": Case(lambda toxic: setattr(toxic, "lose_answers", _ALL), lasts=True),
    "everything hangs": Case(lambda toxic: setattr(toxic, "hangs", _ALL), lasts=True),
}


class Dated(Wrapper):
    """Asks the server for its clock, but takes the stage's: the sample's days are not those of the server."""

    def __init__(self, inner: Storage, stage: S3Stage) -> None:
        super().__init__(inner)
        self._stage = stage

    def _dated(self, stat: Stat) -> Stat:
        return replace(stat, modified_at=self._stage.dates.get(stat.name, self._stage.moment))

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        # Before it is sent: of what is stored without an answer the date is known as well.
        self._stage.dates.setdefault(name, self._stage.moment)
        return self._dated(self.inner.put(name, chunks))

    def stat(self, name: str) -> Stat:
        return self._dated(self.inner.stat(name))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        return map(self._dated, self.inner.list(prefix))

    def now(self) -> datetime:
        self.inner.now()
        return self._stage.moment


@dataclass
class Line:
    """The server, the proxy before it, and how to reach a new place over either."""

    server: S3Server
    port: int
    toxic: Toxic


@dataclass
class S3Stage(Stage):
    """A copy of the sample in a new bucket: over a sound line, and over the one that is spoiled."""

    line: Line = field(kw_only=True)
    dates: dict[str, datetime] = field(default_factory=dict, kw_only=True)

    def _place(self) -> Storage:
        own = replace(self.line.server.settings(), attempts=ATTEMPTS)
        there = replace(own, endpoint=f"http://127.0.0.1:{self.line.port}")
        self.spoiled: Storage = Dated(open_storage(there, sleep=lambda _seconds: None), self)
        return Dated(open_storage(own), self)

    def close(self) -> None:
        self.spoiled.close()
        self.storage.close()


def run(ring: KeyRing, server: S3Server, seed: int, trials: int) -> Tally:
    """So many trials, drawn from every call of every verb in every case; each case gets as many."""
    tally, randomness = Tally(list(CASES)), random.Random(seed)
    made = sample.make(ring, SealingMode.AES_256_GCM, Compression.LZ4, seed)
    points = [
        (name, number + 1) for name, verb in VERBS.items() for number in range(len(calls(Stage(made, ring), verb)))
    ]
    waited, s3._READ_SECONDS = s3._READ_SECONDS, READ_SECONDS
    try:
        with toxic_proxy(server.port) as (port, toxic):
            for number in range(trials):
                case = list(CASES)[number % len(CASES)]
                _trial(S3Stage(made, ring, line=Line(server, port, toxic)), *randomness.choice(points), case, tally)
    finally:
        s3._READ_SECONDS = waited
    return tally


def _trial(stage: S3Stage, name: str, number: int, case: str, tally: Tally) -> None:
    listed, toxic, what = stage.sound.labels(), stage.line.toxic, f"{name}, call {number}, {case}"
    stage.faulty = Faulty(stage.spoiled, at=_once(number, lambda: CASES[case].strike(toxic)))
    tally.trials[name] += 1
    try:
        VERBS[name](stage)
        end = "done"
    except SeawallError as error:
        end = error.code
        if not (CASES[case].lasts and isinstance(error, StorageUnreachable)):
            tally.wrong.append(f"{what}: says {error.code}: {error}")
    except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
        end = type(error).__name__
        tally.wrong.append(f"{what}: {end}: {error}")
    toxic.heal()
    tally.ends[case, end] += 1
    tally.wrong += [f"{what}: {fault}" for fault in look(stage, listed, name, VERBS[name])]
    stage.close()


def _once(number: int, strike: Callable[[], object]) -> Callable[[str, str], None]:
    """Strikes before that call, once: what comes after it meets what is left of the trouble."""
    left = [number]

    def at(point: str, _name: str) -> None:
        if point.endswith(".before"):
            left[0] -= 1
            if left[0] == 0:
                strike()

    return at
