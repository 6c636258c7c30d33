"""Two at once, a full disk, a kill at any moment: clear errors, nothing listed is lost, and the next run succeeds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.processes import is_alive
from seawall.backup import load
from seawall.errors import (
    ArchiveTimeout,
    Cancelled,
    ClusterMismatch,
    DestinationInUse,
    LeaseHeld,
    LeaseLost,
    SeawallError,
    ServerUnreachable,
    StorageFull,
    StorageUnreachable,
)
from seawall.events import Advanced, Event, Noticed, Observer
from seawall.model import CopyMode, Proof, RecoveryTarget, TargetKind
from seawall.repository import Repository, documents, lease
from seawall.storage.base import Bytes, Stat
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.local import LocalStorage
from seawall.storage.wrappers import Wrapper

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t"


@pytest.fixture(scope="module")
def site(site18: Site) -> Site:
    site18.query("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 60000) AS n")
    return site18


def test_two_backups_at_once_are_one_backup_and_one_refusal(site: Site) -> None:
    before = site.area.labels()
    refusals: list[BaseException] = []
    once = threading.Lock()

    def second(event: Event) -> None:
        if isinstance(event, Advanced) and once.acquire(blocking=False):
            try:
                site.backup()
            except SeawallError as error:
                refusals.append(error)

    head = site.backup(observe=Observer(second))
    assert [type(error) for error in refusals] == [LeaseHeld]
    assert "is leased by" in str(refusals[0])
    assert site.area.labels() == (*before, head.label)
    assert site.verify(head.label).good


def test_a_server_that_cannot_be_reached_or_whose_wal_nobody_carries_is_refused_at_once(site: Site) -> None:
    before = site.beside_wal()
    with pytest.raises(ServerUnreachable) as unreachable:
        site.backup(conninfo="host=127.0.0.1 port=1 user=postgres")
    assert unreachable.value.hint
    with pytest.raises(ArchiveTimeout, match="nobody_reads does not exist"):
        site.backup(slot="nobody_reads")
    assert site.beside_wal() == before


def test_the_files_of_a_stale_copy_are_never_taken_for_those_of_the_server(site: Site) -> None:
    """A standby on this host, say, with the primary's address: same identity, other files."""
    before = site.area.labels()
    site.query("CHECKPOINT")
    stale = site.place("stale")
    subprocess.run(["cp", "-a", str(site.data), str(stale)], check=True)
    site.query("INSERT INTO t SELECT n, 'not in the copy' FROM generate_series(1, 10) AS n")
    with pytest.raises(ClusterMismatch, match="not the files of the server") as refused:
        site.backup(data_directory=stale)
    assert "stream" in refused.value.hint
    assert site.area.labels() == before


def test_what_a_backup_cannot_carry_is_said_aloud(site: Site) -> None:
    fifo = site.data / "a pipe"
    os.mkfifo(fifo)
    heard: list[Event] = []
    try:
        head = site.backup(observe=Observer(heard.append))
    finally:
        fifo.unlink()
    notices = [event for event in heard if isinstance(event, Noticed) and event.code == "left-out"]
    assert ["a pipe" in notice.message for notice in notices] == [True]
    assert "a pipe" not in {entry.path for entry in site.area.manifest(head.label, site.ring).files()}


def test_a_mistaken_address_does_not_make_a_new_source_another_clusters(site: Site) -> None:
    with pytest.raises(ArchiveTimeout):
        site.backup(name="books", slot="nobody_reads")
    assert site.repository.source("books").identity() is None


def _with_storage(site: Site, storage: Any) -> Site:
    return replace(site, storage=storage, repository=Repository.open(storage))


@pytest.mark.parametrize("room", [0, 1, 300_000, 1_500_000])
def test_a_full_repository_stops_a_backup_with_a_clear_error_and_room_lets_the_next_one_succeed(
    site: Site, room: int
) -> None:
    before = site.area.labels()
    whole = LocalStorage(site.home / "repository")
    full = Fault(Trouble.DISK_FULL, "put", "sources/shop/backups/*", after_bytes=room)
    with pytest.raises(StorageFull) as refused:
        _with_storage(site, Faulty(whole, [full])).backup()
    assert "Free space" in refused.value.hint
    assert site.area.labels() == before
    for label in before:
        assert site.verify(label, Proof.HASH_GOOD).good
    assert site.verify(site.backup().label).good


