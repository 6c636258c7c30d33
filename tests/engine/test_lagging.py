"""Storages whose lists lag behind: what is listed is whole, nothing is lost, and leases decide all the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import mirror, retention
from seawall.audit import AuditLog
from seawall.errors import LeaseHeld, LeaseLost, ObjectExists
from seawall.events import Observer
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    SealingMode,
    StoredObject,
)
from seawall.repository import Repository, Sealing, SourceArea
from seawall.repository.evidence import Evidence
from seawall.retention import RetentionPolicy
from seawall.storage.base import Storage, read
from seawall.storage.lagging import Lagging
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SEEDS = range(12)
LAG = 60
PLAIN = Sealing(SealingMode.NONE, Compression.NONE, 1, (), None)  # type: ignore[arg-type] # nothing is sealed


class Place:
    """A repository on a storage whose lists lag, and the same storage as it truly is."""

    def __init__(self, seed: int, lag: int = LAG) -> None:
        self.now = NOON
        self.truth = MemoryStorage(clock=lambda: self.now)
        Repository.create(self.truth, now=NOON)
        self.lagging = Lagging(self.truth, lag, random.Random(seed))
        self.repository = Repository.open(self.lagging)
        self.area = self.repository.source("shop")

    def backup(self, segment: int, prior: Head | None = None) -> Head:
        """A set with a bundle of its own and, of an incremental, that of its prior."""
        self.now += timedelta(minutes=1)
        label = BackupLabel(self.now) if prior is None else BackupLabel(self.now, BackupKind.INCREMENTAL, NOON)
        kind, base = label.kind, [] if prior is None else self.area.stored_objects(prior.label)
        with self.area.lease("here", "backup") as held:
            self.area.claim(ClusterIdentity(7, 18, (1,)), self.now)
            writer = self.area.begin(label, PLAIN, self.now)
            name, bundle = writer.bundle_writer(1)
            stored: list[StoredObject] = [writer.put_bundle(name, bundle, bundle.stream([])), *base]
            self.area.wal.put_segment(Segment(1, segment).name, b"w" * 100, PLAIN)
            facts = Head(
                label=label, source="shop", kind=kind, mode=CopyMode.DIRECT, cluster=ClusterIdentity(7, 18, (1,)),
                server_version=180006, timeline=1, start_lsn=Lsn(segment << 24), stop_lsn=Lsn((segment + 1) << 24),
                segment_bytes=1 << 24, began_at=self.now, ended_at=self.now, stopped_at=self.now, plain_bytes=0,
                stored_bytes=0, file_count=0, object_count=1, compression=Compression.NONE, sealing=SealingMode.NONE,
                key_id="", manifest_sha256="", manifest_bytes=0, prior="" if prior is None else str(prior.label),
            )  # fmt: skip
            return writer.commit(facts, objects=stored, specials={}, files=[], held=held)


def whole(storage: Storage) -> tuple[BackupLabel, ...]:
    """The labels that are listed there, after proving that all that each of them needs is there."""
    area = SourceArea(storage, "shop")
    names = {stat.name for stat in storage.list()}
    for label in area.labels():
        assert area.needed_objects(label) <= names
        assert {area.layout.segment(name) for name in mirror.own_wal(area.head(label))} <= names
    return area.labels()


@pytest.fixture(params=SEEDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield Place(request.param)


# -- the storage itself

steps = st.lists(st.tuples(st.sampled_from(["put", "delete", "list"]), st.sampled_from("abcd")), max_size=40)


@given(steps, st.integers(0, 8), st.integers(0, 99))
def test_lists_show_what_was_once_true_of_each_name_and_in_the_end_everything(
    made: list[tuple[str, str]], lag: int, seed: int
) -> None:
    inner = MemoryStorage()
    storage = Lagging(inner, lag, random.Random(seed))
    ever: set[str] = set()
    for step, name in made:
        if step == "list":
            assert {stat.name for stat in storage.list()} <= ever
            assert set(storage.children("")) <= ever
        elif step == "delete":
            storage.delete(name)
        else:
            ever.add(name)
            try:
                storage.put(name, [name.encode()])
            except ObjectExists:
                assert read(inner, name) == name.encode()
            assert read(storage, name) == name.encode()
    storage.settle()
    assert list(storage.list()) == list(inner.list())
    assert storage.children("") == inner.children("")


def test_a_list_does_lag(place: Place) -> None:
    for number in range(30):
        place.lagging.put(f"sources/shop/wal/{number:02d}", [b""])
    assert len(list(place.lagging.list())) < len(list(place.truth.list()))


# -- leases


def test_of_two_writers_one_gets_the_lease_however_far_lists_lag(place: Place) -> None:
    for _ in range(4):
        with place.area.lease("first", "backup") as held:
            held.check()
            with pytest.raises(LeaseHeld):
                place.area.lease("second", "backup")
            held.renew()
            held.check()
        place.lagging.settle()


def test_a_lease_follows_another_at_once_and_a_paused_writer_finds_that_out(place: Place) -> None:
    with place.area.lease("first", "backup"):
        pass
    with place.area.lease("paused", "backup", ttl=timedelta(minutes=1)) as paused:
        assert paused.token == 2
        place.now += timedelta(minutes=2)
        with place.area.lease("other", "backup") as other:
            assert other.token == 3
            with pytest.raises(LeaseLost, match="other"):
                paused.check()


# -- what is written under them


def test_backups_commit_and_none_is_lost(place: Place) -> None:
    full = place.backup(1)
    others = [place.backup(2, full), place.backup(3, full)]
    place.lagging.settle()
    assert whole(place.lagging) == whole(place.truth) == tuple(head.label for head in [full, *others])


def test_the_audit_goes_on_where_it_ended_and_no_record_is_written_twice(place: Place) -> None:
    audit = AuditLog(place.lagging)
    for number in range(1, 41):
        assert audit.append("ada", "try", "shop", {}, now=NOON).number == number
    assert AuditLog(place.truth).verify().number == 40


def test_who_the_cluster_is_is_recorded_once_for_each_timeline(place: Place) -> None:
    for timeline in (1, 2, 1, 3, 2, 3):
        place.area.claim(ClusterIdentity(7, 18, (timeline,)), NOON)
    known = SourceArea(place.truth, "shop").identity()
    assert known is not None
    assert known.timelines == (1, 2, 3)
    assert len(list(place.truth.list(place.area.layout.identities))) == 3


def test_what_expires_takes_nothing_along_that_a_listed_backup_needs(place: Place) -> None:
    full = place.backup(1)
    kept = place.backup(2, full)
    for number in range(3, 6):
        place.now += timedelta(days=2)
        place.lagging.settle()
        newest = place.backup(number)
    place.lagging.settle()
    policy = RetentionPolicy(window=timedelta(hours=1), daily=timedelta(days=1))
    for _ in range(3):
        plan = retention.plan_for(place.area, policy, now=place.now, at_rest=True)
        retention.expire(place.repository, plan, actor="ada", now=place.now)
        whole(place.truth)
        place.area.place_hold(kept.label, reason="lawsuit", owner="ada", now=place.now)
        place.now += timedelta(hours=25)
        place.lagging.settle()
        retention.collect(place.repository, "shop", actor="ada", now=place.now, observe=Observer())
        assert newest.label in whole(place.truth)
        assert place.area.needed_objects(kept.label) <= {stat.name for stat in place.truth.list()}


# -- copies


def mirrored(place: Place, there: Storage) -> None:
    evidence = Evidence([place.lagging])
    with SourceArea(there, "shop").lease("here", "mirror") as held:
        plan = mirror.survey(place.repository, "shop", there, evidence)
        mirror.run(plan, place.lagging, there, evidence, observe=Observer(), held=held, workers=1)


@pytest.mark.parametrize("which", ["origin", "destination", "both"])
def test_a_copy_never_lists_what_is_not_whole_there_and_the_next_runs_finish_it(place: Place, which: str) -> None:
    truth = MemoryStorage("there", clock=lambda: place.now)
    there: Any = truth if which == "origin" else Lagging(truth, LAG, random.Random(1))
    if which == "destination":
        place = Place(0, lag=0)
    mirror.begin(place.repository, there)
    full = place.backup(1)
    for number in range(2, 5):
        place.backup(number, full)
        mirrored(place, there)
        whole(truth)
    place.lagging.settle()
    if isinstance(there, Lagging):
        there.settle()
    mirrored(place, there)
    assert whole(truth) == whole(place.truth)


def test_what_was_removed_there_but_is_still_shown_keeps_its_backup_from_being_listed(place: Place) -> None:
    truth = MemoryStorage("there", clock=lambda: place.now)
    full = place.backup(1)
    place.lagging.settle()
    mirror.begin(place.repository, truth)
    mirrored(place, truth)
    bundle = next(stat.name for stat in truth.list() if "/bundles/" in stat.name)
    manifest = place.area.layout.manifest(full.label)
    truth.delete(manifest)
    # From here on the lists there stand still.
    there = Lagging(truth, 10_000, random.Random(1))
    truth.delete(bundle)
    mirrored(place, there)
    assert whole(truth) == ()
    there = Lagging(truth, 0, random.Random(1))
    mirrored(place, there)
    assert whole(truth) == (full.label,)
