"""Letting go in two steps, over random lives of a repository: what is needed stays whole, what is let go is gone."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall import mirror, retention
from seawall.archive.continuity import windows
from seawall.audit import AuditLog
from seawall.errors import BackupMissing, LeaseHeld, LeaseLost, ObjectExists, ObjectMissing, SeawallError
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, Compression, Head, Health, SealingMode, StoredObject
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS
from seawall.retention import RetentionPolicy
from seawall.retention.copies import Unwanted
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

MakeHead = Callable[..., Head]
START = datetime(2026, 1, 1, 2, 0, 0, tzinfo=UTC)
FULL, DIFFERENTIAL, INCREMENTAL = BackupKind.FULL, BackupKind.DIFFERENTIAL, BackupKind.INCREMENTAL


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing(tmp_path_factory.mktemp("no-keys"))


@dataclass
class Life:
    """A repository with one source and a clock, in which time only goes on."""

    make_head: MakeHead
    ring: KeyRing
    now: datetime = START
    heads: list[Head] = field(default_factory=list)
    segment: int = 10
    attempt: list[StoredObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(clock=lambda: self.now)
        self.repository = Repository.create(self.storage, now=self.now)
        self.area = self.repository.source("shop")
        self.sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), self.ring)

    def names(self, prefix: str = "sources/") -> set[str]:
        return {stat.name for stat in self.storage.list(prefix)}

    def backup(
        self, kind: BackupKind, *, health: Health = Health.GOOD, commit: bool = True, resume: bool = False
    ) -> Head | None:
        """A set; an incremental refers to every bundle that its prior needs, but for one that changed.

        One that resumes refers to a bundle of the attempt before it as well, if that is still there.
        """
        self.now += timedelta(minutes=1)
        good = [head for head in self.area.readable_heads()[0] if head.health is Health.GOOD]
        if kind is DIFFERENTIAL:
            good = [head for head in good if head.kind is FULL]
        prior = good[-1] if good and kind is not FULL else None
        kind = FULL if prior is None else kind
        head = self.make_head(self.now, kind=kind, prior=prior, health=health, segment=self.segment)
        label = head.label
        writer = self.area.begin(label, self.sealing, self.now)
        # In this mode there are no data keys; retention only looks at their names.
        documents.put(self.storage, self.area.layout.key(str(label), 1), {"id": str(label)})
        own = []
        for number in range(1, 3):
            name, bundle = writer.bundle_writer(number)
            own.append(writer.put_bundle(name, bundle, bundle.stream([])))
        if not commit:
            self.attempt = own
            return None
        foreign: list[StoredObject] = []
        if prior is not None:
            foreign = [o for o in self.area.stored_objects(prior.label) if "/bundles/" in o.name][1:]
        if resume:
            foreign += [o for o in self.attempt[:1] if o.name in self.names()]
            self.attempt = []
        with self.area.lease("writer", "backup") as held:
            done = writer.commit(head, objects=[*own, *foreign], specials={}, files=[], held=held)
        self.area.wal.put_segment(Segment(1, self.segment).name, secrets.token_bytes(16), self.sealing)
        self.segment += 1
        self.heads.append(done)
        return done

    def expire(self, policy: RetentionPolicy) -> retention.RetentionPlan:
        plan = retention.plan_for(self.area, policy, now=self.now, at_rest=True)
        retention.expire(self.repository, plan, actor="ada", now=self.now)
        return plan

    def collect(self, **more: bool) -> retention.Collected:
        return retention.collect(self.repository, "shop", actor="ada", now=self.now, observe=silent(), **more)

    def clean(self, policy: RetentionPolicy) -> retention.Collected:
        """Both steps, with the grace between them."""
        self.expire(policy)
        self.now += timedelta(hours=25)
        return self.collect()

    # ---- what must always hold

    def prove(self) -> None:
        there, layout = self.names(), self.area.layout
        for label in self.area.labels(with_expired=True):
            # A marked set can be brought back until its removal begins, so it must be as whole as a listed one.
            needed = self.area.needed_objects(label)
            assert needed <= there, f"{label} lost {needed - there}"
            assert {layout.head(label), layout.objects(label), layout.manifest_copy(label)} <= there
            for name in needed:
                assert layout.key(name.split("/")[3], 1) in there, f"nothing opens {name} of {label}"
            head = next(head for head in self.heads if head.label == label)
            assert layout.segment(Segment.containing(head.start_lsn, 1).name) in there, f"{label} lost its WAL"

    def prove_gone(self) -> None:
        """Nothing is there but what a set that can be listed or brought back needs."""
        layout = self.area.layout
        present = self.area.labels(with_expired=True)
        needed = {name for label in present for name in self.area.needed_objects(label)}
        owners = {name.split("/")[3] for name in needed} | {str(label) for label in present}
        for name in self.names(layout.backups):
            label = name.split("/")[3]
            assert name in needed or BackupLabel.parse(label) in present, f"{name} should be gone"
        for name in self.names(layout.keys):
            assert name.split("/")[3] in owners, f"{name} should be gone"


OPERATIONS = (
    "full",
    "incremental",
    "differential",
    "degraded",
    "crash",
    "crash of a full",
    "resume",
    "resume incrementally",
    "hold",
    "release",
    "undo",
    "wait",
    "expire",
    "collect",
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7)), max_size=40),
    st.integers(1, 10),
    st.integers(0, 3),
)
def test_over_any_life_what_is_needed_stays_and_what_is_let_go_is_gone(
    make_head: MakeHead, ring: KeyRing, operations: list[tuple[str, int]], days: int, last: int
) -> None:
    life, policy = Life(make_head, ring), replace(RetentionPolicy(timedelta(days=days)), keep_last=last)
    for operation, number in operations:
        perform(life, policy, operation, number)
        life.prove()
        held = {hold.label for hold in life.area.holds(life.now)}
        assert held <= set(life.area.labels(with_expired=True))
        fulls = [h for h in life.heads if h.kind is FULL and h.health is Health.GOOD]
        assert not fulls or fulls[-1].label in life.area.labels()
    for hold in life.area.holds(life.now):
        life.area.release_hold(hold.id, owner="ada", now=life.now)
    for _ in range(2):
        life.clean(policy)
    life.prove()
    life.prove_gone()
    AuditLog(life.storage).verify()


def perform(life: Life, policy: RetentionPolicy, operation: str, number: int) -> None:
    marked = [label for label in life.area.labels(with_expired=True) if life.area.is_expired(label)]
    listed = life.area.labels()
    if operation in ("full", "incremental", "differential"):
        life.backup(BackupKind(operation))
    elif operation == "degraded":
        life.backup(INCREMENTAL, health=Health.DEGRADED)
    elif operation.startswith("crash"):
        life.backup(FULL if operation.endswith("full") else INCREMENTAL, commit=False)
    elif operation.startswith("resume"):
        life.backup(INCREMENTAL if operation.endswith("incrementally") else FULL, resume=True)
    elif operation == "hold" and (*listed, *marked):
        label = (*listed, *marked)[number % len((*listed, *marked))]
        life.area.place_hold(label, reason="why", owner="ada", now=life.now)
    elif operation == "release" and life.area.holds(life.now):
        life.area.release_hold(life.area.holds(life.now)[0].id, owner="ada", now=life.now)
    elif operation == "undo" and marked:
        retention.unexpire(life.repository, "shop", marked[number % len(marked)], actor="ada", now=life.now)
    elif operation == "wait":
        life.now += timedelta(hours=13 * (1 + number))
    elif operation == "expire":
        life.expire(policy)
    elif operation == "collect":
        life.collect()


@pytest.fixture
def life(make_head: MakeHead, ring: KeyRing) -> Life:
    return Life(make_head, ring)


ONE_DAY = RetentionPolicy.of_days(1)


def test_bundles_that_an_incremental_refers_to_outlive_their_set_and_go_with_the_last_that_needs_them(
    life: Life,
) -> None:
    base = life.backup(FULL)
    life.now += timedelta(days=3)
    newer = life.backup(FULL)
    small = life.backup(INCREMENTAL)
    assert base and newer and small
    life.now += timedelta(days=3)
    later = life.backup(FULL)
    hold = life.area.place_hold(small.label, reason="keep", owner="ada", now=life.now)
    done = life.clean(ONE_DAY)
    assert set(life.area.labels()) == {small.label, later.label} if later else False
    needed = {name for name in life.area.needed_objects(small.label) if str(newer.label) in name}
    assert len(needed) == 1
    assert life.names(life.area.layout.backup(newer.label)) == needed
    assert life.area.keychain.generations(str(newer.label)), "its key opens what is left of it"
    assert done.left[str(newer.label)] == "1 objects of it stay, because later backups refer to them"
    assert not life.names(life.area.layout.backup(base.label))
    records = AuditLog(life.storage).verify()[0]
    assert not life.collect().sets, "nothing new can go"
    assert AuditLog(life.storage).verify()[0] == records, "and the audit does not fill with nothing"
    life.area.release_hold(hold.id, owner="ada", now=life.now)
    life.clean(ONE_DAY)
    for label in (newer.label, small.label):
        assert not life.names(life.area.layout.backup(label))
        assert not life.area.keychain.generations(str(label))


def test_what_repaired_an_object_stays_as_long_as_that_is_needed_and_goes_with_it(life: Life) -> None:
    life.backup(FULL)
    life.now += timedelta(days=3)
    newer, small = life.backup(FULL), life.backup(INCREMENTAL)
    assert newer and small
    later_is_needed = [name for name in life.area.needed_objects(small.label) if str(newer.label) in name]
    layout = life.area.layout
    repaired = (*later_is_needed, layout.manifest(newer.label), layout.key(str(newer.label), 1))
    for name in repaired:
        life.storage.put(f"{REPAIRS}{name}", [b"sound"])
    # Of an object that was lost after it had been repaired, nothing but this is left.
    life.storage.put(f"{REPAIRS}{layout.backup(newer.label)}blocks", [b"sound"])
    life.now += timedelta(days=3)
    life.backup(FULL)
    hold = life.area.place_hold(small.label, reason="keep", owner="ada", now=life.now)
    life.clean(ONE_DAY)
    stay = {*later_is_needed, layout.key(str(newer.label), 1)}
    assert life.names(REPAIRS) == {f"{REPAIRS}{name}" for name in stay}
    assert stay <= life.names()
    life.area.release_hold(hold.id, owner="ada", now=life.now)
    life.clean(ONE_DAY)
    assert not life.names(REPAIRS)
    assert not stay & life.names()


def test_an_object_stays_while_what_repaired_it_is_locked_and_both_go_afterwards(life: Life) -> None:
    old = life.backup(FULL)
    assert old
    name = next(iter(life.area.needed_objects(old.label)))
    until = life.now + timedelta(days=20)
    life.storage.put_locked(f"{REPAIRS}{name}", [b"sound"], until)
    life.now += timedelta(days=3)
    life.backup(FULL)
    life.now += timedelta(days=3)
    life.backup(FULL)
    done = life.clean(ONE_DAY)
    assert f"{REPAIRS}{name}" in done.left
    assert name in life.names()
    life.now = until + timedelta(minutes=1)
    life.collect()
    assert not life.names(REPAIRS)
    assert not life.names(life.area.layout.backup(old.label))


def test_of_an_attempt_that_a_full_backup_resumed_what_it_uses_lives_as_long_as_it_and_the_rest_goes(
    life: Life,
) -> None:
    life.backup(FULL, commit=False)
    used, unused = life.attempt
    resumed = life.backup(FULL, resume=True)
    assert resumed
    attempt, layout = used.name.split("/")[3], life.area.layout
    life.now += timedelta(hours=23)
    life.collect()
    assert {used.name, unused.name} <= life.names(), "the grace"
    life.now += timedelta(hours=2)
    life.collect()
    assert life.names(f"{layout.backups}{attempt}/") == {used.name}
    assert life.area.keychain.generations(attempt), "its key opens what is left of it"
    records = AuditLog(life.storage).verify()[0]
    assert not life.collect().sets
    assert AuditLog(life.storage).verify()[0] == records, "and the audit does not fill with nothing"
    for _ in range(2):
        life.now += timedelta(days=3)
        life.backup(FULL)
    for _ in range(2):
        life.clean(ONE_DAY)
    assert resumed.label not in life.area.labels(with_expired=True)
    assert not life.names(f"{layout.backups}{attempt}/")
    assert not life.area.keychain.generations(attempt)


def test_what_an_incremental_needs_is_taken_for_everything_while_its_list_cannot_be_read(life: Life) -> None:
    life.backup(FULL)
    small = life.backup(INCREMENTAL)
    assert small
    life.now += timedelta(days=3)
    life.backup(FULL)
    life.area.place_hold(small.label, reason="keep", owner="ada", now=life.now)
    name = life.area.layout.objects(small.label)
    data = b"".join(life.storage.get(name))
    life.storage.delete(name)
    life.storage.put(name, [data[:-20] + b"x" * 20])
    done = life.clean(ONE_DAY)
    first = life.heads[0].label
    assert str(small.label) in done.left[str(first)]
    assert first in life.area.labels(with_expired=True)


def three(life: Life) -> Head:
    """Three full backups, of which a policy of one day lets the first go."""
    for _ in range(2):
        life.backup(FULL)
        life.now += timedelta(days=3)
    life.backup(FULL)
    return life.heads[0]


def test_a_cleanup_and_a_backup_never_run_at_once(life: Life) -> None:
    three(life)
    life.expire(ONE_DAY)
    life.now += timedelta(hours=25)
    before = life.names()
    with life.area.lease("writer", "backup"):
        with pytest.raises(LeaseHeld):
            life.collect()
        assert life.collect(dry_run=True).sets, "to look is always allowed"
        with pytest.raises(LeaseHeld):
            retention.unexpire(life.repository, "shop", life.heads[0].label, actor="ada", now=life.now)
    assert life.names() == before


def test_marking_waits_for_a_backup_that_runs_because_it_may_build_on_what_would_be_marked(life: Life) -> None:
    three(life)
    with life.area.lease("writer", "backup"), pytest.raises(LeaseHeld):
        life.expire(ONE_DAY)
    assert not life.names(life.area.layout.expired)


def test_a_cleanup_that_was_paused_longer_than_its_lease_stops(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        life.backup(FULL)
        life.now += timedelta(days=2)
    life.backup(FULL)
    life.expire(ONE_DAY)
    life.now += timedelta(hours=25)
    delete, paused = life.storage.delete, []

    def slow(name: str) -> None:
        delete(name)
        if not paused and name.startswith("sources/"):
            paused.append(name)
            life.now += timedelta(minutes=10)
            with life.area.lease("another", "backup"):
                pass

    monkeypatch.setattr(life.storage, "delete", slow)
    with pytest.raises(LeaseLost):
        life.collect()
    monkeypatch.undo()
    gone = [head for head in life.heads[:3] if not life.names(life.area.layout.backup(head.label))]
    assert [head.label for head in gone] == [life.heads[1].label], "the set it was at; the others wait"
    life.now += timedelta(minutes=10)
    life.collect()
    life.prove_gone()


def test_a_plan_that_the_repository_has_outlived_is_refused(life: Life) -> None:
    old = three(life)
    plan = retention.plan_for(life.area, ONE_DAY, now=life.now)
    life.area.place_hold(old.label, reason="lawsuit", owner="ada", now=life.now)
    with pytest.raises(SeawallError, match="lawsuit"):
        retention.expire(life.repository, plan, actor="ada", now=life.now)
    assert not life.names(life.area.layout.expired)


def test_keys_of_sets_of_which_nothing_is_left_go_after_their_grace_and_those_of_wal_stay(life: Life) -> None:
    layout = life.area.layout
    lost, wal = layout.key("20260101T010000Z-full", 1), layout.key("wal-20260101T010000Z-0123abcd", 1)
    for name in (lost, wal):
        documents.put(life.storage, name, {"id": "x"})
    life.backup(FULL)
    life.collect()
    assert {lost, wal} <= life.names()
    life.now += timedelta(hours=25)
    life.collect()
    assert lost not in life.names()
    assert wal in life.names()
    life.prove()
    assert [record.action for record in AuditLog(life.storage).records()] == ["collect-key", "collected"]


def test_all_that_lies_of_a_marked_segment_goes_with_it(life: Life) -> None:
    for number in range(4):
        segment = Segment(1, number)
        life.area.wal.put_segment(segment.name, b"w", life.sealing)
        life.storage.put(f"{life.area.layout.segment(segment.name)}.claim.json", [b"{}"])
    life.area.wal.put_partial(f"{Segment(1, 4).name}.partial", b"p", life.sealing)
    life.area.wal.put_tail(Segment(1, 5), Segment(1, 5).start + 100, b"t", life.sealing)
    life.backup(FULL)
    life.now += timedelta(days=3)
    life.backup(FULL)
    plan = life.expire(ONE_DAY)
    assert [(wal.first, wal.count) for wal in plan.wal] == [(Segment(1, 0).name, 6)]
    life.now += timedelta(hours=25)
    life.collect()
    kept = {name.rsplit("/", 1)[1] for name in life.names(life.area.layout.wal)}
    assert kept == {Segment(1, 10).name, Segment(1, 11).name}
    assert not life.names(life.area.layout.expired), "each mark went with what it marked"


def test_a_list_of_wal_goes_with_the_last_segment_that_it_names_and_not_before(life: Life) -> None:
    segments = [Segment(1, number) for number in range(10)]
    for segment in segments:
        life.area.wal.put_segment(segment.name, b"w", life.sealing)
        if segment.number == 5:
            life.area.wal.write_list()
    life.backup(FULL)
    life.area.wal.write_list()
    life.now += timedelta(days=3)
    life.backup(FULL)
    life.expire(ONE_DAY)
    life.now += timedelta(hours=25)
    assert len(life.names(life.area.layout.wal_lists)) == 2
    life.collect()
    # The second list names segments 6 to 11, of which the new backup needs the last.
    (kept,) = life.names(life.area.layout.wal_lists)
    assert Segment(1, 6).name in kept


def test_a_marked_set_that_is_held_keeps_the_wal_that_makes_it_consistent(life: Life) -> None:
    old = life.backup(FULL)
    for _ in range(3):
        life.now += timedelta(days=3)
        life.backup(FULL)
    assert old
    plan = life.expire(ONE_DAY)
    assert any(wal.first <= Segment(1, 10).name <= wal.last for wal in plan.wal)
    life.area.place_hold(old.label, reason="lawsuit", owner="ada", now=life.now)
    life.now += timedelta(hours=25)
    life.collect()
    assert life.area.wal.stored(Segment(1, 10).name)
    assert not life.area.wal.stored(Segment(1, 11).name)
    life.prove()


def test_wal_that_a_backup_leads_on_to_stays_when_its_manifest_came_back_after_the_mark(life: Life) -> None:
    """Marked while the backup was not listed; healed since, and again the first that the window is restored from."""
    first = life.backup(FULL)
    assert first
    between = [Segment(1, number) for number in range(life.segment, life.segment + 3)]
    for segment in between:
        life.area.wal.put_segment(segment.name, b"w", life.sealing)
    life.segment += 3
    life.now += timedelta(hours=2)
    life.backup(FULL)
    everything = life.names()
    layout = life.area.layout
    held_back = {name: b"".join(life.storage.get(name)) for name in life.names(layout.backup(first.label))}
    for name in held_back:
        life.storage.delete(name)
    plan = life.expire(RetentionPolicy.of_days(7))
    assert [(wal.first, wal.last) for wal in plan.wal] == [(Segment(1, 10).name, between[-1].name)]
    life.now += timedelta(hours=3)
    for name, data in held_back.items():
        life.storage.put(name, [data])
    life.now += timedelta(hours=25)
    retention.collect(
        life.repository, "shop", policy=RetentionPolicy.of_days(7), actor="ada", now=life.now, observe=silent()
    )
    assert everything <= life.names()


def test_one_mark_that_cannot_be_read_does_not_keep_the_rest(life: Life) -> None:
    for _ in range(3):
        life.backup(FULL)
        life.now += timedelta(days=3)
    life.backup(FULL)
    life.expire(ONE_DAY)
    damaged = life.area.layout.expiry(life.heads[0].label)
    life.storage.delete(damaged)
    life.storage.put(damaged, [b"what is this"])
    life.now += timedelta(hours=25)
    done = life.collect()
    assert "cannot be read" in done.left[damaged]
    assert str(life.heads[1].label) in done.sets
    assert life.heads[0].label in life.area.labels(with_expired=True)


def test_wal_that_was_let_go_is_no_gap_and_wal_that_was_lost_is(life: Life) -> None:
    kept = replace(ONE_DAY, monthly_years=1)
    life.backup(FULL)
    for _ in range(3):
        life.now += timedelta(days=32)
        life.backup(FULL)
    life.backup(FULL)
    life.segment += 1
    last = life.backup(FULL)
    assert last
    at = life.now
    life.clean(kept)
    heads, _ = life.area.readable_heads()
    assert [head.label for head in heads] == [head.label for head in life.heads]
    found = windows(life.area.wal, heads)
    assert [window.gap is not None for window in found] == [True] * 5 + [False]
    told = [window.gap for window in retention.promised(found, heads, kept.window, at)]
    lost = Segment(1, life.segment - 2)
    # The third begins the window of a day; from there on, WAL must have no gap.
    assert told == [None, None, lost, lost, lost, None]


class TestHeads:
    def damage(self, life: Life, name: str) -> None:
        data = b"".join(life.storage.get(name))
        life.storage.delete(name)
        life.storage.put(name, [data[:40] + bytes([data[40] ^ 1]) + data[41:]])

    def test_one_damaged_head_keeps_its_set_and_lets_retention_go_on(self, life: Life) -> None:
        for _ in range(3):
            life.backup(FULL)
            life.now += timedelta(days=3)
        life.backup(FULL)
        first = life.heads[0].label
        self.damage(life, life.area.layout.head(first))
        plan = life.expire(ONE_DAY)
        assert first in {d.label for d in plan.keep if "its head cannot be read" in d.reasons[0]}
        life.now += timedelta(hours=25)
        done = life.collect()
        assert str(life.heads[1].label) in done.sets
        assert first in life.area.labels()
        assert life.area.wal.stored(Segment(1, 10).name), "its WAL is unknown, so all of it stays"

    def test_a_set_without_its_manifest_is_told_and_not_taken_for_garbage(self, life: Life) -> None:
        lost = life.backup(FULL)
        life.now += timedelta(days=1)
        life.backup(FULL)
        assert lost
        life.storage.delete(life.area.layout.manifest(lost.label))
        with pytest.raises(BackupMissing, match="manifest is missing, while its copy is there"):
            life.area.head(lost.label)
        assert [head.label for head in life.area.unfinished()] == [lost.label]
        life.now += timedelta(hours=25)
        before = life.names(life.area.layout.backup(lost.label))
        assert "its manifest is missing" in life.collect().left[str(lost.label)]
        assert life.names(life.area.layout.backup(lost.label)) == before
        life.storage.put(
            life.area.layout.manifest(lost.label), life.storage.get(life.area.layout.manifest_copy(lost.label))
        )
        assert lost.label in life.area.labels(), "who puts the copy in its place has the backup again"
        life.storage.delete(life.area.layout.manifest(lost.label))
        life.now += timedelta(days=9)
        life.backup(FULL)
        life.clean(RetentionPolicy.of_days(7))
        assert not life.names(life.area.layout.backup(lost.label)), "after the window it goes, marked and audited"


def test_areas_are_read_afresh(life: Life) -> None:
    head = life.backup(FULL)
    assert head
    with pytest.raises(ObjectExists):
        documents.put(life.storage, life.area.layout.head(head.label), {})
    assert SourceArea(life.storage, "shop").labels() == (head.label,)
    with pytest.raises(ObjectMissing):
        life.storage.stat(life.area.layout.expiry(head.label))


def test_a_set_that_was_just_marked_still_finds_what_it_needs_when_it_is_taken_back(life: Life) -> None:
    base, small = life.backup(FULL), life.backup(INCREMENTAL)
    assert base and small
    hold = life.area.place_hold(small.label, reason="keep", owner="ada", now=life.now)
    for _ in range(2):
        life.now += timedelta(days=3)
        life.backup(FULL)
    life.expire(ONE_DAY)
    life.now += timedelta(hours=25)
    life.area.release_hold(hold.id, owner="ada", now=life.now)
    life.expire(ONE_DAY)
    life.collect()
    assert base.label not in life.area.labels(with_expired=True)
    retention.unexpire(life.repository, "shop", small.label, actor="ada", now=life.now)
    assert small.label in life.area.labels()
    life.prove()


class TestCopies:
    """The same source in another location, with rules of its own."""

    @pytest.fixture
    def there(self, life: Life) -> MemoryStorage:
        return MemoryStorage("offsite", clock=lambda: life.now)

    def mirror(self, life: Life, there: MemoryStorage, useless: Unwanted | None = None) -> list[str]:
        """Bring everything there; the names that were brought."""
        useless = useless or Unwanted()
        evidence = Evidence([life.storage], None)
        if not there.children(""):
            mirror.begin(life.repository, there)
        chosen = mirror.survey(
            life.repository, "shop", there, evidence, unwanted=useless.sets, unwanted_wal=useless.segments
        )
        mirror.run(chosen, life.storage, there, evidence, observe=silent())
        return [name for group in chosen.groups for name in group.names if name.startswith("sources/shop/backups/")]

    def clean(self, life: Life, there: MemoryStorage, policy: RetentionPolicy) -> retention.Collected:
        copy, audit = Repository.open(there), AuditLog(life.storage)
        for wait in (timedelta(0), timedelta(hours=25)):
            life.now += wait
            plan = retention.plan_for(copy.source("shop"), policy, now=life.now, at_rest=True)
            if not wait:
                retention.expire(copy, plan, actor="ada", now=life.now, audit=audit)
        return retention.collect(
            copy, "shop", actor="ada", now=life.now, observe=silent(), audit=audit, origin=life.area
        )

    def test_a_location_keeps_less_and_is_not_brought_again_what_it_let_go(
        self, life: Life, there: MemoryStorage
    ) -> None:
        for _ in range(6):
            life.backup(FULL)
            life.now += timedelta(days=2)
        self.mirror(life, there)
        copy = SourceArea(there, "shop")
        assert copy.labels() == life.area.labels()
        self.clean(life, there, ONE_DAY)
        assert len(copy.labels()) == 1
        assert len(life.area.labels()) == 6
        assert not list(there.list("audit/")), "it is recorded where the primary is"
        assert {record.details["location"] for record in AuditLog(life.storage).records()} == {there.url}
        useless = retention.unwanted(life.area, ONE_DAY, now=life.now)
        assert self.mirror(life, there, useless) == []
        assert self.mirror(life, there) != [], "without knowing the rules there, it would come again"
        life.prove()

    def test_nobody_waits_for_a_copy_that_the_locations_own_rules_let_go(self, life: Life) -> None:
        old, new = life.backup(FULL), life.backup(FULL)
        assert old and new
        policy = mirror.MirrorPolicy(("offsite",), copies=2, within=timedelta(hours=1))
        held = {"primary": frozenset({old.label, new.label}), "offsite": frozenset[BackupLabel]()}
        unwanted = {"offsite": frozenset({old.label})}
        at = life.now + timedelta(days=1)
        first, second = mirror.protection(policy, [old, new], held, now=at, unwanted=unwanted)
        assert (first.protected, first.late) == (True, ())
        assert (second.protected, second.late) == (False, ("offsite",))

    def test_what_a_mirror_is_bringing_is_no_garbage_there(self, life: Life, there: MemoryStorage) -> None:
        base, small = life.backup(FULL), life.backup(INCREMENTAL)
        assert base and small
        self.mirror(life, there)
        copy = SourceArea(there, "shop")
        # As if only the bundles had come so far, and those of the first set for the second one alone.
        for label in (base.label, small.label):
            for name in (copy.layout.manifest, copy.layout.manifest_copy, copy.layout.head, copy.layout.objects):
                there.delete(name(label))
        coming = {stat.name for stat in there.list("sources/")}
        life.now += timedelta(hours=30)
        copy_of_shop = Repository.open(there)
        done = retention.collect(copy_of_shop, "shop", actor="ada", now=life.now, observe=silent(), origin=life.area)
        assert {stat.name for stat in there.list("sources/")} == coming
        assert done.left[str(small.label)] == "its copy is not whole yet"
        assert self.mirror(life, there)
        assert copy.labels() == life.area.labels()
        for label in copy.labels():
            assert copy.needed_objects(label) <= {stat.name for stat in there.list("sources/")}
