"""The agent with a repository in memory: what it takes, refuses, ships ahead, fetches ahead, and never confuses."""

# Pytest hands fixtures over by name:

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from seawall.archive import client
from seawall.archive.agent import Agent
from seawall.archive.intake import Intake, Taken
from seawall.archive.lookahead import Lookahead
from seawall.archive.prefetch import Prefetcher
from seawall.errors import (
    ClusterMismatch,
    Damaged,
    LeaseHeld,
    ObjectMissing,
    StorageError,
    StorageUnreachable,
    SupersededTimeline,
    WalConflict,
    WalGap,
)
from seawall.events import Advanced, Event, Noticed, Observer, silent
from seawall.keys import KeyRing
from seawall.model import ClusterIdentity
from seawall.repository import Repository, Sealing, SourceArea
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

SMALL = 1 << 20
SYSTEM = 7_500_000_000_000_000_001
Bytes = Callable[..., bytes]


def names(first: int, last: int, timeline: int = 1) -> list[str]:
    return [Segment(timeline, number, SMALL).name for number in range(first, last + 1)]


def history(*branches: tuple[int, Lsn]) -> bytes:
    return "".join(f"{timeline}\t{left}\tno recovery target specified\n" for timeline, left in branches).encode()


@pytest.fixture
def intake(area: SourceArea, sealing: Sealing) -> Intake:
    return Intake(area, sealing, observe=silent(), clock=lambda: datetime.now(UTC))


# ---- what may enter


def test_the_first_segment_says_whose_source_it_is(intake: Intake, area: SourceArea, wal_bytes: Bytes) -> None:
    (name,) = names(3, 3)
    assert intake.take(name, wal_bytes(name)) is Taken.STORED
    assert area.identity() == ClusterIdentity(SYSTEM, 18, (1,))
    assert intake.take(name, wal_bytes(name)) is Taken.IDENTICAL


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"system": SYSTEM + 1}, "system identifier"),
        ({"magic": 0xD116}, "17"),
        ({"magic": 0x1234}, "does not begin like WAL"),
        ({"timeline": 2}, "timeline 2"),
    ],
)
def test_another_clusters_segment_is_refused(
    intake: Intake, area: SourceArea, wal_bytes: Bytes, wrong: dict[str, int], said: str
) -> None:
    first, second = names(3, 4)
    intake.take(first, wal_bytes(first))
    with pytest.raises(ClusterMismatch, match=said):
        intake.take(second, wal_bytes(second, **wrong))
    assert area.wal.names() == {first}


def test_a_segment_under_another_ones_name_is_refused(intake: Intake, wal_bytes: Bytes) -> None:
    first, second = names(3, 4)
    with pytest.raises(ClusterMismatch, match="not what its name says"):
        intake.take(second, wal_bytes(first))


@pytest.mark.parametrize("length", [0, 39, 40, 8192, SMALL - 1])
def test_a_cut_segment_is_refused(intake: Intake, area: SourceArea, wal_bytes: Bytes, length: int) -> None:
    (name,) = names(3, 3)
    with pytest.raises(ClusterMismatch):
        intake.take(name, wal_bytes(name)[:length])
    assert not area.wal.names()


def test_other_content_is_a_conflict_and_changes_nothing(
    intake: Intake, area: SourceArea, ring: KeyRing, wal_bytes: Bytes
) -> None:
    (name,) = names(3, 3)
    intake.take(name, wal_bytes(name))
    with pytest.raises(WalConflict):
        intake.take(name, wal_bytes(name, seed="other"))
    assert area.wal.fetch(name, ring) == wal_bytes(name)


