"""What a restore passed by on its way is whole again when it is over, and never keeps it from being one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seawall import locations
from seawall.audit import AuditLog
from seawall.events import Event, Noticed, Observer, silent
from seawall.mending import mend
from seawall.nearest import Nearest
from seawall.settings import PRIMARY
from seawall.storage.base import read
from seawall.storage.local import LocalStorage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))


@pytest.fixture
def damaged(place: Any) -> tuple[Nearest, str, bytes]:
    """The locations as a restore read them: a bundle of the primary was damaged, and came from a copy."""
    place.mirrored(None)
    bundle = next(path for path in place.objects() if "/bundles/" in str(path))
    name, sound = str(bundle.relative_to(place.root / PRIMARY)), bundle.read_bytes()
    flip(bundle)
    nearest = locations.nearest(place.settings, silent(), place.site.ring)
    assert read(nearest, name) == sound
    assert nearest.damaged() == {PRIMARY: (name,)}
    return nearest, name, sound


def mended(place: Any, nearest: Nearest, heard: list[Event]) -> dict[str, list[str]]:
    done = mend(
        place.settings, nearest, place.site.ring, actor="ada", now=place.site.at(60), observe=Observer(heard.append)
    )
    return {location: [one.name for one in report.healed] for location, report in done.items()}


def test_what_a_restore_found_damaged_is_replaced_from_a_proved_copy_and_audited(
    place: Any, damaged: tuple[Nearest, str, bytes]
) -> None:
    nearest, name, sound = damaged
    heard: list[Event] = []
    assert mended(place, nearest, heard) == {PRIMARY: [name]}
    assert (place.root / PRIMARY / name).read_bytes() == sound
    assert [one.code for one in heard if isinstance(one, Noticed)] == ["healed"]
    (*_, last) = AuditLog(LocalStorage(place.root / PRIMARY)).records()
    assert (last.actor, last.action, last.subject) == ("ada", "heal", name)
    # The next restore finds nothing wrong, so that nothing is touched.
    again = locations.nearest(place.settings, silent(), place.site.ring)
    assert read(again, name) == sound
    assert mended(place, again, heard) == {}


def test_what_cannot_be_replaced_stays_and_is_told_and_the_restore_counts(
    place: Any, damaged: tuple[Nearest, str, bytes]
) -> None:
    nearest, name, _ = damaged
    before = (place.root / PRIMARY / name).read_bytes()
    for location in ("offsite", "vault"):
        flip(place.root / location / name)
    heard: list[Event] = []
    assert mended(place, nearest, heard) == {PRIMARY: []}
    assert (place.root / PRIMARY / name).read_bytes() == before
    assert [one.code for one in heard if isinstance(one, Noticed)] == ["not-healed"]
    (place.root / PRIMARY).rename(place.root / "gone")
    heard.clear()
    assert mended(place, nearest, heard) == {}
    assert {one.code for one in heard if isinstance(one, Noticed)} == {"not-healed"}
