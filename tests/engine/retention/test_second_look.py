"""Between mark and removal lies a day, in which what was right may become wrong; and either may be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from seawall import retention
from seawall.audit import AuditLog
from seawall.errors import RetentionRefused, StorageUnreachable
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import Head
from seawall.repository import Repository, SourceArea
from seawall.retention import RetentionPolicy
from seawall.storage.faulty import Faulty, Killed, KillPoint
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment
from tests.engine.retention import test_two_steps
from tests.engine.retention.test_two_steps import FULL, INCREMENTAL, ONE_DAY, Life, three

MakeHead = Callable[..., Head]
MONTH = RetentionPolicy.of_days(30)


@pytest.fixture
def life(make_head: MakeHead, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(make_head, KeyRing(tmp_path_factory.mktemp("no-keys")))


def collected(life: Life, policy: RetentionPolicy | None = None) -> retention.Collected:
    return retention.collect(life.repository, "shop", actor="ada", now=life.now, observe=silent(), policy=policy)


class TestWhatWasToStandInstead:
    @pytest.mark.parametrize("policy", [None, ONE_DAY])
    def test_the_last_good_full_backup_is_not_removed_when_those_after_it_were_lost(
        self, life: Life, policy: RetentionPolicy | None
    ) -> None:
        marked = three(life)
        life.expire(ONE_DAY)
        for head in life.heads[1:]:
            for name in life.names(life.area.layout.backup(head.label)):
                life.storage.delete(name)
        life.now += timedelta(hours=25)
        done = collected(life, policy)
        assert done.sets == ()
        assert "it stays after all" in done.left[str(marked.label)]
        life.prove()
        retention.unexpire(life.repository, "shop", marked.label, actor="ada", now=life.now)
        assert life.area.labels() == (marked.label,)


class TestAPolicyThatWasMended:
    def test_what_the_policy_keeps_now_is_not_removed_although_an_earlier_one_marked_it(self, life: Life) -> None:
        marked = three(life)
        life.expire(ONE_DAY)
        life.now += timedelta(hours=25)
        done = collected(life, MONTH)
        assert done.sets == ()
        life.prove()
        assert "full, within 30 days" in done.left[str(marked.label)]
        assert str(marked.label) in collected(life, ONE_DAY).sets, "whoever means it says it again"

    def test_wal_of_the_window_is_not_removed_although_a_shorter_window_marked_it(self, life: Life) -> None:
        between = []
        for _ in range(4):
            life.backup(FULL)
            # Between two backups lies WAL that only the window needs.
            between.append(Segment(1, life.segment).name)
            life.area.wal.put_segment(between[-1], b"w", life.sealing)
            life.segment += 1
            life.now += timedelta(days=3)
        life.backup(FULL)
        keeps_sets = replace(ONE_DAY, daily=timedelta(days=30))
        plan = life.expire(keeps_sets)
        assert not plan.expire
        assert {wal.first for wal in plan.wal} == set(between[:-1])
        life.now += timedelta(hours=25)
        done = collected(life, MONTH)
        assert done.objects == 0
        assert any("the policy needs that WAL now" in why for why in done.left.values())
        assert all(life.area.wal.stored(name) for name in between)
        collected(life, keeps_sets)
        assert [life.area.wal.stored(name) for name in between] == [False, False, False, True]
        assert not life.names(life.area.layout.expired)


class TestHoldsOfThePrimary:
    def test_a_hold_keeps_the_copies_elsewhere_before_any_mirror_brought_it_there(self, life: Life) -> None:
        there = MemoryStorage("offsite", clock=lambda: life.now)
        for _ in range(2):
            life.backup(FULL)
            life.now += timedelta(days=2)
        held = life.backup(INCREMENTAL)
        assert held
        for _ in range(3):
            life.now += timedelta(days=2)
            life.backup(FULL)
        test_two_steps.TestCopies().mirror(life, there)
        life.area.place_hold(held.label, reason="lawsuit", owner="ada", now=life.now)
        copy = SourceArea(there, "shop")
        plan = retention.plan_for(copy, ONE_DAY, now=life.now, origin=life.area)
        assert "held by ada: lawsuit" in {why for d in plan.keep if d.label == held.label for why in d.reasons}
        blind = retention.plan_for(copy, ONE_DAY, now=life.now)
        with pytest.raises(RetentionRefused, match="lawsuit"):
            retention.expire(Repository.open(there), blind, actor="ada", now=life.now, origin=life.area)

    def test_a_hold_of_the_primary_that_came_after_the_mark_keeps_the_copy_with_its_chain_and_wal(
        self, life: Life
    ) -> None:
        there = MemoryStorage("offsite", clock=lambda: life.now)
        base, held = life.backup(FULL), life.backup(INCREMENTAL)
        assert base and held
        for _ in range(3):
            life.now += timedelta(days=3)
            life.backup(FULL)
        test_two_steps.TestCopies().mirror(life, there)
        copy, audit = Repository.open(there), AuditLog(life.storage)
        plan = retention.plan_for(copy.source("shop"), ONE_DAY, now=life.now, origin=life.area)
        assert {base.label, held.label} <= {decision.label for decision in plan.expire}
        retention.expire(copy, plan, actor="ada", now=life.now, audit=audit, origin=life.area)
        life.area.place_hold(held.label, reason="lawsuit", owner="ada", now=life.now)
        life.now += timedelta(hours=25)
        done = retention.collect(
            copy, "shop", actor="ada", now=life.now, observe=silent(), audit=audit, origin=life.area, policy=ONE_DAY
        )
        assert done.left[str(held.label)] == "a hold was placed on it"
        area = copy.source("shop")
        assert area.needed_objects(held.label) <= {stat.name for stat in there.list("sources/")}
        for head in (base, held):
            assert area.keychain.generations(str(head.label)), "what its bundles are opened with"
        assert area.wal.stored(Segment.containing(held.start_lsn, 1).name)


class TestInterruptions:
    def ready(self, life: Life) -> None:
        """A repository of which a set, its WAL, an attempt and a key are to go."""
        life.backup(FULL, commit=False)
        three(life)
        life.backup(INCREMENTAL)

    @pytest.mark.slow
    @pytest.mark.parametrize("step", ["expire", "collect"])
    def test_wherever_a_cleanup_is_killed_what_is_needed_is_whole_and_the_next_one_finishes(
        self, make_head: MakeHead, life: Life, step: str
    ) -> None:
        def act(one: Life, repository: Repository) -> object:
            if step == "collect":
                return retention.collect(repository, "shop", actor="ada", now=one.now, observe=silent(), policy=ONE_DAY)
            plan = retention.plan_for(repository.source("shop"), ONE_DAY, now=one.now, at_rest=True)
            return retention.expire(repository, plan, actor="ada", now=one.now)

        def begun() -> Life:
            one = Life(make_head, life.ring)
            self.ready(one)
            if step == "collect":
                one.expire(ONE_DAY)
                one.now += timedelta(hours=25)
            return one

        counting, whole = KillPoint(1 << 30), begun()
        act(whole, Repository.open(Faulty(whole.storage, at=counting)))
        boundaries = len(counting.passed)
        assert boundaries > 20
        for number in range(1, boundaries + 1, 3):
            one = begun()
            listed = one.area.labels()
            with pytest.raises(Killed):
                act(one, Repository.open(Faulty(one.storage, at=KillPoint(number))))
            one.prove()
            assert set(one.area.labels()) <= set(listed)
            assert one.heads[-1].label in one.area.labels()
            # The lease of the one that was killed ends by itself.
            one.now += timedelta(minutes=30)
            one.clean(ONE_DAY)
            one.prove()
            one.prove_gone()
            assert one.heads[0].label not in one.area.labels(with_expired=True), f"killed at boundary {number}"
            AuditLog(one.storage).verify()

    def test_the_audit_tells_what_will_go_before_and_what_went_after_and_an_interruption_lacks_the_second(
        self, life: Life
    ) -> None:
        self.ready(life)
        life.expire(ONE_DAY)
        life.now += timedelta(hours=25)

        def told() -> list[str]:
            return [record.action for record in AuditLog(life.storage).records()]

        class Failing(Faulty):
            def delete(self, name: str) -> None:
                if "/bundles/" in name:
                    raise StorageUnreachable("gone")
                super().delete(name)

        with pytest.raises(StorageUnreachable):
            retention.collect(
                Repository.open(Failing(life.storage)), "shop", actor="ada", now=life.now, observe=silent(),
                policy=ONE_DAY,
            )  # fmt: skip
        assert "collect" in told()
        assert "collected" not in told()
        done = collected(life, ONE_DAY)
        last = list(AuditLog(life.storage).records())[-1]
        assert (last.action, last.details["objects"]) == ("collected", str(done.objects))
        assert last.details["freed_bytes"] == str(done.freed_bytes)
        collected(life, ONE_DAY)
        assert told().count("collected") == 1, "a cleanup that removes nothing says nothing"


class TestWhatWasReadBack:
    WRONG = "bundles/1: its SHA-256 differs"

    def test_a_backup_that_was_found_damaged_does_not_stand_for_its_slot_or_for_the_last_good_one(
        self, life: Life
    ) -> None:
        old = life.backup(FULL)
        life.now += timedelta(days=3)
        good = life.backup(FULL)
        life.now += timedelta(hours=5)
        bad = life.backup(FULL)
        life.now += timedelta(days=2)
        assert old and good and bad
        rules = RetentionPolicy(timedelta(days=1), daily=timedelta(days=10))
        kept = retention.plan_for(life.area, rules, now=life.now, at_rest=True)
        assert good.label in {decision.label for decision in kept.expire}, "as long as the later one is sound"
        plan = retention.plan_for(life.area, rules, now=life.now, at_rest=True, unsound={bad.label: self.WRONG})
        reasons = {decision.label: decision.reasons for decision in plan.keep}
        assert "one of the last good full backups" in reasons[good.label]
        assert any(why.startswith("daily") for why in reasons[good.label])
        assert f"it counts as no good one: {self.WRONG}" in reasons[bad.label], "the newest of all stays too"
        assert retention.expire(life.repository, plan, actor="ada", now=life.now) >= 0

    def test_what_was_marked_stays_when_what_stands_instead_is_found_damaged_within_the_day(self, life: Life) -> None:
        marked = three(life)
        life.expire(ONE_DAY)
        life.now += timedelta(hours=25)
        unsound = {head.label: self.WRONG for head in life.heads[1:]}
        done = retention.collect(
            life.repository, "shop", actor="ada", now=life.now, observe=silent(), policy=ONE_DAY, unsound=unsound
        )
        assert "one of the last good full backups" in done.left[str(marked.label)]
        assert marked.label in life.area.labels(with_expired=True)
        assert str(marked.label) in collected(life, ONE_DAY).sets