def test_a_superseded_timeline_is_refused_behind_the_switch_and_taken_before_it(
    intake: Intake, area: SourceArea, wal_bytes: Bytes
) -> None:
    before, switched, behind = names(3, 5)
    left = Segment.parse(switched, SMALL).start + 5000
    intake.take("00000002.history", history((1, left)))
    assert intake.take(before, wal_bytes(before)) is Taken.STORED
    for name in (switched, behind):
        with pytest.raises(SupersededTimeline, match="timeline 1 was left"):
            intake.take(name, wal_bytes(name))
    newer = Segment.parse(switched, SMALL).on(2).name
    assert intake.take(newer, wal_bytes(newer, timeline=1)) is Taken.STORED


def test_a_sibling_timeline_is_not_superseded(intake: Intake, wal_bytes: Bytes) -> None:
    """Recovery to another point made timeline 3 from 1; timeline 2 goes on being what it is."""
    intake.take("00000002.history", history((1, Segment(1, 4, SMALL).start)))
    intake.take("00000003.history", history((1, Segment(1, 6, SMALL).start)))
    (name,) = names(9, 9, timeline=2)
    assert intake.take(name, wal_bytes(name)) is Taken.STORED


def test_two_promotions_to_one_timeline_are_a_conflict(intake: Intake) -> None:
    intake.take("00000002.history", history((1, Lsn(5000))))
    with pytest.raises(WalConflict):
        intake.take("00000002.history", history((1, Lsn(6000))))


def test_a_second_closed_partial_is_noticed_and_does_not_block_the_archiver(
    area: SourceArea, sealing: Sealing, ring: KeyRing, wal_bytes: Bytes
) -> None:
    heard: list[Any] = []
    intake = Intake(area, sealing, observe=Observer(heard.append), clock=lambda: datetime.now(UTC))
    name = f"{names(3, 3)[0]}.partial"
    assert intake.take(name, wal_bytes(name)[:9000]) is Taken.STORED
    assert intake.take(name, wal_bytes(name)) is Taken.NOT_KEPT
    assert area.wal.fetch(name, ring) == wal_bytes(name)[:9000]
    assert [event.code for event in heard] == ["wal-conflict"]


def test_backup_notes_are_not_kept_and_do_not_block_the_archiver(intake: Intake, area: SourceArea) -> None:
    assert intake.take(f"{names(3, 3)[0]}.00000028.backup", b"START WAL LOCATION") is Taken.NOT_KEPT
    assert not list(area.storage.list("sources/shop/wal/"))


# ---- pushing


def push(agent: Agent, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        client.ask(str(agent.socket_path), client.encode("push", str(path)), descriptor, 0, 30)
    finally:
        os.close(descriptor)


def test_ready_segments_are_shipped_before_they_are_asked_for_and_once(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], eventually: Callable[..., None], descriptors: None
) -> None:
    storage = Faulty(MemoryStorage())
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    paths = [ready(name) for name in names(3, 9)]
    with agent_for(area=area) as agent:
        push(agent, paths[0])
        eventually(lambda: len(area.wal.names()) == len(paths))
        for path in paths[1:]:
            push(agent, path)
    assert sum(operation == "put" and "/wal/" in name for operation, name in storage.calls) == len(paths)


def test_what_becomes_ready_is_shipped_before_it_is_asked_for_and_once(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], eventually: Callable[..., None], descriptors: None
) -> None:
    storage = Faulty(MemoryStorage())
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    first, *later = names(3, 6)
    with agent_for(area=area) as agent:
        push(agent, ready(first))
        paths = [ready(name) for name in later]
        eventually(lambda: area.wal.names() == {first, *later})
        for path in paths:
            push(agent, path)
    assert sum(operation == "put" and "/wal/" in name for operation, name in storage.calls) == 4


def test_a_server_that_never_asked_has_nothing_shipped(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], area: SourceArea, eventually: Callable[..., None]
) -> None:
    heard: list[str] = []
    with agent_for(area=area) as agent:
        lookahead = agent._lookahead
        assert lookahead is not None
        assert lookahead._marks is not None
        lookahead._marks._appeared = lambda: (lookahead._became_ready(), heard.append("mark"))
        ready(names(3, 3)[0])
        eventually(lambda: heard)
    assert area.wal.names() == frozenset()


