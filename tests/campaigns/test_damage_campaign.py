"""A bounded part of the damage campaign: whatever happens to stored bytes is noticed, and never restored as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import damage, sample, script
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode

TRIALS = {SealingMode.NONE: 260, SealingMode.AES_256_GCM: 260, SealingMode.OPENPGP: 40}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(SealingMode))
def test_damage_is_noticed_or_proved_harmless_and_nothing_wrong_is_restored(
    mode: SealingMode, place: Path, ring: KeyRing, seed: int
) -> None:
    into = place / f"damage-{mode.value}"
    into.mkdir()
    made = sample.make(ring, mode, Compression.LZ4, seed)
    tally = damage.run(made, ring, into, TRIALS[mode], seed)
    assert tally.total("wrong") == tally.total("defect") == 0, tally.examples
    assert tally.total("detected") > 0.8 * tally.total()
    # Nothing tells of a lease or a tail that is gone, and nothing else can go unseen: docs/reliability.md says why.
    assert tally.examples == []
    assert {kind for kind, _, verdict in tally.counts if verdict == "transient"} <= {"lease", "tail"}
    # What only another recipient of an OpenPGP message needs can change unnoticed in a tail: no list names that.
    unseen = {"probe"} if mode is not SealingMode.OPENPGP else {"probe", "tail"}
    assert set(tally.unnoticed_changes()) <= unseen


@pytest.mark.parametrize("how", damage.WAYS)
def test_changed_bytes_of_every_kind_of_object_are_noticed(how: str, place: Path, ring: KeyRing, seed: int) -> None:
    """Once for each kind; a probe is garbage that nobody reads."""
    import random

    into = place / f"kinds-{how}"
    into.mkdir()
    examiner = damage.Examiner(sample.make(ring, SealingMode.NONE, Compression.NONE, seed), ring, into)
    randomness = random.Random(seed)
    for kind in sorted({damage.kind_of(name) for name in examiner.content} - {"probe"}):
        made = damage.draw(examiner.content, how, kind, randomness)
        if made is None:
            continue
        verdict, seen = examiner.verdict(made)
        allowed = {"detected"} if how not in ("drop", "stray") else {"detected", "harmless", "transient"}
        assert verdict in allowed, (made.sentence, seen)


def test_the_examiner_sees_what_it_should_see(place: Path, ring: KeyRing, seed: int) -> None:
    """Wrong bytes that pass every check would be found: here the backup itself was taken for another one's content."""
    into = place / "examiner"
    into.mkdir()
    made = sample.make(ring, SealingMode.NONE, Compression.NONE, seed)
    examiner = damage.Examiner(made, ring, into)
    newest = made.labels[-1]
    made.expected[newest] = {**made.expected[newest], "PG_VERSION": b"17\n"}
    made.wal[next(iter(made.wal))] = b"something else"
    seen = examiner.examine(examiner.content)
    assert sorted(line.split(" ")[0] for line in seen.wrong) == ["WAL", "restore"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(SealingMode))
def test_the_stand_alone_script_restores_the_very_bytes_or_refuses(
    mode: SealingMode, place: Path, ring: KeyRing, seed: int
) -> None:
    into = place / f"script-{mode.value}"
    into.mkdir()
    tally = script.run(sample.make(ring, mode, Compression.LZ4, seed), ring, into, 70, seed)
    assert tally.wrong == []
    assert min(tally.ends["restored"], tally.ends["refused"]) > 10
