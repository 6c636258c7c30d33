"""The faulty storage must fail exactly as told, or the tests that rely on it prove nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from seawall.errors import StorageError, StorageFull, StorageUnreachable, UsageError
from seawall.health.host import storage_keeps
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository import Repository
from seawall.repository.sealed import Sealing
from seawall.storage.base import Storage, read
from seawall.storage.faulty import Fault, Faulty, Killed, KillPoint, Locking, Trouble
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment


@pytest.fixture(params=["memory", "local"])
def inner(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else LocalStorage(tmp_path)


def test_a_call_refused_before_it_is_done_changes_nothing(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.FAIL_BEFORE, "put"), Fault(Trouble.FAIL_BEFORE, "delete")])
    with pytest.raises(StorageUnreachable):
        storage.put("one", [b"1"])
    assert list(inner.list()) == []
    storage.put("one", [b"1"])
    with pytest.raises(StorageUnreachable):
        storage.delete("one")
    assert inner.stat("one").size_bytes == 1


def test_a_lost_answer_means_that_it_was_done(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.FAIL_AFTER, "put"), Fault(Trouble.FAIL_AFTER, "delete")])
    with pytest.raises(StorageUnreachable):
        storage.put("one", [b"1"])
    assert read(inner, "one") == b"1"
    with pytest.raises(StorageUnreachable):
        storage.delete("one")
    assert list(inner.list()) == []


def test_faults_hit_the_calls_they_name_as_often_as_they_say(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.FAIL_BEFORE, "put", name="wal/*", skip=1, times=2, error=StorageError)])
    outcomes = []
    for number in range(5):
        storage.put(f"other/{number}", [b""])
        try:
            storage.put(f"wal/{number}", [b""])
            outcomes.append("done")
        except StorageError:
            outcomes.append("failed")
    assert outcomes == ["done", "failed", "failed", "done", "done"]


def test_a_put_cut_short_leaves_nothing(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.CUT_SHORT, "put", times=2, after_bytes=5)])
    for content in ([b"abc", b"def"], [b"ab"]):
        with pytest.raises(StorageUnreachable):
            storage.put("one", content)
    assert list(inner.list()) == []


def test_a_get_cut_short_yields_the_beginning_and_then_fails(inner: Storage) -> None:
    inner.put("one", [b"abcdef"])
    for after, expected in ((4, b"abcd"), (0, b""), (100, b"abcdef")):
        storage = Faulty(inner, [Fault(Trouble.CUT_SHORT, "get", after_bytes=after)])
        got = []
        with pytest.raises(StorageUnreachable):
            got.extend(storage.get("one"))
        assert b"".join(got) == expected


def test_a_hanging_call_sleeps_and_goes_on(inner: Storage) -> None:
    naps: list[float] = []
    Faulty(inner, [Fault(Trouble.HANG, "put", seconds=42)], sleep=naps.append).put("one", [b"1"])
    assert naps == [42]
    assert read(inner, "one") == b"1"


def test_a_stale_answer_is_that_of_before_the_last_changes(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.STALE, operation, lag=2) for operation in ("list", "children")])
    assert not storage.capabilities.consistent_list
    for name in ("a/1", "a/2", "b/1"):
        storage.put(name, [b""])
    storage.delete("a/1")
    assert [stat.name for stat in storage.list()] == ["a/1", "a/2"]
    assert storage.children("") == ("a",)
    assert [stat.name for stat in storage.list()] == ["a/2", "b/1"]
    assert storage.children("") == ("a", "b")


def test_a_full_disk_stays_full_and_keeps_what_it_has(inner: Storage) -> None:
    storage = Faulty(inner, [Fault(Trouble.DISK_FULL, "put", after_bytes=10)])
    storage.put("one", [b"12345"])
    for name in ("two", "three"):
        with pytest.raises(StorageFull):
            storage.put(name, [b"1234", b"5678"])
    assert [stat.name for stat in inner.list()] == ["one"]


def test_every_boundary_is_announced(inner: Storage) -> None:
    point = KillPoint(10**9)
    storage = Faulty(inner, at=point)
    storage.put("one", [b"1", b"2"])
    list(storage.get("one"))
    storage.delete("one")
    assert [name for name, _ in point.passed] == [
        *["put.before", "put.chunk", "put.chunk", "put.after"],
        *["get.before", "get.piece", "get.after", "delete.before", "delete.after"],
    ]


def test_the_dead_do_nothing_more(inner: Storage) -> None:
    point = KillPoint(2)
    storage = Faulty(inner, at=point)
    with pytest.raises(Killed):
        storage.put("one", [b"1"])
    with pytest.raises(Killed):
        storage.delete("one")
    assert point.reached
    assert list(inner.list()) == []


def test_a_kill_point_can_end_a_real_process(tmp_path: Path) -> None:
    script = (
        "import sys; from seawall.storage.faulty import *; from seawall.storage.local import LocalStorage\n"
        "Faulty(LocalStorage(sys.argv[1]), at=KillPoint(2, die)).put('one', [b'1', b'2'])"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list(LocalStorage(tmp_path).list()) == []
    assert len(os.listdir(tmp_path)) == 1  # noqa: PTH208 - the leftover is hidden from the storage, not from us


def test_where_everything_is_locked_tails_and_probes_stay_and_nothing_fails(tmp_path: Path) -> None:
    storage = Locking(MemoryStorage(), timedelta(days=1))
    source = Repository.create(storage, now=storage.now()).source("shop")
    assert "immutable until" in storage_keeps(storage).sentence
    segment = Segment(1, 5)
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(tmp_path / "ring"))
    for length in (8192, 16384):
        source.wal.put_tail(segment, segment.start + length, b"x" * length, sealing)
    assert len(source.wal.tails(segment)) == 2


def test_only_a_storage_that_locks_can_lock_all_that_is_put(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Locking(LocalStorage(tmp_path), timedelta(days=1))