def test_where_marks_cannot_be_watched_files_are_found_when_they_are_asked_for(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], area: SourceArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(_directory: Path) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("seawall.archive.ready._watched", without)
    path = ready(names(3, 3)[0])
    with agent_for(area=area) as agent:
        push(agent, path)
    assert area.wal.names() == {path.name}


def test_a_push_is_answered_only_after_the_repository_has_it(
    ready: Callable[..., Path], agent_for: Callable[..., Agent], socket_path: Path
) -> None:
    release = threading.Event()

    def hold(point: str, name: str) -> None:
        if point == "put.before" and "/wal/" in name:
            release.wait(10)

    storage = Faulty(MemoryStorage(), at=hold)
    slow = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    path = ready(names(3, 3)[0])
    answered = threading.Event()
    with agent_for(area=slow) as agent:
        thread = threading.Thread(target=lambda: (push(agent, path), answered.set()))
        thread.start()
        assert not answered.wait(0.4)
        release.set()
        thread.join(10)
    assert answered.is_set()
    assert slow.wal.stored(path.name)


def test_a_failure_ahead_is_tried_again_when_it_is_asked_for(
    ready: Callable[..., Path], agent_for: Callable[..., Agent]
) -> None:
    first, second = names(3, 4)
    storage = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "put", name=f"*/{second}", times=1)])
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    paths = [ready(first), ready(second)]
    with agent_for(area=area) as agent:
        for path in paths:
            for _ in range(2):
                try:
                    push(agent, path)
                except client.Failed as error:
                    assert error.code == StorageUnreachable.exit_code
    assert area.wal.names() == {first, second}


def test_a_push_that_failed_is_tried_again_by_the_next_one(
    ready: Callable[..., Path], agent_for: Callable[..., Agent]
) -> None:
    storage = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "put", name="*/wal/*", times=1)])
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    path = ready(names(3, 3)[0])
    with agent_for(area=area) as agent:
        with pytest.raises(client.Failed) as failed:
            push(agent, path)
        assert failed.value.code == StorageUnreachable.exit_code
        push(agent, path)
    assert area.wal.stored(path.name)


def test_a_name_that_was_answered_is_looked_at_again_when_the_file_is_another(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], wal_bytes: Bytes
) -> None:
    (name,) = names(3, 3)
    with agent_for() as agent:
        push(agent, ready(name))
        ready(name, wal_bytes(name, seed="rewritten"))
        with pytest.raises(client.Failed) as refused:
            push(agent, agent_path(agent, name))
    assert refused.value.code == WalConflict.exit_code


def agent_path(agent: Agent, name: str) -> Path:
    lookahead = agent._lookahead
    assert lookahead is not None
    assert lookahead._wal_directory is not None
    return lookahead._wal_directory / name


def test_a_link_in_pg_wal_is_not_followed_ahead_of_the_asking(
    agent_for: Callable[..., Agent], ready: Callable[..., Path], tmp_path: Path, wal_bytes: Bytes, area: SourceArea
) -> None:
    first, second = names(3, 4)
    secret = tmp_path / "secret"
    secret.write_bytes(wal_bytes(second))
    path = ready(second)
    path.unlink()
    path.symlink_to(secret)
    with agent_for() as agent:
        push(agent, ready(first))
        time.sleep(0.2)
    assert area.wal.names() == {first}


def test_a_second_agent_on_one_socket_is_refused(agent_for: Callable[..., Agent]) -> None:
    with agent_for(), pytest.raises(LeaseHeld):
        agent_for().start()


def test_a_socket_left_by_a_killed_agent_is_taken_over(agent_for: Callable[..., Agent], socket_path: Path) -> None:
    import socket

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(socket_path))
    left.close()
    with agent_for() as agent:
        assert client.ask(str(agent.socket_path), client.encode("ping"), None, 0, 5) is None
    assert not socket_path.exists()


