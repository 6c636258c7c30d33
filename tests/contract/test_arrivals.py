"""What a backup stores is locked from the moment that it is there, and no longer than a failed attempt stays anyway."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import retention
from seawall.arrivals import ARRIVAL_LOCK, locking_arrivals
from seawall.errors import ObjectLocked, StorageDenied
from seawall.events import Event, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Compression, SealingMode
from seawall.repository import Repository, Sealing
from seawall.settings import Locking, RepositorySettings
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment
from tests.contract.test_immutability import locked_place
from tests.contract.test_locked_locations import taken

PLACE = RepositorySettings(url="memory:arrivals")
CLOUDS = [pytest.param(kind, marks=pytest.mark.servers) for kind in ("s3", "azure", "gs")]


@pytest.fixture(params=["memory", *CLOUDS])
def locking(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryStorage()
        return
    opened = locked_place(request.getfixturevalue("servers"), request.param)
    yield opened
    opened.close()


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    with KeyRing(tmp_path / "ring") as made:
        yield made


def test_all_that_a_backup_stores_but_its_manifest_is_locked_for_a_day_and_what_must_go_is_not(
    locking: Any, ring: KeyRing
) -> None:
    repository = Repository.create(locking, now=datetime.now(UTC))
    writing = locking_arrivals(PLACE, repository, "shop", Observer())
    before = locking.now().replace(microsecond=0)
    head = taken(writing, ring, datetime.now(UTC))
    area = writing.source("shop")
    area.wal.put_tail(
        Segment(1, 11, 1 << 24),
        Lsn((11 << 24) + 100),
        b"tail",
        Sealing(SealingMode.NONE, Compression.NONE, 0, (), ring),
    )
    layout = area.layout
    own = {stat.name for stat in locking.list(layout.backups)}
    assert len(own) >= 5
    for name in own - {layout.manifest(head.label)}:
        until = locking.retention(name).until
        assert until is not None, name
        assert before + ARRIVAL_LOCK <= until <= locking.now() + ARRIVAL_LOCK + timedelta(seconds=1)
        with pytest.raises(ObjectLocked):
            locking.delete(name)
    rest = {stat.name for stat in locking.list()} - own | {layout.manifest(head.label)}
    assert any(".tail-" in name for name in rest)
    assert [name for name in rest if locking.retention(name).until is not None] == []


def test_what_an_attempt_left_goes_when_its_grace_is_over_as_without_locks(ring: KeyRing) -> None:
    now = [datetime.now(UTC)]
    storage = MemoryStorage(clock=lambda: now[0])
    repository = Repository.create(storage, now=now[0])
    taken(repository, ring, now[0])
    kept = {stat.name for stat in storage.list("sources/")}
    writing = locking_arrivals(PLACE, repository, "shop", Observer())
    label = BackupLabel(now[0].replace(microsecond=0))
    writer = writing.source("shop").begin(label, Sealing(SealingMode.NONE, Compression.NONE, 0, (), ring), now[0])
    name, bundle = writer.bundle_writer(1)
    writer.put_bundle(name, bundle, bundle.stream([]))
    with pytest.raises(ObjectLocked):
        storage.delete(name)
    for _ in range(3):
        now[0] += timedelta(hours=25)
        retention.collect(repository, "shop", actor="test", now=now[0], observe=Observer())
    left = {stat.name for stat in storage.list()}
    assert name not in left
    assert kept <= left


def test_a_place_that_lets_nobody_lock_costs_one_notice_and_no_backup(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> None:
        raise StorageDenied("no right to lock")

    monkeypatch.setattr(MemoryStorage, "retain", deny)
    heard: list[Event] = []
    repository = Repository.create(MemoryStorage(), now=datetime.now(UTC))
    writing = locking_arrivals(PLACE, repository, "shop", Observer(hear=heard.append))
    head = taken(writing, ring, datetime.now(UTC))
    assert repository.source("shop").labels() == (head.label,)
    assert [one.code for one in heard if isinstance(one, Noticed)] == ["copies-not-locked"]


@pytest.mark.parametrize("how", ["off", "a bucket without locks"])
def test_where_nothing_shall_or_can_be_locked_nothing_is_and_nobody_is_told(
    how: str, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how != "off":
        monkeypatch.setattr(MemoryStorage, "can_lock", lambda _: False)
    place = RepositorySettings(url="memory:x", lock=Locking.OFF) if how == "off" else PLACE
    heard: list[Event] = []
    storage = MemoryStorage()
    repository = Repository.create(storage, now=datetime.now(UTC))
    taken(locking_arrivals(place, repository, "shop", Observer(hear=heard.append)), ring, datetime.now(UTC))
    assert [stat.name for stat in storage.list() if storage.retention(stat.name).until] == []
    assert not [one for one in heard if isinstance(one, Noticed)]
