"""Leases: one writer for a source, whoever tries."""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, datetime, timedelta

import pytest

from seawall import process
from seawall.errors import LeaseHeld, LeaseLost
from seawall.repository import Repository, documents
from seawall.repository.lease import CLEANUP, newest
from seawall.storage.memory import MemoryStorage

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


class MovableClock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def repository(clock: MovableClock) -> Repository:
    return Repository.create(MemoryStorage(clock=clock), now=NOW)


@pytest.mark.parametrize("content", [b"", b"noise", b'{"holder":"x"}'])
def test_a_damaged_lease_counts_for_an_hour_and_then_lets_others_in(
    repository: Repository, clock: MovableClock, content: bytes
) -> None:
    area = repository.source("shop")
    with area.lease("host-a:1", "backup"):
        name = area.layout.lease(1)
        repository.storage.delete(name)
        repository.storage.put(name, [content])
        clock.now += timedelta(minutes=50)
        with pytest.raises(LeaseHeld, match="unknown writer"):
            area.lease("host-b:2", "backup")
        clock.now += timedelta(minutes=11)
        with area.lease("host-b:2", "backup") as second:
            second.check()


def test_on_its_own_host_a_killed_writer_is_not_waited_for_and_a_living_one_is(repository: Repository) -> None:
    area = repository.source("shop")
    writer = os.fork()
    if not writer:
        area.lease("host-a:1", "backup")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(writer, os.WUNTRACED)
    # What the child stored is the child's alone: here the same lease is written for it.
    stated = {"holder": "host-a:1", "purpose": "backup", "ttl_seconds": 300.0, "token": 1, "nonce": "n"}
    documents.put(repository.storage, area.layout.lease(1), stated | {"process": process._identity_of(writer)})
    with pytest.raises(LeaseHeld, match="host-a:1 for backup"):
        area.lease("host-b:2", "backup")
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    with area.lease("host-b:2", "backup") as second:
        assert second.token == 2


def test_a_second_writer_is_refused_and_told_who_is_at_work(repository: Repository) -> None:
    area = repository.source("shop")
    with area.lease("host-a:1", "backup"), pytest.raises(LeaseHeld, match="host-a:1 for backup"):
        area.lease("host-b:2", "backup")
    with area.lease("host-b:2", "backup") as second:
        assert second.token == 2


def test_a_lease_that_was_not_renewed_can_be_taken_over_and_its_holder_notices(
    repository: Repository, clock: MovableClock
) -> None:
    area = repository.source("shop")
    with area.lease("paused", "backup", ttl=timedelta(seconds=60)) as paused:
        clock.now += timedelta(seconds=61)
        with area.lease("other", "backup"), pytest.raises(LeaseLost, match="other"):
            paused.check()
        with pytest.raises(LeaseLost):
            paused.renew()


def test_a_renewed_lease_runs_on(repository: Repository, clock: MovableClock) -> None:
    area = repository.source("shop")
    with area.lease("busy", "backup", ttl=timedelta(seconds=60)) as busy:
        clock.now += timedelta(seconds=50)
        busy.renew()
        clock.now += timedelta(seconds=50)
        busy.check()
        with pytest.raises(LeaseHeld):
            area.lease("other", "backup")


def test_leases_of_different_sources_do_not_meet(repository: Repository) -> None:
    with repository.source("shop").lease("a", "backup"), repository.source("crm").lease("b", "backup") as other:
        assert other.token == 1


def test_tokens_never_start_again_although_old_leases_are_forgotten(repository: Repository) -> None:
    area = repository.source("shop")
    for _ in range(5):
        with area.lease("a", "backup"):
            pass
    tokens = {stat.name[:24] for stat in repository.storage.list("leases/shop/")}
    assert len(tokens) == 2
    found = newest(repository.storage, area.layout)
    assert found is not None
    assert (found.token, found.released) == (5, True)


def test_of_many_that_try_at_once_one_gets_the_lease(repository: Repository) -> None:
    area = repository.source("shop")
    start, got, refused = threading.Barrier(8), [], []

    def attempt(number: int) -> None:
        start.wait()
        try:
            got.append(area.lease(f"host-{number}", "backup"))
        except LeaseHeld:
            refused.append(number)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_a_backup_waits_for_a_cleanup_and_for_nobody_else(repository: Repository, clock: MovableClock) -> None:
    area, slept = repository.source("shop"), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += timedelta(seconds=seconds)
        if len(slept) == 3:
            cleanup.__exit__(None, None, None)

    cleanup = area.lease("host-a", CLEANUP).__enter__()
    with area.lease("host-b", "backup", patience=timedelta(minutes=15), wait=sleep) as backup:
        assert (len(slept), backup.token) == (3, 2)
        with pytest.raises(LeaseHeld, match="host-b for backup"):
            area.lease("host-c", "backup", patience=timedelta(minutes=15), wait=pytest.fail)


def test_a_backups_patience_with_a_cleanup_ends(repository: Repository, clock: MovableClock) -> None:
    area = repository.source("shop")

    def sleep(seconds: float) -> None:
        clock.now += timedelta(seconds=60)

    with area.lease("host-a", CLEANUP, ttl=timedelta(hours=1)), pytest.raises(LeaseHeld, match="for cleanup"):
        area.lease("host-b", "backup", patience=timedelta(minutes=15), wait=sleep)
    assert clock.now - NOW == timedelta(minutes=15)