@pytest.mark.parametrize("fields", [("push", "x"), ("get",), ("get", "a", "b"), ("drop", "everything"), ()])
def test_a_request_that_makes_no_sense_is_an_error(agent_for: Callable[..., Agent], fields: tuple[str, ...]) -> None:
    with agent_for() as agent, pytest.raises(client.Failed):
        client.ask(str(agent.socket_path), client.encode(*fields), None, 0, 5)


def test_an_agent_without_sealing_only_gets_and_one_without_ring_only_takes(
    agent_for: Callable[..., Agent], ready: Callable[..., Path]
) -> None:
    path = ready(names(3, 3)[0])
    with agent_for(sealing=None) as agent, pytest.raises(client.Failed, match="only gets"):
        push(agent, path)
    with agent_for(ring=None) as agent, pytest.raises(client.Failed, match="only takes"):
        get(agent, path.name)


def test_shipped_bytes_are_heard(agent_for: Callable[..., Agent], ready: Callable[..., Path]) -> None:
    heard: list[Any] = []
    with agent_for(observe=Observer(heard.append)) as agent:
        push(agent, ready(names(3, 3)[0]))
    assert Advanced("archive", SMALL) in heard


def test_what_is_queued_when_the_agent_stops_leaks_nothing(
    intake: Intake, cluster: Path, ready: Callable[..., Path], descriptors: None
) -> None:
    lookahead = Lookahead(intake, cluster, workers=1, ahead=64, observe=silent())
    path, *_others = [ready(name) for name in names(3, 30)]
    descriptor = os.open(path, os.O_RDONLY)
    lookahead.push(str(path), descriptor)
    os.close(descriptor)
    lookahead.stop()


# ---- getting


def get(agent: Agent, name: str) -> bytes:
    descriptor = client.ask(str(agent.socket_path), client.encode("get", name), None, 0, 30)
    assert descriptor is not None
    try:
        return os.pread(descriptor, 64 * SMALL, 0)
    finally:
        os.close(descriptor)


@pytest.fixture
def stored(area: SourceArea, sealing: Sealing, wal_bytes: Bytes) -> Callable[..., list[str]]:
    def store(*wanted: str) -> list[str]:
        for name in wanted:
            area.wal.put_segment(name, wal_bytes(name), sealing)
        return list(wanted)

    return store


@pytest.fixture
def prefetcher(area: SourceArea, ring: KeyRing, tmp_path: Path) -> Any:
    made = Prefetcher(area.wal, ring, tmp_path, workers=2, depth=4, observe=silent(), gap_patience_seconds=0.1)
    made._segment_bytes = SMALL
    yield made
    made.stop()


def opened(prefetcher: Prefetcher, name: str) -> bytes:
    descriptor = prefetcher.open(name)
    try:
        return os.pread(descriptor, 64 * SMALL, 0)
    finally:
        os.close(descriptor)


def test_segments_come_back_in_order_and_ahead(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], wal_bytes: Bytes, descriptors: None
) -> None:
    wanted = stored(*names(3, 20))
    for name in wanted:
        assert opened(prefetcher, name) == wal_bytes(name)
        assert len(prefetcher._queue) <= 4
    prefetcher.stop()


def test_what_is_fetched_ahead_is_at_most_a_few_and_begins_behind_the_asked_one(
    prefetcher: Prefetcher, stored: Callable[..., list[str]]
) -> None:
    wanted = stored(*names(3, 20))
    opened(prefetcher, wanted[0])
    assert list(prefetcher._queue) == wanted[1:5]
    opened(prefetcher, wanted[9])
    assert list(prefetcher._queue) == wanted[10:14]


def test_asking_twice_is_answered_twice(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], wal_bytes: Bytes
) -> None:
    wanted = stored(*names(3, 6))
    for name in (wanted[2], wanted[2], wanted[0], wanted[3], wanted[2]):
        assert opened(prefetcher, name) == wal_bytes(name)


