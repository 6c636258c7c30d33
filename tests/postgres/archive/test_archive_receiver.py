"""The streaming receiver against real servers: every byte, across kills, promotions and wrong servers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seawall.archive.continuity import switch_wal
from seawall.archive.receiver import Receiver
from seawall.errors import (
    ClusterMismatch,
    LeaseHeld,
    StorageUnreachable,
    SupersededTimeline,
    UsageError,
    WalConflict,
    WalGap,
)
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import ClusterIdentity
from seawall.repository import Repository, Sealing, SourceArea
from seawall.storage.local import LocalStorage
from seawall.wal import Lsn, Segment

# Pytest hands fixtures over by name:
# ruff: noqa: PLR0917
pytestmark = pytest.mark.postgres
one_version = pytest.mark.parametrize("major", [18])  # where nothing depends on the server's version


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def receiver_for(area: SourceArea, sealing: Sealing, tmp_path: Path, events: list[Any]) -> Callable[..., Receiver]:
    def make(server: Any, **options: Any) -> Receiver:
        options = {"tail_seconds": 0.3, "create_slot": True, "observe": Observer(events.append), **options}
        return Receiver(server.source, area, sealing, tmp_path / "spool", **options)

    return make


@contextmanager
def running(receiver: Receiver) -> Iterator[Receiver]:
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def same_as_in_pg_wal(server: Any, area: SourceArea, ring: KeyRing, names: list[str]) -> None:
    for name in names:
        assert area.wal.fetch(name, ring) == (server.wal / name).read_bytes(), name


def complete_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if len(path.name) == 24]


def complete_segments(server: Any) -> list[str]:
    current = server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    return sorted(p.name for p in server.wal.iterdir() if len(p.name) == 24 and p.name < current)


def test_every_byte_of_every_segment_arrives(
    primary: Any, area: SourceArea, ring: KeyRing, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        first = primary.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
        primary.query("ALTER SYSTEM SET wal_keep_size = '1GB'")
        primary.query("SELECT pg_reload_conf()")
        primary.write(50)
        last = primary.switch()
        eventually(lambda: area.wal.stored(last), what=last)
        eventually(lambda: not complete_in(receiver._directory))
    names = [name for name in complete_segments(primary) if name >= first]
    assert len(names) >= 3
    same_as_in_pg_wal(primary, area, ring, names)
    assert area.identity() == ClusterIdentity(
        int(primary.value("SELECT system_identifier FROM pg_control_system()")), primary.binaries.major, (1,)
    )


def test_the_open_segment_is_in_the_repository_within_seconds_and_its_tails_go_when_it_is_complete(
    primary: Any, area: SourceArea, ring: KeyRing, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.write(1)
        written = Lsn.parse(primary.value("SELECT pg_current_wal_flush_lsn()"))
        segment = Segment.ending_at(written, 1)
        eventually(lambda: receiver.status().stored >= written, what="the tail")
        tail = area.wal.fetch_tail(segment, ring)
        assert tail is not None
        assert tail[0] >= written
        assert tail[1] == (primary.wal / segment.name).read_bytes()[: len(tail[1])]
        primary.switch()
        eventually(lambda: area.wal.stored(segment.name))
        eventually(lambda: not area.wal.tails(segment))


def test_a_tail_that_is_lost_while_nothing_is_written_is_stored_again_and_that_is_said(
    primary: Any, area: SourceArea, receiver_for: Callable[..., Receiver], eventually: Any, events: list[Any]
) -> None:
    with running(receiver_for(primary, tail_look_seconds=0.2)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.write(1)
        written = Lsn.parse(primary.value("SELECT pg_current_wal_flush_lsn()"))
        segment = Segment.ending_at(written, 1)
        eventually(lambda: max(area.wal.tails(segment), default=Lsn(0)) >= written, what="the tail")
        for end in area.wal.tails(segment):
            area.storage.delete(area.layout.tail(segment, end.value))
        eventually(lambda: max(area.wal.tails(segment), default=Lsn(0)) >= written, what="the tail again")
        eventually(lambda: any(getattr(event, "code", "") == "tail-lost" for event in events), what="the notice")


def test_a_commit_waits_for_the_receiver_when_it_is_the_synchronous_standby(
    primary: Any, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    primary.query("ALTER SYSTEM SET synchronous_standby_names = 'vault'")
    primary.query("SELECT pg_reload_conf()")
    eventually(lambda: primary.value("SHOW synchronous_standby_names") == "vault")
    done = threading.Event()

    def commit() -> None:
        primary.query("CREATE TABLE synced ()")
        done.set()

    committer = threading.Thread(target=commit)
    committer.start()
    assert not done.wait(0.7)
    with running(receiver_for(primary, application_name="vault")) as receiver:
        assert done.wait(20)
        committer.join()
        state = primary.query("SELECT sync_state, flush_lsn >= '0/1' FROM pg_stat_replication")
        assert state == [("sync", True)]
        began = time.monotonic()
        for number in range(20):
            primary.query(f"CREATE TABLE synced_{number} ()")
        assert time.monotonic() - began < 20
        assert receiver.status().flushed.value > 0


@pytest.mark.slow
def test_a_receiver_killed_again_and_again_under_load_leaves_no_byte_out(
    primary: Any, area: SourceArea, ring: KeyRing, repository_path: Path, tmp_path: Path, eventually: Any
) -> None:
    primary.query("ALTER SYSTEM SET wal_keep_size = '3GB'")
    primary.query("SELECT pg_reload_conf()")
    stop = threading.Event()
    seed = random.Random(primary.binaries.major)

    def load() -> None:
        while not stop.is_set():
            primary.write(2)

    writer = threading.Thread(target=load)
    arguments = [sys.executable, "-c", _RECEIVER, primary.conninfo, str(repository_path), str(tmp_path)]
    child = subprocess.Popen(arguments)
    try:
        eventually(lambda: primary.query("SELECT 1 FROM pg_replication_slots WHERE active"))
        first = primary.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
        writer.start()
        for _ in range(6):
            time.sleep(seed.uniform(0.3, 2.0))
            child.send_signal(signal.SIGKILL)
            child.wait()
            child = subprocess.Popen(arguments)
        eventually(lambda: len(complete_segments(primary)) > 10)
        stop.set()
        writer.join()
        last = primary.switch()
        eventually(lambda: area.wal.stored(last), 60.0, what=last)
        eventually(lambda: not complete_in(tmp_path / "spool" / "received"))
    finally:
        stop.set()
        child.terminate()
        assert child.wait(20) == 0
    names = [name for name in complete_segments(primary) if first <= name <= last]
    assert len(names) > 5
    assert set(names) <= area.wal.names()
    same_as_in_pg_wal(primary, area, ring, names)


_RECEIVER = """
import signal, sys, threading
from pathlib import Path
from seawall.archive.receiver import Receiver
from seawall.events import Cancel, Observer
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository import Repository, Sealing
from seawall.settings import SourceSettings
from seawall.storage.local import LocalStorage

