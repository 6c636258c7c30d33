"""How full a storage is, when it will be full, and that a backup which cannot fit is not begun."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import capacity
from seawall.capacity import (
    Room,
    Sample,
    capacity_of,
    expected_bytes,
    refuse_full,
    refuse_without_room,
    theil_sen,
    warned,
)
from seawall.errors import StorageFull
from seawall.keys import KeyRing
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    SealingMode,
)
from seawall.repository import Repository, Sealing
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
GIB = 1 << 30
FULL, INCREMENTAL = BackupKind.FULL, BackupKind.INCREMENTAL


def a_head(days_ago: float, plain: int, stored: int, kind: BackupKind = FULL) -> Head:
    at = (NOW - timedelta(days=days_ago)).replace(microsecond=0)
    label = BackupLabel(at, kind, None if kind is FULL else at - timedelta(days=1))
    return Head(
        label=label, source="shop", kind=kind, mode=CopyMode.DIRECT, cluster=ClusterIdentity(7, 18, (1,)),
        server_version=180006, timeline=1, start_lsn=Lsn(0), stop_lsn=Lsn(1), segment_bytes=1 << 24, began_at=at,
        ended_at=at, stopped_at=at, plain_bytes=plain, stored_bytes=stored, file_count=1, object_count=1,
        compression=Compression.ZSTD, sealing=SealingMode.NONE, key_id="", manifest_sha256="", manifest_bytes=0,
    )  # fmt: skip


@given(
    st.integers(-(10**9), 10**12),
    st.integers(10**9, 10**14),
    st.lists(st.integers(0, 1000), min_size=6, max_size=40, unique=True),
    st.data(),
)
def test_the_trend_is_found_though_less_than_a_quarter_of_the_samples_are_wild(
    slope: int, start: int, days: list[int], data: st.DataObject
) -> None:
    samples = [Sample(NOW + timedelta(days=day), start + slope * day) for day in days]
    for place in data.draw(st.sets(st.integers(0, len(days) - 1), max_size=(len(days) - 1) // 5)):
        samples[place] = Sample(samples[place].at, data.draw(st.integers(0, 10**15)))
    found = theil_sen(samples)
    assert found is not None
    assert found.bytes_per_day == pytest.approx(slope, rel=1e-6, abs=1)


def test_no_trend_comes_of_one_moment() -> None:
    assert theil_sen([]) is None
    assert theil_sen([Sample(NOW, 1), Sample(NOW, 2)]) is None


def test_the_first_backups_of_a_day_are_no_trend_and_warn_of_nothing():
    minutes = [Sample(NOW + timedelta(minutes=n), n * GIB) for n in range(3)]
    assert theil_sen(minutes) is None
    fresh = capacity_of([], used_bytes=2 * GIB, free_bytes=100 * GIB, now=NOW, samples=minutes)
    assert (fresh.full_at, warned(fresh, now=NOW)) == (None, None)
    assert theil_sen([*minutes, Sample(NOW + timedelta(days=1), 3 * GIB)]) is not None


def test_the_day_on_which_it_is_full_is_named() -> None:
    samples = [Sample(NOW - timedelta(days=n), (100 - n) * GIB) for n in range(30)]
    found = capacity_of([], used_bytes=100 * GIB, free_bytes=50 * GIB, now=NOW, samples=samples)
    assert found.full_at is not None
    assert abs(found.full_at - (NOW + timedelta(days=50))) < timedelta(minutes=1)
    shrinking = [Sample(NOW - timedelta(days=n), (100 + n) * GIB) for n in range(30)]
    assert capacity_of([], used_bytes=1, free_bytes=1, now=NOW, samples=shrinking).full_at is None
    assert capacity_of([], used_bytes=1, free_bytes=None, now=NOW, samples=samples).full_at is None


def test_where_nobody_measured_the_backups_themselves_tell_the_growth() -> None:
    heads = [a_head(n, 10 * GIB, 4 * GIB) for n in range(10)]
    found = capacity_of(heads, used_bytes=40 * GIB, free_bytes=400 * GIB, now=NOW)
    assert found.trend is not None
    assert found.trend.bytes_per_day == pytest.approx(4 * GIB)
    assert (found.compression, found.saved) == (2.5, 2.5)


def test_what_incrementals_do_not_store_again_is_counted_as_saved() -> None:
    heads = [a_head(2, 10 * GIB, 5 * GIB), a_head(1, 10 * GIB, GIB, INCREMENTAL)]
    found = capacity_of(heads, used_bytes=6 * GIB, free_bytes=None, now=NOW)
    assert found.compression == 2.0
    assert found.saved == pytest.approx(20 / 6)


@pytest.mark.parametrize(
    "free, per_day, severity",
    [
        (500, 0, None),
        (150, 0, "medium"),
        (90, 0, "high"),
        (40, 0, "critical"),
        (500, 20, "medium"),
        (500, 200, "critical"),
    ],
)
def test_warnings_come_early(free: int, per_day: int, severity: str | None) -> None:
    used = 1000 - free
    samples = [Sample(NOW - timedelta(days=n), (used - per_day * n) * GIB) for n in range(3)]
    found = capacity_of([], used_bytes=used * GIB, free_bytes=free * GIB, now=NOW, samples=samples)
    said = warned(found, now=NOW)
    assert (said.severity if said else None) == severity
    if said and per_day:
        assert f"they last {free // per_day:.0f} days" in said.message or "they last 2 days" in said.message


def test_nothing_is_warned_of_where_the_storage_does_not_say() -> None:
    assert warned(capacity_of([], used_bytes=10**15, free_bytes=None, now=NOW), now=NOW) is None


def test_the_next_backup_is_guessed_from_the_last_ones() -> None:
    assert expected_bytes(FULL, 100, []) == 100
    assert expected_bytes(FULL, 100, [a_head(2, 50, 50), a_head(1, 50, 20)]) == 40
    assert expected_bytes(INCREMENTAL, 100, [a_head(2, 50, 7, INCREMENTAL), a_head(1, 50, 3, INCREMENTAL)]) == 7


def test_an_incremental_without_others_before_it_is_guessed_by_the_log_since_its_prior() -> None:
    full = a_head(1, 50, 20)
    assert expected_bytes(INCREMENTAL, 1000, [], full=full, wal_bytes=100) == 40
    assert expected_bytes(INCREMENTAL, 1000, [], wal_bytes=100) == 100
    assert expected_bytes(INCREMENTAL, 1000, [], full=full, wal_bytes=10**9) == 400, "never more than a full one"
    assert expected_bytes(INCREMENTAL, 1000, [], full=full) == 0


def test_a_refusal_has_both_numbers() -> None:
    with pytest.raises(StorageFull, match=r"1,000 bytes are free, the next backup takes about 5,000"):
        refuse_full(Room(1000), 5000)
    refuse_full(Room(5000), 5000)
    refuse_full(Room(None), 10**18)


def test_a_refusal_for_want_of_quota_says_what_is_used_and_what_to_raise() -> None:
    with pytest.raises(StorageFull, match=r"300 bytes are left of a quota of 1,000 \(700 are used\)") as refused:
        refuse_full(Room(None, quota_bytes=1000, used_bytes=700), 301)
    assert refused.value.hint.startswith("Raise quota_bytes")
    refuse_full(Room(None, quota_bytes=1000, used_bytes=700), 300)
    with pytest.raises(StorageFull, match="0 bytes are left of a quota"):
        refuse_full(Room(10**9, quota_bytes=1000, used_bytes=2000), 1)
    with pytest.raises(StorageFull, match="10 bytes are free"):
        refuse_full(Room(10, quota_bytes=1000, used_bytes=700), 11)


def test_a_backup_without_room_is_refused_by_what_the_source_stored_before(tmp_path: object) -> None:
    repository = Repository.create(MemoryStorage(capacity_bytes=100_000, clock=lambda: NOW), now=NOW)
    area = repository.source("shop")
    plain = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(tmp_path))  # type: ignore[arg-type]
    head = a_head(1, 1_000_000, 50_000)
    writer = area.begin(head.label, plain, NOW)
    with area.lease("t", "backup") as held:
        writer.commit(head, objects=[], specials={}, files=[], held=held)
    refuse_without_room(area, FULL, 1_000_000)
    with pytest.raises(StorageFull, match="the next backup takes about 150,000"):
        refuse_without_room(area, FULL, 3_000_000)
    taken = capacity.used_bytes(repository.storage)
    refuse_without_room(area, FULL, 1_000_000, quota_bytes=taken + 50_000)
    with pytest.raises(StorageFull, match=rf"49,999 bytes are left of a quota of {taken + 49_999:,}"):
        refuse_without_room(area, FULL, 1_000_000, quota_bytes=taken + 49_999)
    refuse_without_room(area, INCREMENTAL, 3_000_000, wal_bytes=1_000_000)
    with pytest.raises(StorageFull, match="the next backup takes about 100,000"):
        refuse_without_room(area, INCREMENTAL, 3_000_000, wal_bytes=2_000_000)
    assert 0 < capacity.used_bytes(repository.storage) < 100_000


def test_a_storage_that_hardly_grows_is_never_full() -> None:
    slow = [Sample(NOW - timedelta(days=2), 100), Sample(NOW, 101)]
    assert capacity_of([], used_bytes=101, free_bytes=10**18, now=NOW, samples=slow).full_at is None
