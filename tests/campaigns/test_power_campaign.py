"""A bounded part of the campaign of power cuts: what was not synced may be gone, and no promise becomes untrue."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from campaigns import agents, kill, power, scenes, victims
from campaigns.disk import Disk, Kept, Step
from campaigns.sample import Sample
from campaigns.victims import Scene
from seawall.keys import KeyRing
from seawall.model import SealingMode

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def still(place: Path) -> tuple[Scene, Sample]:
    return scenes.still(place / "power", place, SealingMode.AES_256_GCM, 20261123)


@slow
@pytest.mark.parametrize("verb", ["expire", "collect", "rotate keys", "write a set", "hold"])
def test_a_power_cut_under_a_verb_leaves_everything_listed_whole_and_the_verb_succeeds_again(
    verb: str, still: tuple[Scene, Sample], place: Path, ring: KeyRing, seed: int
) -> None:
    tally = power.Tally()
    home = place / f"power-{verb.replace(' ', '-')}"
    home.mkdir()
    power.StillDisk(kill.StillLife(home, *still, ring), ring, seed).cut(verb, 3, tally)
    assert tally.faults == []
    assert len(tally.cuts) == 3 * len(Kept)
    assert tally.steps[verb] > 15


@slow
def test_a_storage_that_does_not_sync_its_folders_is_found_out(
    still: tuple[Scene, Sample], place: Path, ring: KeyRing, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = power.Tally()
    home = place / "power-careless"
    home.mkdir()
    monkeypatch.setattr(victims, "write_set", victims.write_carelessly)
    power.StillDisk(kill.StillLife(home, *still, ring), ring, seed).cut("write a set", 2, tally)
    assert any("the verb had ended, but the sets are" in fault for fault in tally.faults)


@slow
def test_what_an_agent_acknowledged_outlasts_a_power_cut(
    still: tuple[Scene, Sample], place: Path, ring: KeyRing, seed: int
) -> None:
    tally = power.Tally()
    home = place / "power-agent"
    home.mkdir()
    power.ArchivingDisk(agents.Archiving(home, *still, ring), seed).cut(3, tally)
    assert tally.faults == []
    assert tally.steps["agent"] > 40


@slow
@pytest.mark.postgres
def test_what_a_receiver_reported_as_flushed_outlasts_a_power_cut(place: Path, ring: KeyRing, seed: int) -> None:
    tally = power.Tally()
    with scenes.live(place / "power-live", place, SealingMode.AES_256_GCM) as (scene, instance):
        power.ReceivingDisk(scene, instance, ring, seed, segments=3).cut(30, tally)
    assert tally.faults == []
    assert sum(cut.step.startswith("promise") for cut in tally.cuts) > 0


# ---- the disk itself


def disk(*done: Step) -> Disk:
    made = Disk({"/r": None})
    for step in done:
        made.do(step)
    return made


def left(made: Disk, kept: Kept = Kept.NOTHING) -> dict[str, bytes | None]:
    return {path: data for path, data in made.after_cut(kept, random.Random(1)).items() if path != "/r"}


CREATED = Step("create", "/r/tmp", file=(1, 1))
SYNCED = Step("sync", "/r/tmp", file=(1, 1), content=b"whole")
LINKED = Step("link", "/r/tmp", "/r/a")
SETTLED = Step("sync folder", "/r")


def test_a_name_lasts_from_the_sync_of_its_folder_on_and_bytes_from_that_of_their_file() -> None:
    assert left(disk(CREATED, SYNCED, LINKED)) == {}
    assert left(disk(CREATED, SYNCED, LINKED, SETTLED)) == {"/r/tmp": b"whole", "/r/a": b"whole"}
    assert left(disk(CREATED, LINKED, SETTLED)) == {"/r/tmp": b"", "/r/a": b""}


def test_names_may_come_before_bytes() -> None:
    assert left(disk(CREATED, LINKED), Kept.NAMES) == {"/r/tmp": b"", "/r/a": b""}


def test_a_name_that_was_removed_comes_back_until_its_folder_is_synced() -> None:
    removed = disk(CREATED, SYNCED, LINKED, SETTLED, Step("unlink", "/r/a"))
    assert left(removed)["/r/a"] == b"whole"
    removed.do(SETTLED)
    assert left(removed) == {"/r/tmp": b"whole"}


def test_what_lies_in_a_folder_whose_own_name_was_not_kept_is_lost() -> None:
    inner = Step("create", "/r/f/x", file=(1, 2)), Step("sync", "/r/f/x", file=(1, 2), content=b"x")
    made = disk(Step("mkdir", "/r/f"), *inner, Step("sync folder", "/r/f"))
    assert left(made) == {}
    made.do(SETTLED)
    assert left(made) == {"/r/f": None, "/r/f/x": b"x"}


def test_a_rename_happens_wholly_or_not_at_all() -> None:
    made = disk(CREATED, SYNCED, SETTLED, Step("rename", "/r/tmp", "/r/a"))
    for number in range(20):
        kept = made.after_cut(Kept.SOME, random.Random(number))
        assert kept in ({"/r": None, "/r/tmp": b"whole"}, {"/r": None, "/r/a": b"whole"})
