"""Lives of a repository in three places: what happens in them by chance, and what was found.

After every step, each backup that any place's rules keep must still be made of true bytes somewhere. At the end all
places answer, and upkeep runs until it has nothing left to do: then each place by itself must give back exactly what
its rules keep, and hold nothing else.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from campaigns.places import DAYS, HEALED_WITHIN, Life
from seawall import locations
from seawall.catalog import Catalog
from seawall.errors import SeawallError
from seawall.keys import KeyRing
from seawall.model import SealingMode
from seawall.settings import PRIMARY
from seawall.storage.faulty import Killed, KillPoint

_ROUNDS = 3
_RARELY = timedelta(days=4)


def _wait(life: Life, at_most: timedelta = timedelta(hours=40)) -> None:
    if life.damaged_since is not None:
        at_most = min(at_most, life.damaged_since + HEALED_WITHIN - life.now)
    life.now += timedelta(minutes=life.randomness.randint(1, max(int(at_most / timedelta(minutes=1)), 1)))


def _turn(life: Life, name: str) -> None:
    """A place stops answering, or answers again."""
    life.grounds[name].down = not life.grounds[name].down


STEPS: Mapping[str, tuple[int, Callable[[Life], None]]] = {
    "full": (3, lambda life: life.back_up(full=True)),
    "incremental": (6, lambda life: life.back_up(full=False)),
    "archive": (3, lambda life: life.archive(life.randomness.randint(1, 3))),
    "mirror": (8, Life.mirror),
    "clean": (2, lambda life: life.clean(PRIMARY)),
    "clean offsite": (2, lambda life: life.clean("offsite")),
    "clean vault": (2, lambda life: life.clean("vault")),
    "prove": (1, lambda life: _proved(life, PRIMARY)),
    "prove offsite": (1, lambda life: _proved(life, "offsite")),
    "prove vault": (1, lambda life: _proved(life, "vault")),
    "hold": (1, Life.hold),
    "damage": (4, Life.damage),
    "wait": (8, _wait),
    "turn offsite": (2, lambda life: _turn(life, "offsite")),
    "turn vault": (2, lambda life: _turn(life, "vault")),
    "turn primary": (2, lambda life: _turn(life, PRIMARY)),
    "lose": (1, Life.lose),
}


def _proved(life: Life, name: str) -> None:
    life.prove(name)


@dataclass
class Tally:
    """Lives and their steps, how those ended, and what was wrong."""

    lives: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def print(self) -> None:
        for step in STEPS:
            ends = {end: count for (name, end), count in sorted(self.ends.items()) if name == step}
            print(f"{step:<16}{sum(ends.values()):>8}  {', '.join(f'{k} {v}' for k, v in ends.items())}")
        print(f"{self.lives} lives of {sum(self.ends.values())} steps")
        for line in self.wrong:
            print(f"  {line}")


@contextmanager
def reached_through(life: Life) -> Iterator[None]:
    """Whatever opens a place meanwhile opens one of this life."""
    with patch.object(locations, "open_storage", life.reach):
        yield


def drawn(seed: int, number: int = 0) -> random.Random:
    """What the life of that number draws from."""
    return random.Random(f"{seed} {number}")


def run(ring: KeyRing, place: Path, seed: int, lives: Iterable[int], steps: int = 60) -> Tally:
    """The lives of those numbers, of so many steps each."""
    tally = Tally()
    for number in lives:
        mode = SealingMode.AES_256_GCM if number % 2 else SealingMode.NONE
        into = place / f"life-{number}"
        into.mkdir(mode=0o755)
        with Catalog.open(f"sqlite:///{into}/catalog.db", create=True) as catalog:
            _live(Life(ring, drawn(seed, number), catalog, mode, into), f"life {number}", steps, tally)
        shutil.rmtree(into)
    return tally


def _live(life: Life, title: str, steps: int, tally: Tally) -> None:
    tally.lives += 1
    with reached_through(life):
        try:
            life.begin()
            for _ in range(steps):
                _step(life, tally)
            come_to_rest(life)
            tally.wrong += [f"{title}, at the end: {fault}; {_last(life)}" for fault in life.amiss()]
        except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
            tally.wrong.append(f"{title}: {type(error).__name__}: {error}; {_last(life)}")


def _last(life: Life) -> str:
    return f"after {', '.join(life.steps[-12:])}"


def _step(life: Life, tally: Tally) -> None:
    """One thing is done, perhaps killed in the middle; what must stay is still somewhere."""
    if life.damaged_since is not None and life.now - life.damaged_since >= HEALED_WITHIN - timedelta(hours=1):
        life.steps.append("heal")
        life.heal()
    if life.now - life.backups[-1].head.stopped_at > _RARELY:
        # Retention takes a longer rest for a clock that jumped, and lets nothing go for a week.
        life.steps.append("heal and a full")
        life.heal()
        life.back_up(full=True)
    weights = [weight for weight, _ in STEPS.values()]
    (name,) = life.randomness.choices(list(STEPS), weights)
    life.steps.append(name)
    life.now += timedelta(minutes=11)
    was_sound = life.is_sound
    if life.randomness.random() < 0.15:
        life.killing = KillPoint(life.randomness.randint(1, 80))
    try:
        STEPS[name][1](life)
        end = "done"
    except Killed:
        end = "killed"
    except SeawallError as error:
        end = error.code
        if was_sound:
            raise
    finally:
        life.killing = None
    if end == "killed":
        life.now += timedelta(minutes=11)
        _tidy(life, name)
    life.steps[-1] += f" ({end})" if end != "done" else ""
    tally.ends[name, end] += 1
    for fault in life.lost():
        raise AssertionError(fault)


def _tidy(life: Life, name: str) -> None:
    """What an administrator does after a step that was killed, where the next one does not do it."""
    if name in ("full", "incremental"):
        life.learn()
    if name == "lose":
        life.fill()
    if name == "hold":
        life.end_lost_holds()


def come_to_rest(life: Life) -> None:
    """All places answer, holds are released, and upkeep runs for some days."""
    life.steps.append("rest")
    life.now += timedelta(minutes=11)
    for ground in life.grounds.values():
        ground.down = False
    while life.holds():
        life.hold()
    life.heal()
    for _ in range(_ROUNDS):
        life.back_up(full=False)
        life.mirror()
        life.heal()
        for name in DAYS:
            life.clean(name)
        life.now += timedelta(hours=25)
    life.back_up(full=True)
    life.mirror()
    for name in DAYS:
        life.clean(name)
    life.mirror()