cancel = Cancel()
signal.signal(signal.SIGTERM, lambda *_: cancel.set())
conninfo, repository, directory = sys.argv[1:]
with KeyRing(Path(directory) / "ring") as ring:
    sealing = Sealing(SealingMode.NONE, Compression.LZ4, 1, (), ring)
    area = Repository.open(LocalStorage(Path(repository))).source("shop")
    Receiver(
        SourceSettings("shop", conninfo=conninfo), area, sealing, Path(directory) / "spool",
        create_slot=True, tail_seconds=0.2, observe=Observer(cancel=cancel),
    ).run()
"""


@pytest.fixture
def standby(primary: Any, make_server: Callable[..., Any]) -> Any:
    """A streaming standby of the primary, caught up."""
    server = make_server("standby", hot_standby="on", primary_conninfo=f"'{primary.conninfo}'")
    server.tool("pg_basebackup", "-D", server.data, "-d", primary.conninfo, "-X", "stream", "-c", "fast")
    (server.data / "standby.signal").touch()
    server.account.own(server.data / "standby.signal")
    server.start()
    return server


def caught_up(standby: Any, primary: Any) -> bool:
    position = primary.value("SELECT pg_current_wal_lsn()")
    return bool(standby.query(f"SELECT pg_last_wal_replay_lsn() >= '{position}'")[0][0])


def test_a_promotion_is_followed_with_history_and_closed_partial(
    primary: Any, standby: Any, area: SourceArea, ring: KeyRing, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(standby)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.write(20)
        eventually(lambda: caught_up(standby, primary))
        primary.stop()
        standby.query("SELECT pg_promote()")
        eventually(lambda: receiver.status().timeline == 2, what="the switch")
        standby.write(20)
        last = standby.switch()
        eventually(lambda: area.wal.stored(last), what=last)
        history = area.wal.histories()[2]
        left = history.switched_from(1)
        assert left is not None
        old = Segment.containing(left, 1)
        eventually(lambda: area.wal.fetch(f"{old.name}.partial", ring))
    assert area.wal.fetch("00000002.history", ring) == (standby.wal / "00000002.history").read_bytes()
    partial = area.wal.fetch(f"{old.name}.partial", ring)
    assert len(partial) == left - old.start
    names = [name for name in complete_segments(standby) if name[:8] == "00000002"]
    assert names[0] == old.on(2).name
    same_as_in_pg_wal(standby, area, ring, names)
    assert area.wal.fetch(names[0], ring)[: len(partial)] == partial
    identity = area.identity()
    assert identity is not None
    assert identity.timelines == (1, 2)


def test_a_receiver_moved_to_the_new_primary_goes_on_where_the_timelines_parted(
    primary: Any, standby: Any, area: SourceArea, ring: KeyRing, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.write(5)
        eventually(lambda: caught_up(standby, primary))
        standby.query("SELECT pg_wal_replay_pause()")
        standby.settings["primary_conninfo"] = "''"
        standby.stop()
        primary.write(40)  # what the standby never saw
        written = Lsn.parse(primary.value("SELECT pg_current_wal_flush_lsn()"))
        eventually(lambda: receiver.status().flushed >= written)
    primary.stop("immediate")
    standby.start()
    standby.query("SELECT pg_promote()")
    eventually(lambda: standby.value("SELECT pg_is_in_recovery()") == "False")
    with running(receiver_for(standby)) as receiver:
        standby.write(20)
        last = standby.switch()
        eventually(lambda: area.wal.stored(last), what=last)
    names = [name for name in complete_segments(standby) if name[:8] == "00000002"]
    same_as_in_pg_wal(standby, area, ring, names)


def test_the_old_primary_is_refused_once_the_new_timeline_is_known(
    primary: Any, standby: Any, area: SourceArea, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(standby)) as receiver:
        eventually(lambda: receiver.status().connected)
        standby.query("SELECT pg_promote()")
        eventually(lambda: 2 in area.wal.histories())
    primary.write(1)  # a zombie goes on writing
    with pytest.raises(SupersededTimeline, match="timeline 1 was left"):
        receiver_for(primary).run()


@one_version
def test_another_cluster_is_refused(
    primary: Any, area: SourceArea, make_server: Callable[..., Any], receiver_for: Callable[..., Receiver]
) -> None:
    system = int(primary.value("SELECT system_identifier FROM pg_control_system()"))
    area.claim(ClusterIdentity(system + 1, primary.binaries.major, (1,)), area.storage.now())
    with pytest.raises(ClusterMismatch, match=str(system)):
        receiver_for(primary).run()
    assert not area.wal.names()


@one_version
def test_other_content_under_a_stored_name_stops_the_receiver(
    primary: Any, area: SourceArea, sealing: Sealing, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    receiver = receiver_for(primary)
    receiver.start()
    eventually(lambda: receiver.status().connected)
    name = primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    area.wal.put_segment(name, b"x" * 100, sealing)
    primary.write(1)
    primary.switch()
    eventually(lambda: receiver._failure is not None)
    with pytest.raises(WalConflict, match=name):
        receiver.stop()
    assert (receiver._directory / name).exists(), "what could not be stored stays in the spool"


def test_a_slot_that_lost_its_wal_is_a_gap_and_can_be_passed_only_on_request(
    primary: Any, area: SourceArea, receiver_for: Callable[..., Receiver], eventually: Any, events: list[Any]
) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
    for name, value in {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}.items():
        primary.query(f"ALTER SYSTEM SET {name} = '{value}'")
    primary.query("SELECT pg_reload_conf()")
    for _ in range(6):
        primary.write(8)
        primary.switch()
        primary.query("CHECKPOINT")
    eventually(lambda: primary.query("SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'"))
    with pytest.raises(WalGap) as caught:
        receiver_for(primary).run()
    assert "full backup" in caught.value.hint
    with running(receiver_for(primary, accept_gap=True)) as receiver:
        eventually(lambda: receiver.status().connected, what="going on")
        primary.write(1)
        last = primary.switch()
        eventually(lambda: area.wal.stored(last))
    assert any(getattr(event, "code", "") == "wal-gap" and event.severity == "critical" for event in events)


@one_version
def test_a_lost_spool_is_made_good_from_the_server(
    primary: Any,
    area: SourceArea,
    ring: KeyRing,
    receiver_for: Callable[..., Receiver],
    eventually: Any,
    tmp_path: Path,
) -> None:
    primary.query("ALTER SYSTEM SET wal_keep_size = '1GB'")
    primary.query("SELECT pg_reload_conf()")
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.write(1)
        first = primary.switch()
        eventually(lambda: area.wal.stored(first))
    primary.write(20)
    for path in (tmp_path / "spool" / "received").iterdir():
        path.unlink()
    with running(receiver_for(primary)):
        last = primary.switch()
        eventually(lambda: area.wal.stored(last))
    names = [name for name in complete_segments(primary) if first <= name <= last]
    same_as_in_pg_wal(primary, area, ring, names)


@one_version
def test_a_missing_slot_is_named_and_not_made_unless_asked(primary: Any, receiver_for: Callable[..., Receiver]) -> None:
    with pytest.raises(UsageError, match="no slot 'seawall_shop'"):
        receiver_for(primary, create_slot=False).run()
    assert not primary.query("SELECT 1 FROM pg_replication_slots")


@one_version
def test_one_spool_has_one_receiver(primary: Any, receiver_for: Callable[..., Receiver], eventually: Any) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        with pytest.raises(LeaseHeld):
            receiver_for(primary).run()


def test_a_restarted_server_is_received_from_again(
    primary: Any, area: SourceArea, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    with running(receiver_for(primary)) as receiver:
        eventually(lambda: receiver.status().connected)
        primary.stop()
        eventually(lambda: not receiver.status().connected)
        primary.start()
        eventually(lambda: receiver.status().connected)
        primary.write(1)
        last = primary.switch()
        eventually(lambda: area.wal.stored(last))


@one_version
def test_stopping_takes_no_longer_than_seconds_and_keeps_what_came(
    primary: Any, receiver_for: Callable[..., Receiver], eventually: Any
) -> None:
    receiver = receiver_for(primary)
    receiver.start()
    eventually(lambda: receiver.status().connected)
    primary.write(2)
    written = Lsn.parse(primary.value("SELECT pg_current_wal_flush_lsn()"))
    eventually(lambda: receiver.status().received >= written)
    began = time.monotonic()
    receiver.stop()
    # Its server lets go of a silent receiver after a minute: that is what this must not wait for.
    assert time.monotonic() - began < 30
    assert receiver.status().flushed >= written


@one_version
def test_while_the_storage_is_out_segments_wait_here_and_then_on_the_server(
    primary: Any, repository_path: Path, sealing: Sealing, ring: KeyRing, tmp_path: Path, eventually: Any
) -> None:
    heard: list[Any] = []
    out = threading.Event()

    class Outage(LocalStorage):
        def put(self, name: str, chunks: Any) -> Any:
            if out.is_set():
                raise StorageUnreachable("the storage is out")
            return super().put(name, chunks)

    area = Repository.open(Outage(repository_path)).source("shop")
    receiver = Receiver(
        primary.source,
        area,
        sealing,
        tmp_path / "spool",
        create_slot=True,
        tail_seconds=0.3,
        spool_limit_bytes=2 * 16 * 1024 * 1024,
        observe=Observer(heard.append),
    )
    with running(receiver):
        eventually(lambda: receiver.status().connected)
        first = primary.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
        primary.query("ALTER SYSTEM SET wal_keep_size = '1GB'")
        primary.query("SELECT pg_reload_conf()")
        out.set()
        for _ in range(8):
            primary.write(8)
            last = primary.switch()
        eventually(lambda: "spool-full" in {getattr(event, "code", "") for event in heard})
        time.sleep(0.7)
        assert receiver.status().waiting == 3
        assert receiver.status().connected
        lag = int(primary.value("SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots"))
        assert lag > 3 * 16 * 1024 * 1024, "the server must keep what the spool may not"
        out.clear()
        eventually(lambda: area.wal.stored(last) and not complete_in(receiver._directory), 60.0)
    assert {"storage-unreachable", "spool-full"} <= {getattr(event, "code", "") for event in heard}
    same_as_in_pg_wal(primary, area, ring, [n for n in complete_segments(primary) if n >= first])


def test_an_idle_server_meets_its_rpo_and_writes_no_segments_for_nothing(primary: Any) -> None:
    with psycopg.connect(primary.conninfo, autocommit=True) as session:
        primary.query("CREATE TABLE change ()")
        written = primary.value("SELECT pg_current_wal_lsn()")
        segment = switch_wal(session)
        assert segment == Segment.ending_at(Lsn.parse(written), 1)
        for _ in range(3):
            assert switch_wal(session) == segment
        primary.query("CREATE TABLE another_change ()")
        assert switch_wal(session) == segment.next()


@one_version
def test_a_standby_has_no_wal_to_switch(standby: Any) -> None:
    with psycopg.connect(standby.conninfo, autocommit=True) as session, pytest.raises(UsageError):
        switch_wal(session)
