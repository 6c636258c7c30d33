"""The place and the keys that bounded campaigns share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns import scenes
from campaigns.sample import QuickRing

SEED = 20261123


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    with scenes.workplace() as made:
        scenes.make_keys(made)
        yield made


@pytest.fixture(scope="session")
def ring(place: Path) -> Iterator[QuickRing]:
    with QuickRing(place / "ring") as opened:
        yield opened


@pytest.fixture
def seed() -> int:
    return SEED
