"""Locks on copies: as long as the location's retention keeps them, longer for what later backups use, never shorter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall import locks, mirror, retention
from seawall.audit import AuditLog
from seawall.errors import ClockWentBackwards, StorageDenied
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.locks import LockReport
from seawall.model import BackupKind, Head
from seawall.repository import Repository, SourceArea, documents
from seawall.repository.evidence import Evidence
from seawall.retention import RetentionPolicy
from seawall.retention.keeping import kept_until
from seawall.retention.unneeded import own_wal
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment
from tests.engine.retention.test_rules import NOW, histories, policies
from tests.engine.retention.test_two_steps import FULL, INCREMENTAL, Life

MakeHead = Callable[..., Head]
POLICY = RetentionPolicy(
    timedelta(days=3), {BackupKind.FULL: timedelta(days=40), BackupKind.INCREMENTAL: timedelta(days=50)}
)


@pytest.fixture
def life(make_head: MakeHead, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(make_head, KeyRing(tmp_path_factory.mktemp("no-keys")))


class Copy:
    """A mirror of a life's repository, in a location that locks."""

    def __init__(self, life: Life, storage: MemoryStorage | None = None) -> None:
        self.life = life
        self.storage = storage or MemoryStorage(clock=lambda: life.now)
        mirror.begin(life.repository, self.storage)

    @property
    def area(self) -> SourceArea:
        return SourceArea(self.storage, "shop")

    def bring(self, policy: RetentionPolicy = POLICY) -> LockReport:
        life = self.life
        evidence = Evidence([life.storage])
        heads, _ = life.area.readable_heads()
        locker = locks.locker_for(self.storage, "shop", heads, policy, evidence, now=life.now, observe=silent())
        assert locker is not None
        plan = mirror.survey(life.repository, "shop", self.storage, evidence)
        early = locker.catch_up(workers=1)
        mirror.run(plan, life.storage, self.storage, evidence, observe=silent(), workers=1, copied=locker.copied)
        locked = locker.secure(workers=1)
        return replace(locked, problem=locked.problem or early.problem)

    def until(self, name: str) -> datetime | None:
        return self.storage.retention(name).until

    def held(self) -> set[str]:
        return {stat.name for stat in self.storage.list() if self.storage.retention(stat.name).hold}


def needs(area: SourceArea, head: Head) -> set[str]:
    return set(area.needed_objects(head.label))


def test_what_a_mirror_brings_is_locked_for_as_long_as_the_locations_retention_keeps_it(life: Life) -> None:
    head = life.backup(FULL)
    copy = Copy(life)
    report = copy.bring()
    assert (report.secured, report.problem) == ((str(head.label),), "")
    layout = copy.area.layout
    for name in (*needs(copy.area, head), layout.manifest(head.label), layout.head(head.label),
                 layout.key(str(head.label), 1), layout.segment("00000001000000000000000A")):  # fmt: skip
        until = copy.until(name)
        assert until is not None and until >= head.stopped_at + timedelta(days=40), name
    # What a location must remove by itself is never locked.
    assert all(copy.until(stat.name) is None for stat in copy.storage.list(layout.leases))
    assert copy.bring().secured == ()


def test_objects_that_a_later_incremental_uses_get_a_later_date_and_never_an_earlier_one(life: Life) -> None:
    base = life.backup(FULL)
    copy = Copy(life)
    copy.bring()
    layout = copy.area.layout
    before = {name: copy.until(name) for name in needs(copy.area, base)}
    life.now += timedelta(days=15)
    small = life.backup(INCREMENTAL)
    assert copy.bring().secured == (str(small.label),)
    used = needs(copy.area, small) & before.keys()
    assert used
    assert before.keys() - used
    for name, was in before.items():
        until = copy.until(name)
        assert until is not None and was is not None
        # One bundle changed, so that the incremental does not use it: that stays as it was.
        assert until >= small.stopped_at + timedelta(days=50) if name in used else until == was
    assert copy.until(layout.key(str(base.label), 1)) == copy.until(layout.manifest(small.label))
    assert copy.until(layout.manifest(base.label)) == before[min(before)]
    # A policy that keeps less makes no lock shorter.
    copy.bring(RetentionPolicy.of_days(1))
    assert all(copy.until(name) >= small.stopped_at + timedelta(days=50) for name in used)  # type: ignore[operator]