# As `pg_dumpall` of a server that takes no new connection: it says nothing and ends when it is told to.
_WAITS = """#!/bin/sh
sleep 600 &
echo $! > "{noted}"
wait
"""


def test_a_backup_that_failed_does_not_wait_for_a_pg_dumpall_that_does_not_end(site: Site) -> None:
    programs, noted = site.home / "programs", site.home / "waits"
    programs.mkdir()
    for program in site.binaries.directory.iterdir():
        (programs / program.name).symlink_to(program)
    (programs / "pg_dumpall").unlink()
    (programs / "pg_dumpall").write_text(_WAITS.format(noted=noted))
    (programs / "pg_dumpall").chmod(0o755)
    heard: list[Event] = []

    def stop(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Advanced):
            site.until(noted.exists, "the start of pg_dumpall")
            observe.cancel.set()

    observe = Observer(stop)
    with pytest.raises(Cancelled):
        site.backup(bin_directory=programs, observe=observe)
    # KILL was sent; when the kernel gets round to it is its own affair.
    site.until(lambda: not is_alive(int(noted.read_text())), "the end of what pg_dumpall started")
    assert not [event for event in heard if isinstance(event, Noticed) and event.code == "no-globals"]


@pytest.mark.parametrize("leaf", ["*/objects.json", "*/manifest.copy", "*/head.json", "*/manifest"])
@pytest.mark.parametrize("trouble", [Trouble.FAIL_BEFORE, Trouble.CUT_SHORT])
def test_a_commit_that_breaks_off_lists_nothing(site: Site, leaf: str, trouble: Trouble) -> None:
    before = site.area.labels()
    faulty = Faulty(LocalStorage(site.home / "repository"), [Fault(trouble, "put", leaf, times=0)])
    with pytest.raises(StorageUnreachable):
        _with_storage(site, faulty).backup()
    assert site.area.labels() == before


def test_a_writer_that_lost_its_lease_meanwhile_lists_nothing(site: Site) -> None:
    before = site.area.labels()
    once = threading.Lock()

    def usurp(event: Event) -> None:
        if isinstance(event, Advanced) and once.acquire(blocking=False):
            layout = site.area.layout
            record = lease.newest(site.storage, layout)
            assert record is not None
            # What a storage shows when this writer was paused for longer than its time to live.
            document = {"holder": "another", "purpose": "backup", "ttl_seconds": 1.0, "token": 0, "nonce": "x"}
            documents.put(site.storage, layout.lease(record.token + 1), document)

    with pytest.raises(LeaseLost, match="another"):
        site.backup(observe=Observer(usurp))
    assert site.area.labels() == before
    time.sleep(1.1)
    site.backup()


