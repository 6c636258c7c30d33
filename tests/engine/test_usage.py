"""A measurement counts every object once, stops when it must, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.errors import StorageUnreachable
from seawall.events import Observer
from seawall.storage.base import Stat
from seawall.storage.memory import MemoryStorage
from seawall.usage import Usage, measure, parts_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PLACES = st.sampled_from(
    [
        "audit/", "leases/a/", "probes/", "sources/a/keys/k/", "sources/a/backups/20260101T000000Z-full/bundles/",
        "sources/a/backups/20260101T120000Z-full/", "sources/a/backups/20260102T000000Z-full/", "sources/ab/holds/",
        "sources/a/wal/00000001/0000000100000000/", "sources/a/wal/00000001/0000000100000010/",
        "sources/a/wal/history/",
    ]
)  # fmt: skip
NAMES = st.builds(lambda place, name: f"{place}x{name}", PLACES, st.integers(0, 5))


class Counting(MemoryStorage):
    """Remembers what was listed, and breaks when told to."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.listed: list[str] = []
        self.breaks_at = -1

    def list(self, prefix: str = "") -> Iterator[Stat]:
        if len(self.listed) == self.breaks_at:
            raise StorageUnreachable("gone")
        self.listed.append(prefix)
        return super().list(prefix)


def filled(names: dict[str, int]) -> Counting:
    storage = Counting()
    for name, size in names.items():
        storage.put(name, [b"x" * size])
    return storage


def measured(storage: Counting, memory: Path | None = None, until: float | None = None) -> Usage | None:
    return measure(storage, lambda _stat: "", memory=memory, until=until, now=NOW, observe=Observer())


@settings(max_examples=30)
@given(st.dictionaries(NAMES, st.integers(0, 50)))
def test_every_object_is_counted_exactly_once(names: dict[str, int]) -> None:
    found = measured(filled({**names, "seawall.json": 7, "sea": 1}))
    assert found is not None
    assert (found.objects, found.used_bytes) == (len(names) + 2, sum(names.values()) + 8)
    assert (found.recent_objects, found.by_class) == (found.objects, {"": found.used_bytes})


def test_backups_are_counted_day_by_day_and_wal_in_stretches() -> None:
    names = [f"sources/a/backups/202601{day:02d}T000000Z-full/head.json" for day in (1, 1, 2, 3)]
    names += [f"sources/a/wal/00000001/00000001000000{log:02X}/s" for log in range(20)]
    prefixes = [part.prefix for part in parts_of(filled(dict.fromkeys(names, 1)))]
    assert prefixes == [
        "sources/a/backups/20260101", "sources/a/backups/20260102", "sources/a/backups/20260103",
        "sources/a/wal/00000001/000000010000000", "sources/a/wal/00000001/000000010000001",
    ]  # fmt: skip


def test_a_measurement_that_broke_or_ran_out_of_time_goes_on_with_what_is_left(tmp_path: Path) -> None:
    names = {f"sources/a/backups/202601{day:02d}T000000Z-full/head.json": day for day in range(1, 6)}
    storage, memory = filled(names), tmp_path / "usage" / "offsite.json"
    storage.breaks_at = 3
    with pytest.raises(StorageUnreachable):
        measured(storage, memory)
    storage.breaks_at = -1
    assert measured(storage, memory, until=0.0) is None
    found = measured(storage, memory)
    assert found is not None
    assert (found.objects, found.used_bytes) == (5, 15)
    assert len(storage.listed) == 5, "no part was listed twice"
    assert not memory.exists()


@pytest.mark.parametrize("text", ["{", '{"begun_at": "2026-05-01T00:00:00+00:00", "parts": {}}', '{"parts": []}', "[]"])
def test_what_was_kept_too_long_or_cannot_be_read_is_counted_anew(text: str, tmp_path: Path) -> None:
    memory = tmp_path / "offsite.json"
    memory.write_text(text)
    found = measured(filled({"audit/1": 3}), memory)
    assert found == Usage(NOW, 1, 3, 1, 3, {"": 3})


def test_what_is_older_than_a_month_is_not_counted_as_written_in_it() -> None:
    storage = filled({"audit/1": 3})
    found = measure(storage, lambda _stat: "COLD", now=NOW + timedelta(days=31), observe=Observer())
    assert found is not None
    assert (found.recent_objects, found.recent_bytes, found.by_class) == (0, 0, {"COLD": 3})