def test_a_pass_that_was_stopped_before_the_manifest_is_made_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    head = life.backup(FULL)
    copy = Copy(life)
    retain, broken = MemoryStorage.retain, copy.area.layout.head(head.label)

    def failing(self: Any, name: str, until: datetime) -> None:
        if name == broken:
            raise StorageDenied("no right to lock")
        retain(self, name, until)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStorage, "retain", failing)
        report = copy.bring()
    assert report.problem == "no right to lock"
    assert copy.until(copy.area.layout.manifest(head.label)) is None
    # The copy counts all the same.
    assert copy.area.labels() == (head.label,)
    assert copy.bring().secured == (str(head.label),)


def test_wal_that_a_mirror_brought_without_being_able_to_lock_it_is_locked_by_a_later_run(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.backup(FULL)
    copy = Copy(life)
    copy.bring()
    early = [wal_at(life, number) for number in range(500, 540)]

    def failing(_self: Any, name: str, _until: datetime) -> None:
        raise StorageDenied(f"no right to lock {name}")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStorage, "retain", failing)
        assert copy.bring().problem
    life.now += timedelta(hours=1)
    late = [wal_at(life, number) for number in range(540, 580)]
    assert copy.bring().problem == ""
    assert all(copy.until(name) is not None for name in (*early, *late))


def test_a_locked_set_is_left_by_a_cleanup_and_told_and_goes_when_its_lock_has_ended(life: Life) -> None:
    old, copy = life.backup(FULL), Copy(life)
    copy.bring()
    for _ in range(2):
        life.now += timedelta(days=2)
        life.backup(FULL)
    copy.bring(RetentionPolicy.of_days(1))
    there = Repository.open(copy.storage)

    def clean() -> retention.Collected:
        plan = retention.plan_for(copy.area, RetentionPolicy.of_days(1), now=life.now, at_rest=True)
        retention.expire(there, plan, actor="ada", now=life.now)
        life.now += timedelta(hours=25)
        return retention.collect(there, "shop", actor="ada", now=life.now, observe=silent())

    done = clean()
    assert str(old.label) not in done.sets
    until = copy.until(copy.area.layout.manifest(old.label))
    assert until is not None
    assert done.left[str(old.label)] == f"is locked until {until:%Y-%m-%d %H:%M} UTC"
    assert needs(copy.area, old) <= {stat.name for stat in copy.storage.list()}
    # The mark is in the audit, and no deletion that was none.
    actions = {documents.get(copy.storage, stat.name)["action"] for stat in copy.storage.list("audit/")}
    assert "expire" in actions
    assert "collect" not in actions
    life.now = until + timedelta(hours=1)
    life.backup(FULL)
    copy.bring(RetentionPolicy.of_days(1))
    assert str(old.label) in clean().sets
    assert not list(copy.storage.list(copy.area.layout.backup(old.label)))


def test_locked_wal_is_told_in_one_line(life: Life) -> None:
    for number in (1, 2, 3):
        life.area.wal.put_segment(Segment(1, number).name, b"wal", life.sealing)
    life.backup(FULL)
    copy = Copy(life)
    copy.bring()
    there = Repository.open(copy.storage)
    plan = retention.plan_for(copy.area, RetentionPolicy.of_days(1), now=life.now, at_rest=True)
    assert plan.wal
    retention.expire(there, plan, actor="ada", now=life.now)
    life.now += timedelta(hours=25)
    done = retention.collect(there, "shop", actor="ada", now=life.now, observe=silent())
    (line,) = [why for name, why in done.left.items() if "wal-" in name]
    assert line.startswith("3 of its 3 objects stay; the last is locked until")


def test_a_hold_becomes_a_legal_hold_and_its_release_frees_what_no_other_hold_covers(life: Life) -> None:
    base, small = life.backup(FULL), life.backup(INCREMENTAL)
    copy = Copy(life)
    first = life.area.place_hold(base.label, reason="audit", owner="ada", now=life.now)
    second = life.area.place_hold(small.label, reason="court", owner="ada", now=life.now)
    assert set(copy.bring().held) == {str(base.label), str(small.label)}
    layout, everything = copy.area.layout, needs(copy.area, base) | needs(copy.area, small)
    assert everything | {layout.manifest(base.label), layout.manifest(small.label)} <= copy.held()
    assert copy.bring().held == ()

    life.area.release_hold(first.id, owner="ada", now=life.now)
    assert copy.bring().freed == (str(base.label),)
    assert needs(copy.area, small) <= copy.held()
    assert not (needs(copy.area, base) - needs(copy.area, small)) & copy.held()
    assert layout.manifest(base.label) not in copy.held()

    # What somebody else holds later is not Seawall's to free.
    copy.storage.hold(layout.manifest(base.label), True)
    assert copy.bring().freed == ()
    assert layout.manifest(base.label) in copy.held()

    life.area.release_hold(second.id, owner="ada", now=life.now)
    copy.bring()
    assert copy.held() == {layout.manifest(base.label)}


