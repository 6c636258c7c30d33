"""Letting backups go: marked first, removed after a grace and another look, audited before each deed."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from seawall import retention
from seawall.audit import AuditLog
from seawall.errors import BackupMissing, ClockWentBackwards, LeaseHeld, StorageDenied, UsageError
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, ClusterIdentity, Compression, CopyMode, Head, SealingMode
from seawall.repository import Repository, Sealing
from seawall.retention import RetentionPolicy
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

START = datetime(2026, 1, 1, 2, 0, 0, tzinfo=UTC)


class MovableClock:
    now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def repository(clock: MovableClock) -> Repository:
    return Repository.create(MemoryStorage(clock=clock), now=clock.now)


@pytest.fixture
def plain(tmp_path: object) -> Sealing:
    return Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(tmp_path))  # type: ignore[arg-type]


def a_backup(repository: Repository, plain: Sealing, at: datetime, position: int) -> BackupLabel:
    area, label = repository.source("shop"), BackupLabel.after(None, at)
    writer = area.begin(label, plain, at)
    name, bundle = writer.bundle_writer(1)
    stored = writer.put_bundle(name, bundle, bundle.stream([]))
    head = Head(
        label=label, source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT, cluster=ClusterIdentity(7, 18, (1,)),
        server_version=180006, timeline=1, start_lsn=Lsn(position << 24), stop_lsn=Lsn((position + 1) << 24),
        segment_bytes=1 << 24, began_at=at, ended_at=at, stopped_at=at, plain_bytes=0, stored_bytes=1, file_count=0,
        object_count=1, compression=Compression.NONE, sealing=SealingMode.NONE, key_id="", manifest_sha256="",
        manifest_bytes=0,
    )  # fmt: skip
    with area.lease("t", "backup") as held:
        writer.commit(head, objects=[stored], specials={}, files=[], held=held)
    area.wal.put_segment(Segment(1, position).name, b"w" * 100, plain)
    return label


def a_history(repository: Repository, plain: Sealing, clock: MovableClock, days: int) -> list[BackupLabel]:
    labels = []
    for day in range(days):
        clock.now = START + timedelta(days=day)
        labels.append(a_backup(repository, plain, clock.now, 10 + day))
    return labels


def expire(repository: Repository, clock: MovableClock, days: int = 7) -> retention.RetentionPlan:
    area = repository.source("shop")
    plan = retention.plan(
        "shop", area.heads(), area.holds(clock.now), RetentionPolicy.of_days(days), now=clock.now,
        wal_names=area.wal.names(),
    )  # fmt: skip
    retention.expire(repository, plan, actor="ada", now=clock.now)
    return plan


def collect(repository: Repository, clock: MovableClock, **more: object) -> retention.Collected:
    return retention.collect(repository, "shop", actor="ada", now=clock.now, observe=silent(), **more)  # type: ignore[arg-type]


def names(repository: Repository) -> set[str]:
    return {stat.name for stat in repository.storage.list("sources/")}


def test_a_marked_backup_is_not_listed_any_more_and_still_all_there(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    labels = a_history(repository, plain, clock, 12)
    before = names(repository)
    plan = expire(repository, clock)
    gone = [d.label for d in plan.expire]
    assert gone == labels[:3]
    assert repository.source("shop").labels() == tuple(labels[3:])
    assert before <= names(repository)
    assert not collect(repository, clock).sets
    retention.unexpire(repository, "shop", labels[2], actor="ada", now=clock.now)
    assert labels[2] in repository.source("shop").labels()


def test_after_the_grace_everything_of_it_is_gone_and_the_audit_told_before(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    labels = a_history(repository, plain, clock, 12)
    expire(repository, clock)
    clock.now += timedelta(hours=25)
    done = collect(repository, clock)
    assert set(done.sets) == {str(label) for label in labels[:3]}
    assert not any(str(label) in name for label in labels[:3] for name in names(repository))
    assert not any(Segment(1, n).name in name for n in (10, 11, 12) for name in names(repository))
    assert repository.source("shop").labels() == tuple(labels[3:])
    actions = [record.action for record in AuditLog(repository.storage).records()]
    assert actions.count("expire") == actions.count("collect") == 3
    assert collect(repository, clock).objects == 0


def test_a_hold_that_came_during_the_grace_saves_the_backup(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    labels = a_history(repository, plain, clock, 12)
    expire(repository, clock)
    repository.source("shop").place_hold(labels[1], reason="lawsuit", owner="ada", now=clock.now)
    clock.now += timedelta(hours=25)
    done = collect(repository, clock)
    assert str(labels[1]) not in done.sets
    assert done.left[str(labels[1])] == "a hold was placed on it"


def test_a_dry_run_changes_nothing_and_says_the_same(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    a_history(repository, plain, clock, 12)
    expire(repository, clock)
    clock.now += timedelta(hours=25)
    before, records = names(repository), AuditLog(repository.storage).verify()
    dry = collect(repository, clock, dry_run=True)
    assert names(repository) == before
    assert AuditLog(repository.storage).verify() == records
    assert set(dry.sets) == set(collect(repository, clock).sets)


def test_a_set_that_was_never_committed_is_garbage_after_its_grace_and_not_while_a_writer_works(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    area = repository.source("shop")
    writer = area.begin(BackupLabel.after(None, START), plain, START)
    name, bundle = writer.bundle_writer(1)
    writer.put_bundle(name, bundle, bundle.stream([]))
    assert not collect(repository, clock).sets
    clock.now += timedelta(hours=25)
    with area.lease("busy", "backup"), pytest.raises(LeaseHeld, match="busy for backup"):
        collect(repository, clock)
    assert collect(repository, clock).sets == ("20260101T020000Z-full",)
    assert not [n for n in names(repository) if "/backups/" in n]


def test_what_a_killed_put_left_goes_with_a_collection_and_not_before_its_grace(
    tmp_path: Path, clock: MovableClock
) -> None:
    storage = LocalStorage(tmp_path / "repository")
    repository = Repository.create(storage, now=START)
    left = tmp_path / "repository" / ".tmp-killed"
    left.write_bytes(b"half an object")
    clock.now = storage.now()
    assert collect(repository, clock).swept == 0
    os.utime(left, (0, 0))
    assert collect(repository, clock, dry_run=True).swept == 0
    assert collect(repository, clock).swept == 1
    assert not left.exists()


def test_an_interrupted_collection_finishes_next_time(
    repository: Repository, plain: Sealing, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = a_history(repository, plain, clock, 12)
    expire(repository, clock)
    clock.now += timedelta(hours=25)
    delete, left = repository.storage.delete, [4]

    def failing(name: str) -> None:
        if not left[0]:
            raise ConnectionError("power is out")
        left[0] -= 1
        delete(name)

    monkeypatch.setattr(repository.storage, "delete", failing)
    with pytest.raises(ConnectionError):
        collect(repository, clock)
    monkeypatch.setattr(repository.storage, "delete", delete)
    collect(repository, clock)
    assert not any(str(label) in name for label in labels[:3] for name in names(repository))
    assert repository.source("shop").labels() == tuple(labels[3:])


@pytest.mark.parametrize("what", ["", "/manifest", "/manifest.copy", "/bundles/", "head.json", "/keys/"])
def test_a_locked_object_stays_and_its_set_is_never_listed_again(
    repository: Repository, plain: Sealing, clock: MovableClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    labels = a_history(repository, plain, clock, 12)
    expire(repository, clock)
    clock.now += timedelta(hours=25)
    delete = repository.storage.delete

    def locked(name: str) -> None:
        if what in name and not name.endswith("wal") and "/wal/" not in name:
            raise StorageDenied(f"{name} is locked")
        delete(name)

    monkeypatch.setattr(repository.storage, "delete", locked)
    before = names(repository)
    done = collect(repository, clock)
    assert repository.source("shop").labels() == tuple(labels[3:])
    if what in ("", "/manifest"):
        kept = {name for name in before if str(labels[0]) in name}
        assert kept <= names(repository), "a manifest that must stay keeps what it names"
    assert bool(done.left) is (what != "/keys/"), "mode none has no keys"
    monkeypatch.setattr(repository.storage, "delete", delete)
    collect(repository, clock)
    assert not any(str(label) in name for label in labels[:3] for name in names(repository))


def test_a_set_whose_removal_began_cannot_be_brought_back(
    repository: Repository, plain: Sealing, clock: MovableClock
) -> None:
    labels = a_history(repository, plain, clock, 12)
    expire(repository, clock)
    repository.storage.delete(repository.source("shop").layout.manifest(labels[0]))
    with pytest.raises(BackupMissing):
        retention.unexpire(repository, "shop", labels[0], actor="ada", now=clock.now)


def test_clocks_that_disagree_stop_every_deletion(repository: Repository, plain: Sealing, clock: MovableClock) -> None:
    a_history(repository, plain, clock, 3)
    with pytest.raises(ClockWentBackwards):
        retention.collect(repository, "shop", actor="a", now=clock.now + timedelta(days=400), observe=silent())
    with pytest.raises(UsageError, match="24 hours"):
        collect(repository, clock, grace=timedelta(hours=1))