def test_behind_the_last_segment_is_nothing(prefetcher: Prefetcher, stored: Callable[..., list[str]]) -> None:
    *wanted, behind = names(3, 6)
    stored(*wanted)
    with pytest.raises(ObjectMissing):
        opened(prefetcher, behind)


@pytest.mark.parametrize("name", ["00000002.history", "000000010000000000000003.00000028.backup"])
def test_absent_files_are_absent(prefetcher: Prefetcher, name: str) -> None:
    with pytest.raises(ObjectMissing):
        prefetcher.open(name)


def test_a_hole_between_stored_segments_is_a_gap_and_not_absence(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], area: SourceArea, sealing: Sealing, wal_bytes: Bytes
) -> None:
    before, hole, behind = names(3, 5)
    stored(before, behind)
    with pytest.raises(WalGap, match=f"{hole} is not stored"):
        prefetcher.open(hole)
    area.wal.put_tail(
        Segment.parse(hole, SMALL), Segment.parse(hole, SMALL).start + 9000, wal_bytes(hole)[:9000], sealing
    )
    with pytest.raises(WalGap):
        prefetcher.open(hole)


def test_a_segment_that_parallel_archiving_stores_late_is_waited_for(
    area: SourceArea, ring: KeyRing, tmp_path: Path, stored: Callable[..., list[str]], wal_bytes: Bytes
) -> None:
    before, late, behind = names(3, 5)
    stored(before, behind)
    patient = Prefetcher(area.wal, ring, tmp_path, workers=1, depth=2, observe=silent(), gap_patience_seconds=5)
    patient._segment_bytes = SMALL
    timer = threading.Timer(0.3, stored, [late])
    timer.start()
    assert opened(patient, late) == wal_bytes(late)
    timer.join()
    patient.stop()


def test_the_open_segments_tail_is_filled_up_with_zeros(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], area: SourceArea, sealing: Sealing, wal_bytes: Bytes
) -> None:
    *wanted, still_open = names(3, 6)
    stored(*wanted)
    segment = Segment.parse(still_open, SMALL)
    for length in (4096, 70_000):
        area.wal.put_tail(segment, segment.start + length, wal_bytes(still_open)[:length], sealing)
    assert opened(prefetcher, still_open) == wal_bytes(still_open)[:70_000] + bytes(SMALL - 70_000)


def test_that_a_segment_was_never_completed_is_told_once_however_often_recovery_asks(
    area: SourceArea, sealing: Sealing, ring: KeyRing, tmp_path: Path, wal_bytes: Bytes
) -> None:
    (name,) = names(3, 3)
    segment = Segment.parse(name, SMALL)
    area.wal.put_tail(segment, segment.start + 4096, wal_bytes(name)[:4096], sealing)
    heard: list[Event] = []
    prefetcher = Prefetcher(area.wal, ring, tmp_path, workers=1, depth=2, observe=Observer(heard.append))
    prefetcher._segment_bytes = SMALL
    assert opened(prefetcher, name) == opened(prefetcher, name)
    assert [event.code for event in heard if isinstance(event, Noticed)] == ["wal-incomplete"]
    prefetcher.stop()


def test_a_complete_segment_wins_over_its_tail_and_partial(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], area: SourceArea, sealing: Sealing, wal_bytes: Bytes
) -> None:
    (name,) = names(3, 3)
    segment = Segment.parse(name, SMALL)
    area.wal.put_tail(segment, segment.start + 4096, wal_bytes(name)[:4096], sealing)
    area.wal.put_partial(f"{name}.partial", wal_bytes(name)[:9000], sealing)
    stored(name)
    assert opened(prefetcher, name) == wal_bytes(name)