def test_nothing_is_locked_while_the_clocks_disagree(life: Life) -> None:
    life.backup(FULL)
    copy = Copy(life, MemoryStorage(clock=lambda: life.now - timedelta(days=400)))
    with pytest.raises(ClockWentBackwards, match="nothing is locked by guess"):
        copy.bring()
    assert all(copy.until(stat.name) is None for stat in copy.storage.list())


# ---- the primary


def locked_here(life: Life, policy: RetentionPolicy = POLICY, at_most: timedelta = timedelta(0)) -> LockReport:
    """What a pass over the primary does."""
    heads, _ = life.area.readable_heads()
    made = locks.locker_for(
        life.storage, "shop", heads, policy, Evidence([life.storage]), at_most=at_most, now=life.now, observe=silent()
    )
    assert made is not None
    return made.secure(workers=2, arrivals=True)


def until_of(life: Life, name: str) -> datetime | None:
    return life.storage.retention(name).until


def is_locked(life: Life, name: str, by: timedelta) -> bool:
    until = until_of(life, name)
    return until is not None and until >= life.now + by


def wal_at(life: Life, number: int) -> str:
    """A segment that comes now; its name."""
    name = Segment(1, number).name
    life.area.wal.put_segment(name, b"wal", life.sealing)
    return life.area.layout.segment(name)


def test_a_backup_in_the_primary_is_locked_with_all_that_it_needs_and_what_only_seawall_may_remove_is_not(
    life: Life,
) -> None:
    head = life.backup(FULL)
    tail = life.area.layout.tail(Segment(1, 900), 900 << 24 | 100)
    life.storage.put(tail, [b"tail"])
    report = locked_here(life)
    assert (report.secured, report.problem) == ((str(head.label),), "")
    layout = life.area.layout
    own = (
        *needs(life.area, head),
        layout.manifest(head.label),
        layout.head(head.label),
        layout.key(str(head.label), 1),
    )
    common = ("seawall.json", "seawall-copy.json", *(stat.name for stat in life.storage.list(layout.identities)))
    for name in (*own, *common):
        assert is_locked(life, name, timedelta(days=40)), name
    assert until_of(life, tail) is None
    assert all(until_of(life, stat.name) is None for stat in life.storage.list(layout.leases))
    assert locked_here(life).secured == ()


def test_objects_in_the_primary_that_a_later_incremental_uses_are_locked_for_longer(life: Life) -> None:
    base = life.backup(FULL)
    locked_here(life)
    before = {name: until_of(life, name) for name in needs(life.area, base)}
    life.now += timedelta(days=15)
    small = life.backup(INCREMENTAL)
    locked_here(life)
    used = needs(life.area, small) & before.keys()
    assert used
    assert all(is_locked(life, name, timedelta(days=50)) for name in used)
    assert all(until_of(life, name) == before[name] for name in before.keys() - used)


def test_a_locked_primary_lets_a_backup_go_when_its_lock_has_ended_and_says_so_until_then(life: Life) -> None:
    old = life.backup(FULL)
    locked_here(life)
    for _ in range(2):
        life.now += timedelta(days=2)
        life.backup(FULL)
    week = RetentionPolicy.of_days(1)

    def clean() -> retention.Collected:
        retention.expire(life.repository, retention.plan_for(life.area, week, now=life.now, at_rest=True),
                         actor="ada", now=life.now)  # fmt: skip
        life.now += timedelta(hours=25)
        return retention.collect(life.repository, "shop", actor="ada", now=life.now, observe=silent())

    until = until_of(life, life.area.layout.manifest(old.label))
    assert until is not None
    assert clean().left[str(old.label)] == f"is locked until {until:%Y-%m-%d %H:%M} UTC"
    life.now = until + timedelta(hours=1)
    life.backup(FULL)
    locked_here(life, week)
    assert str(old.label) in clean().sets


