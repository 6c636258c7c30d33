"""A bounded part of the kill campaign: a process that is killed at any write costs nothing that was listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import agents, kill, live, scenes
from campaigns.boundaries import form_of
from campaigns.sample import Sample
from campaigns.victims import Scene
from seawall.keys import KeyRing
from seawall.model import CopyMode, SealingMode
from seawall.postgres.binaries import Account

pytestmark = pytest.mark.slow
VERBS = ("expire", "collect", "rotate keys", "write a set", "hold")


@pytest.fixture(scope="module")
def still(place: Path) -> tuple[Scene, Sample]:
    return scenes.still(place / "still", place, SealingMode.AES_256_GCM, 20261123)


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_leaves_everything_listed_whole_and_succeeds_again(
    verb: str, still: tuple[Scene, Sample], place: Path, ring: KeyRing
) -> None:
    tally = kill.Tally()
    life = kill.StillLife(place / verb.replace(" ", "-"), *still, ring)
    life.home.mkdir()
    assert set(life.verbs()) == set(VERBS)
    life.kill(verb, 6, tally)
    assert tally.faults == []
    assert tally.boundaries[verb] > 30
    # The last boundary may be passed before the process looks for it; the others are met.
    assert sum(" " in killed.point and not killed.point.startswith("ended") for killed in tally.kills) >= 5


def test_what_a_killed_agent_acknowledged_comes_into_the_repository(
    still: tuple[Scene, Sample], place: Path, ring: KeyRing
) -> None:
    tally = kill.Tally()
    home = place / "agents"
    home.mkdir()
    agents.Archiving(home, *still, ring).kill(3, tally)
    assert tally.faults == []
    assert len(tally.kills) == 3


@pytest.mark.postgres
def test_engine_receiver_and_server_are_killed_and_the_newest_backup_restores(place: Path, ring: KeyRing) -> None:
    tally = kill.Tally()
    with scenes.live(place / "live", place, SealingMode.AES_256_GCM) as (scene, instance):
        beside = live.Live(scene, instance, ring)
        beside.kill_backups(CopyMode.DIRECT, 3, tally)
        beside.kill_backups(CopyMode.STREAM, 2, tally)
        beside.kill_incrementals(3, tally)
        beside.kill_receivers(3, tally)
        beside.kill_servers(1, tally)
        assert list(beside.start_restored(Account.for_servers())) == []
    assert tally.faults == []
    assert len(tally.kills) == 12
    assert beside.resumed > 0


def test_a_boundary_has_the_same_name_in_every_run() -> None:
    one = "/x/repository/sources/shop/backups/20261123T020000Z-full/bundles/.tmp-812-0123456789abcdef"
    other = "/y/repository/sources/shop/backups/20271123T020000Z-full/bundles/.tmp-9-fedcba9876543210"
    assert form_of(one) == form_of(other) == "sources/shop/backups/<time>-full/bundles/.tmp-#-#"
