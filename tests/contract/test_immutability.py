"""Locked objects stay as they are, and the probe tells a lock that holds from one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from seawall.capacity import used_bytes
from seawall.errors import ObjectExists, ObjectLocked, ObjectMissing, StorageDenied
from seawall.model import LockMode
from seawall.settings import RepositorySettings
from seawall.storage import open_driver, open_storage
from seawall.storage.base import Storage, read
from seawall.storage.immutability import CANARIES, Lockable, lockable, probe
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.storage.parts import PART_BYTES
from seawall.storage.versions import hidden_bytes
from seawall.storage.wrappers import Retrying
from tests.contract import azure_locks
from tools.storage_servers import S3Server, Servers

CLOUDS = [pytest.param(kind, marks=pytest.mark.servers) for kind in ("s3", "azure", "gs")]


@pytest.fixture
def s3(servers: Servers) -> S3Server:
    server: S3Server = servers["s3"]
    return server


@pytest.fixture(params=["memory", *CLOUDS])
def locking(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryStorage()
        return
    opened = locked_place(request.getfixturevalue("servers"), request.param)
    yield opened
    opened.close()


def locked_place(servers: Servers, kind: str, mode: LockMode = LockMode.COMPLIANCE) -> Any:
    """A new place where locks are on; Azurite has none, so that a part of the client plays them."""
    if kind == "azure":
        return azure_locks.storage(servers["azure"].settings(), azure_locks.Locking(), mode)
    settings = servers[kind].settings(lock=True)
    return open_driver(settings.url, replace(settings, lock_mode=mode))


def soon(storage: Storage, **span: int) -> datetime:
    return storage.now().replace(microsecond=0) + timedelta(**(span or {"hours": 2}))


def test_a_locked_object_is_read_but_not_deleted(locking: Any) -> None:
    assert locking.capabilities.object_lock
    until = soon(locking)
    locking.put_locked("kept/a", [b"worth a lot"], until)
    with pytest.raises(ObjectLocked, match=f"{until:%Y-%m-%d %H:%M} UTC"):
        locking.delete("kept/a")
    with pytest.raises(ObjectExists):
        locking.put("kept/a", [b"something else"])
    assert read(locking, "kept/a") == b"worth a lot"
    assert locking.retention("kept/a").until == until


def test_a_large_object_is_locked_as_a_small_one(locking: Any) -> None:
    until = soon(locking)
    locking.put_locked("kept/large", (b"x" * PART_BYTES for _ in range(3)), until)
    assert locking.retention("kept/large").until == until
    with pytest.raises(ObjectLocked):
        locking.delete("kept/large")


def test_a_lock_is_made_longer_and_never_shorter(locking: Any) -> None:
    locking.put("kept/b", [b"1"])
    assert not locking.retention("kept/b").locked(locking.now())
    locking.retain("kept/b", soon(locking, hours=3))
    locking.retain("kept/b", soon(locking, hours=1))
    assert locking.retention("kept/b").until > soon(locking, hours=2)
    locking.retain("kept/b", soon(locking, hours=5))
    assert locking.retention("kept/b").until > soon(locking, hours=4)


def test_a_legal_hold_keeps_an_object_until_it_is_lifted(locking: Any) -> None:
    locking.put("kept/c", [b"evidence"])
    locking.hold("kept/c", True)
    assert locking.retention("kept/c").hold
    with pytest.raises(ObjectLocked, match="legal hold"):
        locking.delete("kept/c")
    locking.hold("kept/c", False)
    locking.delete("kept/c")
    with pytest.raises(ObjectMissing):
        locking.stat("kept/c")


def test_what_is_not_there_cannot_be_locked(locking: Any) -> None:
    with pytest.raises(ObjectMissing):
        locking.retain("nothing", soon(locking))


def test_an_object_whose_lock_has_ended_is_deleted_for_good(locking: Any) -> None:
    locking.put_locked("kept/d", [b"old"], locking.now().replace(microsecond=0) + timedelta(seconds=2))
    while locking.retention("kept/d").locked(locking.now()):
        pass
    locking.delete("kept/d")
    assert list(locking.list()) == []


def test_the_probe_proves_a_lock_and_leaves_the_canary(locking: Any) -> None:
    report = probe(locking, datetime.now(UTC))
    assert report.holds, report.breaches
    assert report.canary.startswith(CANARIES)
    assert read(locking, report.canary) == b"canary"
    again = probe(locking, datetime.now(UTC))
    assert again.removed == 0
    assert again.canary != report.canary


def test_the_probe_removes_canaries_whose_lock_has_ended() -> None:
    hours = [0.0]
    storage = MemoryStorage(clock=lambda: datetime(2026, 11, 23, tzinfo=UTC) + timedelta(hours=hours[0]))
    first = probe(storage, storage.now())
    hours[0] = 30.0
    second = probe(storage, storage.now())
    assert second.removed == 1
    assert [stat.name for stat in storage.list()] == [second.canary]
    assert first.canary != second.canary


@pytest.mark.servers
def test_deleting_removes_the_version_and_leaves_no_marker(s3: S3Server) -> None:
    settings = s3.settings(lock=True)
    storage = open_driver(settings.url, settings)
    storage.put("a", [b"1"])
    storage.delete("a")
    storage.delete("a")
    left = s3.client(settings).list_object_versions(Bucket=settings.url.split("/")[2])
    assert not left.get("Versions") and not left.get("DeleteMarkers")
    storage.put("a", [b"2"])
    assert read(storage, "a") == b"2"


@pytest.mark.servers
def test_versions_that_somebody_hid_are_counted_and_a_quota_counts_them_too(servers: Servers) -> None:
    storage = locked_place(servers, "s3")
    storage.put("a", [b"x" * 1000])
    storage.put("b", [b"y" * 10])
    assert (hidden_bytes(storage), used_bytes(storage)) == (0, 1010)
    storage.bucket.overwrite("a")
    assert hidden_bytes(Retrying(storage)) == 1000
    assert used_bytes(storage) == 1010 + storage.stat("a").size_bytes


@pytest.mark.servers
@pytest.mark.parametrize("kind", CLOUDS)
def test_a_bucket_without_versions_hides_nothing(kind: str, servers: Servers) -> None:
    settings = servers[kind].settings()
    storage = open_driver(settings.url, settings)
    storage.put("a", [b"1"])
    storage.delete("a")
    assert (hidden_bytes(storage), used_bytes(storage)) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "breach"),
    [
        pytest.param("s3", "could be deleted by lifting the lock", marks=pytest.mark.servers),
        pytest.param("azure", "could be unlocked before its time", marks=pytest.mark.servers),
        pytest.param("gs", "could be unlocked", marks=pytest.mark.servers),
    ],
)
def test_the_probe_raises_the_alarm_where_the_same_credentials_may_lift_the_lock(
    kind: str, breach: str, servers: Servers
) -> None:
    report = probe(locked_place(servers, kind, LockMode.GOVERNANCE), datetime.now(UTC))
    assert not report.holds
    assert breach in report.breaches


@pytest.mark.servers
def test_a_version_that_is_gone_after_an_attack_is_a_breach(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a service that takes the request to lock, and keeps one version only."""
    settings = s3.settings(lock=True)
    storage: Any = open_driver(settings.url, settings)
    head = storage.bucket.head

    def forgetful(name: str, **which: str) -> dict[str, Any]:
        if which:
            raise ObjectMissing(f"there is no such version of {name}")
        return dict(head(name))

    monkeypatch.setattr(storage.bucket, "head", forgetful)
    assert "could be overwritten" in probe(storage, datetime.now(UTC)).breaches