def test_wal_and_audit_that_came_since_the_last_pass_are_locked_from_when_they_came(life: Life) -> None:
    life.backup(FULL)
    early = wal_at(life, 500)
    AuditLog(life.storage).append("ada", "look", "shop", {}, now=life.now)
    life.now += timedelta(days=1)
    late = wal_at(life, 501)
    locked_here(life)
    # The window of three days and one more, rounded up, from when each came.
    assert is_locked(life, late, timedelta(days=4))
    assert is_locked(life, early, timedelta(days=3))
    assert not is_locked(life, early, timedelta(days=4))
    assert all(until_of(life, stat.name) is not None for stat in life.storage.list("audit/"))


def test_wal_that_is_older_than_the_window_when_locking_begins_is_left_to_the_cleanup(life: Life) -> None:
    old = wal_at(life, 500)
    life.now += timedelta(days=9)
    life.backup(FULL)
    locked_here(life)
    assert until_of(life, old) is None


@given(st.lists(st.integers(0, 90), max_size=6), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_whenever_passes_over_wal_are_cut_short_the_next_whole_one_leaves_none_unlocked(
    make_head: MakeHead, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], apart: int
) -> None:
    life = Life(make_head, KeyRing(tmp_path_factory.getbasetemp() / "no-keys"))
    life.backup(FULL)
    storage, retain = life.storage, life.storage.retain
    number = 500
    for cut in cuts:
        for _ in range(40):
            # Many at once have the same time.
            life.now += timedelta(seconds=number % apart)
            number += 1
            wal_at(life, number)
        left = [cut]

        def failing(name: str, until: datetime, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise StorageDenied("cut")
            retain(name, until)

        storage.retain = failing  # type: ignore[method-assign]
        locked_here(life)
    storage.retain = retain  # type: ignore[method-assign]
    assert locked_here(life).problem == ""
    names = [stat.name for stat in storage.list(life.area.layout.wal)]
    assert all(until_of(life, name) is not None for name in names)


def test_a_pass_over_wal_that_is_locked_asks_for_a_few_objects_only(life: Life) -> None:
    life.backup(FULL)
    for number in range(500, 800):
        wal_at(life, number)
    locked_here(life)
    asked = []
    retention_of = life.storage.retention
    life.storage.retention = lambda name: (asked.append(name), retention_of(name))[1]  # type: ignore[method-assign]
    locked_here(life)
    assert 0 < len([name for name in asked if "/wal/" in name]) <= 40


def test_an_old_wrap_of_a_key_that_is_locked_outlives_a_rotation_and_the_new_one_is_locked_too(life: Life) -> None:
    head = life.backup(FULL)
    locked_here(life)
    layout, chain = life.area.layout, life.area.keychain
    first, second = (layout.key(str(head.label), number) for number in (1, 2))
    documents.put(life.storage, second, {"id": str(head.label), "recipients": ["ada"]})
    assert chain.retire(str(head.label), ["ada"]) == 0
    assert {first, second} == set(chain.generations(str(head.label)))
    locked_here(life)
    assert is_locked(life, second, timedelta(days=40))


def test_a_pass_locks_what_lies_beside_a_locked_object_as_long_as_that(life: Life) -> None:
    head = life.backup(FULL)
    locked_here(life)
    name = min(needs(life.area, head))
    life.storage.put(f"repairs/{name}", [b"sound"])
    locked_here(life)
    assert until_of(life, f"repairs/{name}") == until_of(life, name)


def test_what_healing_put_in_place_is_locked_at_once_as_long_as_the_sets_that_need_it(life: Life) -> None:
    base = life.backup(FULL)
    life.now += timedelta(days=15)
    small = life.backup(INCREMENTAL)
    locked_here(life)
    life.area.place_hold(small.label, reason="court", owner="ada", now=life.now)
    locked_here(life)
    layout = life.area.layout
    used = min(needs(life.area, base) & needs(life.area, small))
    was = until_of(life, used)
    storage = life.storage
    # Gone by other means, and brought back; another one is damaged and keeps its lock.
    data = b"".join(storage.get(used))
    storage.hold(used, False)
    storage._retained.pop(used)
    storage.delete(used)
    storage.put(used, [data])
    beside = layout.head(base.label)
    storage.put(f"repairs/{beside}", [b"sound"])
    heads, _ = life.area.readable_heads()
    made = locks.locker_for(storage, "shop", heads, POLICY, Evidence([storage]), now=life.now, observe=silent())
    assert made is not None
    assert made.renew({used: used, beside: f"repairs/{beside}"}).problem == ""
    assert until_of(life, used) == was
    assert storage.retention(used).hold, "the hold on the incremental covers it"
    assert until_of(life, f"repairs/{beside}") == until_of(life, beside)


def test_a_lock_that_failed_after_healing_in_place_is_set_by_the_next_pass(life: Life) -> None:
    base = life.backup(FULL)
    life.now += timedelta(days=15)
    small = life.backup(INCREMENTAL)
    locked_here(life)
    layout = life.area.layout
    shared = min(needs(life.area, base) & needs(life.area, small))
    wal, key = layout.segment(next(own_wal(base))), layout.key(str(base.label), 1)
    was = {name: until_of(life, name) for name in (shared, wal, key)}
    life.now += timedelta(hours=1)
    for name in was:
        put_back(life, name)
    locked_here(life)
    assert {name: until_of(life, name) for name in was} == was


def put_back(life: Life, name: str) -> None:
    """Take an object away by other means, and bring it back without its lock."""
    data = b"".join(life.storage.get(name))
    life.storage._retained.pop(name)
    life.storage.delete(name)
    life.storage.put(name, [data])


def test_a_held_set_that_is_put_back_without_its_legal_hold_gets_it_again(life: Life) -> None:
    head = life.backup(FULL)
    locked_here(life)
    life.area.place_hold(head.label, reason="court", owner="ada", now=life.now)
    locked_here(life)
    life.now += timedelta(hours=1)
    name = min(needs(life.area, head))
    put_back(life, name)
    locked_here(life)
    assert life.storage.retention(name).hold


def test_nothing_is_freed_of_a_legal_hold_while_another_held_set_cannot_be_read(life: Life) -> None:
    base, small = life.backup(FULL), life.backup(INCREMENTAL)
    locked_here(life)
    first = life.area.place_hold(base.label, reason="audit", owner="ada", now=life.now)
    life.area.place_hold(small.label, reason="court", owner="ada", now=life.now)
    locked_here(life)
    life.area.release_hold(first.id, owner="ada", now=life.now)
    head = life.area.layout.head(small.label)
    sound = b"".join(life.storage.get(head))
    for content, freed in ((b"nonsense", ()), (sound, (str(base.label),))):
        life.storage._retained.pop(head, None)
        life.storage.delete(head)
        life.storage.put(head, [content])
        report = locked_here(life)
        assert report.freed == freed
        assert bool(report.problem) is not bool(freed)
        assert all(life.storage.retention(name).hold for name in needs(life.area, small))


def test_locks_reach_no_farther_ahead_than_is_admitted_and_are_moved_on(life: Life) -> None:
    head = life.backup(FULL)
    manifest, dates = life.area.layout.manifest(head.label), set[datetime | None]()
    for _ in range(30):
        locked_here(life, at_most=timedelta(days=10))
        assert is_locked(life, manifest, timedelta(days=10))
        assert not is_locked(life, manifest, timedelta(days=17, seconds=1))
        dates.add(until_of(life, manifest))
        life.now += timedelta(days=1)
    assert len(dates) <= 6, "it is locked anew once a week, not every day"


# ---- the dates


@given(st.data(), policies())
@settings(max_examples=25, deadline=None)
def test_what_is_kept_is_locked_and_nothing_for_longer_than_it_is_kept(
    make_head: MakeHead, data: st.DataObject, policy: RetentionPolicy
) -> None:
    heads = data.draw(histories(make_head))
    dates = kept_until(heads, policy, now=NOW)
    kept = {one.label for one in retention.plan("shop", heads, (), policy, now=NOW, at_rest=True).keep}
    assert kept == dates.keys()
    assert all(until > NOW for until in dates.values())
    for label, until in dates.items():
        # All dates are rounded up to a day, and short ones end two weeks from now.
        last = until - timedelta(days=1, seconds=1)
        if last <= NOW + timedelta(days=14):
            continue
        later = retention.plan("shop", heads, (), policy, now=last, at_rest=True)
        assert label in {one.label for one in later.keep}, (label, until)


def test_a_backup_is_not_locked_for_years_as_long_as_a_later_one_may_stand_for_its_month(make_head: MakeHead) -> None:
    policy = RetentionPolicy(timedelta(days=7), monthly_years=7)
    head = make_head(datetime(2026, 11, 20, 2, tzinfo=UTC))
    during = kept_until([head], policy, now=datetime(2026, 11, 30, 23, tzinfo=UTC))
    assert during[head.label] <= datetime(2026, 12, 14, tzinfo=UTC)
    after = kept_until([head], policy, now=datetime(2026, 12, 1, 1, tzinfo=UTC))
    assert after[head.label] == datetime(2033, 11, 21, tzinfo=UTC)