def test_a_partial_is_cut_at_a_switch_whose_own_segment_is_not_stored(
    prefetcher: Prefetcher, area: SourceArea, sealing: Sealing, wal_bytes: Bytes
) -> None:
    (name,) = names(3, 3)
    segment = Segment.parse(name, SMALL)
    area.wal.put_partial(f"{name}.partial", wal_bytes(name)[:9000], sealing)
    area.wal.put_history("00000002.history", history((1, segment.start + 6000)), sealing)
    assert opened(prefetcher, name) == wal_bytes(name)[:6000] + bytes(SMALL - 6000)
    newer = segment.on(2).name
    area.wal.put_segment(newer, wal_bytes(newer, timeline=1), sealing)
    assert opened(prefetcher, name) == wal_bytes(name)[:9000] + bytes(SMALL - 9000)


@pytest.mark.parametrize("operation", ["get", "list"])
def test_a_storage_that_fails_is_an_error_and_never_absence(operation: str, ring: KeyRing, tmp_path: Path) -> None:
    storage = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, operation, name="*wal*", times=10**6)])
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    prefetcher = Prefetcher(area.wal, ring, tmp_path, workers=1, depth=2, observe=silent())
    with pytest.raises(StorageError) as failed:
        prefetcher.open(names(3, 3)[0])
    assert not isinstance(failed.value, ObjectMissing)
    prefetcher.stop()


def test_a_damaged_segment_is_an_error_and_never_absence(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], area: SourceArea
) -> None:
    (name,) = stored(*names(3, 3))
    place = area.layout.segment(name)
    data = bytearray(b"".join(area.storage.get(place)))
    data[-100] ^= 1
    area.storage.delete(place)
    area.storage.put(place, [bytes(data)])
    with pytest.raises(Damaged):
        prefetcher.open(name)


def test_a_segment_fetched_ahead_that_fails_is_an_error_when_its_turn_comes(
    prefetcher: Prefetcher, stored: Callable[..., list[str]], area: SourceArea
) -> None:
    first, second = stored(*names(3, 4))
    place = area.layout.segment(second)
    whole = b"".join(area.storage.get(place))
    area.storage.delete(place)
    area.storage.put(place, [whole[:-5]])
    opened(prefetcher, first)
    with pytest.raises(Damaged):
        prefetcher.open(second)


def test_over_the_socket_the_three_answers_stay_apart(
    agent_for: Callable[..., Agent], stored: Callable[..., list[str]], wal_bytes: Bytes, area: SourceArea
) -> None:
    first, second, third = names(3, 5)
    stored(first, second)
    place = area.layout.segment(second)
    area.storage.delete(place)
    area.storage.put(place, [b"rubbish"])
    with agent_for() as agent:
        assert get(agent, first) == wal_bytes(first)
        with pytest.raises(client.Failed) as failed:
            get(agent, second)
        assert failed.value.code == Damaged.exit_code
        with pytest.raises(client.Absent):
            get(agent, third)


def test_a_defect_in_the_agent_is_an_error_and_never_absence(
    agent_for: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Prefetcher, name: str) -> int:
        raise KeyError(name)

    monkeypatch.setattr(Prefetcher, "open", broken)
    with agent_for() as agent, pytest.raises(client.Failed, match="KeyError"):
        get(agent, names(3, 3)[0])


def test_trouble_in_the_spool_is_told_once_and_ends_by_itself(
    agent_for: Callable[..., Agent], tmp_path: Path, wal_bytes: Bytes, eventually: Callable[..., None]
) -> None:
    heard: list[Any] = []
    storage = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "put", name="*/wal/*", times=2)])
    area = Repository.create(storage, now=datetime.now(UTC)).source("shop")
    (name,) = names(3, 3)
    pushed = tmp_path / "spool" / "pushed"
    pushed.mkdir(parents=True)
    (pushed / name).write_bytes(wal_bytes(name))
    with agent_for(area=area, observe=Observer(heard.append)) as agent:
        eventually(lambda: not agent.spooled())
    assert area.wal.stored(name)
    assert sum(isinstance(event, Noticed) for event in heard) == 1