@pytest.mark.servers
def test_a_version_that_stays_below_what_an_attack_left_is_no_breach(servers: Servers) -> None:
    transport = azure_locks.Locking(versions=True)
    storage = azure_locks.storage(servers["azure"].settings(), transport)
    assert probe(storage, datetime.now(UTC)).breaches == ()
    storage.put_locked("kept/e", [b"seen"], soon(storage))
    with pytest.raises(ObjectLocked):
        storage.delete("kept/e")
    assert read(storage, "kept/e") == b"seen"


@pytest.mark.parametrize("kind", CLOUDS)
def test_a_bucket_without_locks_says_so(kind: str, servers: Servers) -> None:
    settings = servers[kind].settings()
    storage = open_driver(settings.url, settings)
    assert isinstance(storage, Lockable)
    assert not storage.capabilities.object_lock
    with pytest.raises(StorageDenied) as caught:
        storage.put_locked("a", [b"1"], soon(storage))
    assert "must be" in caught.value.hint
    assert list(storage.list()) == []


def test_a_storage_that_cannot_lock_is_refused_by_the_probe(tmp_path: Any) -> None:
    storage = LocalStorage(tmp_path)
    assert lockable(storage) is None
    with pytest.raises(StorageDenied, match="cannot lock"):
        probe(storage, datetime.now(UTC))


def test_what_locks_is_found_below_every_wrapper() -> None:
    assert lockable(open_storage(RepositorySettings(url="memory:"))) is not None