@contextmanager
def _tiny_disk(place: Path, megabytes: int) -> Iterator[Path]:
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this account cannot mount a small file system: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_destination_is_refused_when_planning_and_told_when_it_fills_meanwhile(
    site: Site, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    head = site.backup()
    with _tiny_disk(site.home / "tiny", 16) as disk:
        disk.chmod(0o755)
        into = disk / "data"
        with pytest.raises(StorageFull, match="free"):
            site.plan(into=into, label=head.label)
        assert not into.exists()
        # The space may go while a restore runs; the plan cannot know.
        plan = site.plan(label=head.label)
        with pytest.raises(StorageFull, match="no space") as refused:
            site.run(replace(plan, destination=into), start=False)
        assert "delta" in refused.value.hint
        assert not (into / "global" / "pg_control").exists()
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        again = site.plan(into=into, label=head.label, delta=True)
        assert site.run(again).reached is not None
        with site.running(into) as instance:
            assert rows(instance, ROWS) == site.query(ROWS)


_CHILD = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from seawall import backup
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository import Repository, Sealing
from seawall.settings import SourceSettings
from seawall.storage.local import LocalStorage
from seawall.storage.wrappers import Wrapper
repository, conninfo, ring, label_at = sys.argv[1:]
ring = KeyRing(Path(ring))
recipients = tuple(key.fingerprint for key in ring.list())
sealing = Sealing(SealingMode.AES_256_GCM, Compression.GZIP, 9, recipients, ring)
source = SourceSettings("shop", conninfo=conninfo)
print("begun", flush=True)
backup.take(source, Repository.open(LocalStorage(Path(repository))), sealing,
            now=datetime.fromisoformat(label_at), observe=Observer())
print("listed", flush=True)
"""


def test_a_backup_that_is_killed_at_any_moment_costs_nothing_that_was_listed(
    site: Site, randomness: random.Random
) -> None:
    before = site.area.labels()
    finished = 0
    temporary = site.home / "t"
    temporary.mkdir()
    arguments = [str(site.home / "repository"), site.instance.conninfo, str(site.ring.home)]
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *arguments, site.now().isoformat()],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            # What the dead leave in the temporary directory goes with the site.
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(randomness.uniform(0.05, 2.0))
        child.kill()
        finished += "listed" in child.stdout.read()
        child.wait()
        child.stdout.close()
        _let_the_lease_of_the_dead_run_out(site)
    listed = [label for label in site.area.labels() if label not in before]
    # A kill between the commit and the child's last word leaves one that is listed and whole.
    assert len(listed) >= finished
    for label in listed:
        assert site.verify(label).reached is Proof.WAL_CONTINUOUS
    for label in before:
        assert site.verify(label, Proof.PRESENT).good
    last = site.backup()
    assert site.verify(last.label).reached is Proof.WAL_CONTINUOUS
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'seawall backup'"
    site.until(lambda: site.value(sessions) == "0", "the end of the dead backups' sessions")


def _let_the_lease_of_the_dead_run_out(site: Site) -> None:
    """What five minutes would do: the killed writer's lease is made old."""
    record = lease.newest(site.storage, site.area.layout)
    if record is None or record.released:
        return
    for path in (site.home / "repository" / "leases" / "shop").glob(f"{record.token:012d}*"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_a_destination_that_came_to_life_since_the_plan_is_not_overwritten(site: Site) -> None:
    plan = site.plan(RecoveryTarget(TargetKind.IMMEDIATE))
    plan.destination.mkdir()
    (plan.destination / "something").write_text("new")
    with pytest.raises(DestinationInUse):
        site.run(plan)
    assert (plan.destination / "something").read_text() == "new"


class Small(Wrapper):
    """Says that next to nothing is free."""

    def free_bytes(self) -> int | None:
        return 5_000_000


def test_a_backup_that_cannot_fit_is_refused_with_the_numbers_before_anything_is_written(site: Site) -> None:
    site.backup()
    before = {stat.name for stat in site.area.storage.list("sources/")}
    with pytest.raises(StorageFull, match=r"5,000,000 bytes are free, the next backup takes about [0-9,]+"):
        _with_storage(site, Small(LocalStorage(site.home / "repository"))).backup()
    assert {stat.name for stat in site.area.storage.list("sources/")} == before


class Hanging(Wrapper):
    """Takes the first bundle no further than its first piece until so many others are stored."""

    def __init__(self, inner: LocalStorage, others: int) -> None:
        super().__init__(inner)
        self._others, self._enough = others, threading.Event()
        self._first, self._lock = threading.Lock(), threading.Lock()

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        if "/bundles/" not in name:
            return self.inner.put(name, chunks)
        if self._first.acquire(blocking=False):
            return self.inner.put(name, self._hanging(chunks))
        stat = self.inner.put(name, chunks)
        with self._lock:
            self._others -= 1
        if self._others <= 0:
            self._enough.set()
        return stat

    def _hanging(self, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
        for number, chunk in enumerate(chunks):
            yield chunk
            if not number and not self._enough.wait(60):
                raise StorageUnreachable("nothing went on beside it")


@pytest.mark.parametrize(("mode", "others"), [(CopyMode.DIRECT, 5), (CopyMode.STREAM, 1)])
def test_one_put_that_hangs_does_not_hold_the_rest(
    site: Site, mode: CopyMode, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the small cluster has as many objects.
    monkeypatch.setattr(load, "_LEAST_BYTES", 4 * 1024 * 1024)
    storage = Hanging(LocalStorage(site.home / "repository"), others)
    head = _with_storage(site, storage).backup(mode=mode, workers=0, resume=False)
    assert site.verify(head.label).reached is Proof.WAL_CONTINUOUS
