"""A bounded part of the lives in three places: what must stay stays, and comes back from each place by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from campaigns import lives
from campaigns.places import DAYS, Life
from seawall.catalog import Catalog
from seawall.keys import KeyRing
from seawall.model import SealingMode


@pytest.mark.slow
def test_what_any_place_keeps_outlives_damage_outages_kills_and_the_loss_of_the_primary(
    ring: KeyRing, tmp_path: Path, seed: int
) -> None:
    tally = lives.run(ring, tmp_path, seed, range(3))
    assert tally.wrong == []
    happened = Counter[str]()
    for (_, end), count in tally.ends.items():
        happened[end] += count
    assert happened["killed"] > 3
    assert happened["storage-unreachable"] > 3


@pytest.mark.slow
def test_the_judge_sees_a_backup_that_is_lost_and_one_that_should_be_gone(
    ring: KeyRing, tmp_path: Path, seed: int
) -> None:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True) as catalog:
        life = Life(ring, lives.drawn(seed), catalog, SealingMode.NONE, tmp_path)
        with lives.reached_through(life):
            life.begin()
            lives.come_to_rest(life)
            assert list(life.amiss()) == []
            name = max(life.backups[-1].needs)
            for place in DAYS:
                life.grounds[place].spoil(name, None)
            assert any("lost" in fault for fault in life.lost())
            assert any("vault" in fault for fault in life.amiss())
