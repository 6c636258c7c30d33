"""The rules of retention against an oracle that knows nothing of how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import retention, settings
from seawall.errors import ClockWentBackwards, RetentionRefused, SettingsError, UsageError
from seawall.events import silent
from seawall.model import BackupKind, BackupLabel, Head, Health, Hold
from seawall.retention import Decision, RetentionPlan, RetentionPolicy, policy_for
from seawall.retention.copies import awaited_by
from seawall.retention.decide import refuse_unsafe
from seawall.retention.policy import months_before
from seawall.wal import Segment

MakeHead = Callable[..., Head]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
FULL, DIFFERENTIAL, INCREMENTAL = BackupKind.FULL, BackupKind.DIFFERENTIAL, BackupKind.INCREMENTAL
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Auckland")


def labels(decisions: tuple[Decision, ...]) -> set[BackupLabel]:
    return {decision.label for decision in decisions}


def policies() -> st.SearchStrategy[RetentionPolicy]:
    days = st.integers(1, 60).map(lambda n: timedelta(days=n))
    return st.builds(
        RetentionPolicy,
        window=days,
        kept_for=st.dictionaries(st.sampled_from(list(BackupKind)), days),
        daily=st.integers(0, 60).map(lambda n: timedelta(days=n)),
        weekly_months=st.integers(0, 18),
        monthly_years=st.integers(0, 8),
        keep_last=st.integers(0, 4),
        minimum_redundancy=st.integers(0, 3),
        time_zone=st.sampled_from(ZONES),
    )


@st.composite
def histories(draw: st.DrawFn, make_head: MakeHead) -> list[Head]:
    """Sets of all kinds at odd times over years, some degraded; many close together."""
    ages = draw(
        st.lists(
            st.integers(0, 60 * 24 * 60) | st.integers(0, 9 * 366 * 24 * 60),
            max_size=40,
            unique=True,
        )
    )
    heads: list[Head] = []
    for number, minutes in enumerate(sorted(ages, reverse=True)):
        kind = draw(st.sampled_from([FULL, INCREMENTAL, DIFFERENTIAL])) if heads else FULL
        health = draw(st.sampled_from([Health.GOOD, Health.GOOD, Health.DEGRADED]))
        prior = None if kind is FULL else heads[-1]
        stopped = NOW - timedelta(minutes=minutes)
        heads.append(make_head(stopped, kind=kind, prior=prior, health=health, segment=10 * number))
    return heads


def oracle(heads: list[Head], holds: list[Hold], policy: RetentionPolicy) -> set[BackupLabel]:
    """What must stay, found by walking the calendar slot by slot instead of grouping sets."""
    zone = ZoneInfo(policy.time_zone)
    stay = {hold.label for hold in holds}
    stay |= {h.label for h in heads if h.stopped_at >= NOW - policy.kept_for.get(h.kind, timedelta(days=-1))}

    def best(sets: list[Head]) -> Head | None:
        for choice in (
            [h for h in sets if h.health is Health.GOOD and h.kind is FULL],
            [h for h in sets if h.health is Health.GOOD],
            sets,
        ):
            if choice:
                return sorted(choice, key=lambda h: h.stopped_at)[-1]
        return None

    def between(first: date, end: date) -> list[Head]:
        return [h for h in heads if first <= h.stopped_at.astimezone(zone).date() < end]

    today = NOW.astimezone(zone).date()
    day = today
    while day > today - timedelta(days=10 * 366):
        chosen = best(between(day, day + timedelta(days=1)))
        if chosen and policy.daily and chosen.stopped_at >= NOW - policy.daily:
            stay.add(chosen.label)
        if day.weekday() == 0 and policy.weekly_months:
            chosen = best(between(day, day + timedelta(days=7)))
            if chosen and chosen.stopped_at >= months_before(NOW.astimezone(zone), policy.weekly_months):
                stay.add(chosen.label)
        if day.day == 1 and policy.monthly_years:
            after = date(day.year + day.month // 12, day.month % 12 + 1, 1)
            chosen = best(between(day, after))
            if chosen and chosen.stopped_at >= months_before(NOW.astimezone(zone), 12 * policy.monthly_years):
                stay.add(chosen.label)
        day -= timedelta(days=1)
    ordered = sorted(heads, key=lambda h: h.stopped_at)
    good = [h for h in ordered if h.health is Health.GOOD]
    early = [h for h in ordered if h.stopped_at < NOW - policy.window]
    fulls = [h for h in good if h.kind is FULL] or [h for h in ordered if h.kind is FULL]
    chosen_sets = [
        *(early[-1:] or ordered[:1]),
        *([h for h in good if h in early][-1:] or good[:1]),
        *good[-1:],
        *fulls[-max(1, policy.minimum_redundancy) :],
    ]
    if policy.keep_last:
        chosen_sets += ordered[-policy.keep_last :]
    return stay | {h.label for h in chosen_sets}


@given(st.data(), policies())
def test_exactly_what_the_rules_say_stays(make_head: MakeHead, data: st.DataObject, policy: RetentionPolicy) -> None:
    heads = data.draw(histories(make_head))
    held = data.draw(st.sets(st.sampled_from([h.label for h in heads]), max_size=3)) if heads else set()
    holds = [Hold(str(n), label, "why", "ada", NOW) for n, label in enumerate(held)]
    plan = retention.plan("shop", heads, holds, policy, now=NOW, at_rest=True)
    assert labels(plan.keep) == oracle(heads, holds, policy)
    assert labels(plan.expire) == {h.label for h in heads} - labels(plan.keep)
    assert all(decision.reasons for decision in (*plan.keep, *plan.expire))


@given(st.data(), policies())
def test_every_moment_of_the_window_keeps_a_backup_and_the_wal_from_there(
    make_head: MakeHead, data: st.DataObject, policy: RetentionPolicy
) -> None:
    heads = data.draw(histories(make_head))
    names = {Segment(1, number).name for number in range(10 * len(heads) + 2)}
    plan = retention.plan("shop", heads, (), policy, now=NOW, wal_names=names, at_rest=True)
    gone = {n for n in names for wal in plan.wal if wal.first <= n <= wal.last}
    kept = [h for h in heads if h.label in labels(plan.keep)]
    for head in kept:
        assert Segment.containing(head.start_lsn, 1).name not in gone
    for moment in (NOW - policy.window + timedelta(hours=h) for h in range(0, policy.window.days * 24, 7)):
        # As a restore chooses: the newest good one that ended before, else the newest.
        could = [h for h in heads if h.stopped_at < moment]
        if not could:
            continue
        early = [h for h in kept if h.stopped_at < moment]
        base = max([h for h in early if h.health is Health.GOOD] or early, key=lambda h: h.stopped_at)
        following = {n for n in names if n >= Segment.containing(base.start_lsn, 1).name}
        assert not following & gone, "replay from there to the moment would meet a gap"


@given(st.data(), policies(), st.integers(1, 400))
def test_what_was_let_go_is_not_asked_for_later(
    make_head: MakeHead, data: st.DataObject, policy: RetentionPolicy, days: int
) -> None:
    """Cleaning day by day loses nothing that cleaning once, at the end, would keep by a rule."""
    heads = [h for h in data.draw(histories(make_head)) if h.health is Health.GOOD]
    at = sorted({NOW - timedelta(days=n) for n in data.draw(st.lists(st.integers(1, days), max_size=8))})
    left = list(heads)
    for moment in at:
        seen = [h for h in left if h.stopped_at <= moment]
        gone = labels(retention.plan("shop", seen, (), policy, now=moment, at_rest=True).expire)
        left = [h for h in left if h.label not in gone]
    stepwise = labels(retention.plan("shop", left, (), policy, now=NOW, at_rest=True).keep)
    once = retention.plan("shop", heads, (), policy, now=NOW, at_rest=True)
    # The window can begin with an earlier set as well, if that which would be nearer was let go: WAL covers the rest.
    lasting = {d.label for d in once.keep if not all(why.startswith("the window of") for why in d.reasons)}
    assert lasting <= stepwise


def test_days_begin_where_the_site_is(make_head: MakeHead) -> None:
    # 23:30 and 00:30 of Berlin's 20 November are 22:30 of the 19th and 23:30 of the 19th in UTC.
    one = make_head(datetime(2026, 11, 18, 22, 30, tzinfo=UTC))
    two = make_head(datetime(2026, 11, 18, 23, 30, tzinfo=UTC))
    newest = make_head(NOW - timedelta(hours=1))
    policy = RetentionPolicy(timedelta(days=1), daily=timedelta(days=30))
    in_utc = retention.plan("shop", [one, two, newest], (), policy, now=NOW)
    in_berlin = retention.plan("shop", [one, two, newest], (), replace(policy, time_zone="Europe/Berlin"), now=NOW)
    assert labels(in_utc.expire) == {one.label}
    assert labels(in_berlin.expire) == set()


def test_a_slot_prefers_the_last_good_full_backup(make_head: MakeHead) -> None:
    full = make_head(datetime(2026, 10, 5, 2, tzinfo=UTC))
    later = make_head(datetime(2026, 10, 6, 2, tzinfo=UTC), kind=INCREMENTAL, prior=full)
    broken = make_head(datetime(2026, 10, 7, 2, tzinfo=UTC), health=Health.DEGRADED)
    after = make_head(datetime(2026, 10, 12, 2, tzinfo=UTC))
    newest = make_head(NOW - timedelta(hours=1))
    policy = RetentionPolicy(timedelta(days=1), weekly_months=3)
    plan = retention.plan("shop", [full, later, broken, after, newest], (), policy, now=NOW, at_rest=True)
    kept = {d.label: d.reasons for d in plan.keep}
    assert kept[full.label] == ("weekly: the last of 2026-W41",)
    gone = {d.label: d.reasons for d in plan.expire}
    for other in (later, broken):
        assert f"{full.label} stands for 2026-W41" in gone[other.label]


def test_incrementals_may_go_earlier_than_full_backups(make_head: MakeHead) -> None:
    fulls = [make_head(NOW - timedelta(days=n, hours=1)) for n in range(12, -1, -1)]
    small = [make_head(h.stopped_at + timedelta(minutes=30), kind=INCREMENTAL, prior=h) for h in fulls]
    policy = RetentionPolicy(timedelta(days=1), {FULL: timedelta(days=10), INCREMENTAL: timedelta(days=3)})
    plan = retention.plan("shop", [*fulls, *small], (), policy, now=NOW)
    kept = labels(plan.keep)
    assert {h.label for h in fulls} & kept == {h.label for h in fulls[-10:]}
    assert {h.label for h in small} & kept == {h.label for h in small[-3:]}


@pytest.mark.parametrize(
    "months, expected", [(1, (2026, 2, 28)), (12, (2025, 3, 31)), (13, (2025, 2, 28)), (3, (2025, 12, 31))]
)
def test_months_are_counted_by_the_calendar(months: int, expected: tuple[int, int, int]) -> None:
    found = months_before(datetime(2026, 3, 31, 5, tzinfo=UTC), months)
    assert (found.year, found.month, found.day, found.hour) == (*expected, 5)


class TestRefusals:
    def test_an_empty_policy(self) -> None:
        with pytest.raises(UsageError, match="empty"):
            RetentionPolicy(timedelta(0), {FULL: timedelta(0)})
        with pytest.raises(UsageError, match="negative"):
            RetentionPolicy(timedelta(days=3), daily=timedelta(days=-1))

    def test_a_clock_that_jumped_ahead_or_backups_that_stopped(self, make_head: MakeHead) -> None:
        heads = [make_head(NOW - timedelta(days=n)) for n in range(40, 0, -1)]
        policy = RetentionPolicy.of_days(30)
        assert retention.plan("shop", heads, (), policy, now=NOW).expire
        for later in (timedelta(days=20), timedelta(days=4000)):
            with pytest.raises(RetentionRefused, match="the clock jumped, or backups fail"):
                retention.plan("shop", heads, (), policy, now=NOW + later)
        assert retention.plan("shop", heads, (), policy, now=NOW + timedelta(days=20), at_rest=True).expire

    def test_a_clock_that_jumped_before_a_backup_was_taken(self, make_head: MakeHead) -> None:
        """Then the newest backup is new, and all others are of long ago."""
        heads = [make_head(NOW - timedelta(days=n)) for n in range(40, 0, -1)]
        policy = RetentionPolicy.of_days(30)
        for jump in (timedelta(days=20), timedelta(days=4000)):
            late = [*heads, make_head(NOW + jump)]
            for since in (timedelta(hours=2), timedelta(days=6)):
                with pytest.raises(RetentionRefused, match="nothing is let go for a week"):
                    retention.plan("shop", late, (), policy, now=NOW + jump + since)
            assert retention.plan("shop", late, (), policy, now=NOW + jump, at_rest=True).expire
            # An outage that is over: who resumes has a week to look at the clock.
            resumed = [*late, *(make_head(NOW + jump + timedelta(days=n)) for n in range(1, 8))]
            assert retention.plan("shop", resumed, (), policy, now=NOW + jump + timedelta(days=7, hours=1)).expire

    def test_a_clock_that_jumped_where_only_wal_would_go(self, make_head: MakeHead) -> None:
        heads = [make_head(NOW - timedelta(days=7 * n), segment=100 - 10 * n) for n in range(5, -1, -1)]
        names = [Segment(1, n).name for n in range(110)]
        policy = replace(RetentionPolicy.of_days(30), weekly_months=12, keep_last=6)
        for jump in (timedelta(days=60), timedelta(days=300)):
            with pytest.raises(RetentionRefused, match="the clock jumped"):
                retention.plan("shop", heads, (), policy, now=NOW + jump, wal_names=names)
        only = retention.plan("shop", heads[:1], (), policy, now=NOW, wal_names=names)
        assert [(wal.first, wal.count) for wal in only.wal] == [(names[0], 50)], "before the only backup is nothing"

    def test_a_clock_that_jumped_back(self, make_head: MakeHead) -> None:
        heads = [make_head(NOW - timedelta(days=n)) for n in range(40, 0, -1)]
        for back in (timedelta(days=2), timedelta(days=400)):
            with pytest.raises(ClockWentBackwards, match="should be now"):
                retention.plan("shop", heads, (), RetentionPolicy.of_days(30), now=NOW - back)

    @pytest.mark.parametrize("rhythm", [timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(days=31)])
    def test_no_rhythm_of_backups_is_taken_for_a_jump(self, make_head: MakeHead, rhythm: timedelta) -> None:
        heads: list[Head] = []
        policy = RetentionPolicy(timedelta(days=1))
        for number in range(20):
            heads.append(make_head(NOW + number * rhythm + timedelta(minutes=number % 7)))
            for part in (0.1, 0.99):
                retention.plan("shop", heads, (), policy, now=heads[-1].stopped_at + part * rhythm)

    @pytest.mark.parametrize(
        "rules", [{"monthly_years": 3000}, {"weekly_months": 10**9}, {"daily": timedelta(days=10**6)}]
    )
    def test_spans_that_dates_cannot_express(self, rules: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="hundred years"):
            RetentionPolicy(timedelta(days=1), **rules)

    @pytest.mark.parametrize("which", ["everything", "the last good full", "held", "window"])
    def test_a_plan_that_lets_go_what_must_stay(self, make_head: MakeHead, which: str) -> None:
        old, good, newest = (
            make_head(NOW - timedelta(days=90)),
            make_head(NOW - timedelta(days=40)),
            make_head(NOW - timedelta(days=1), health=Health.DEGRADED),
        )
        gone = {"everything": [old, good, newest], "the last good full": [good], "held": [old], "window": [good]}[which]
        hold = [Hold("h", old.label, "lawsuit", "ada", NOW)]
        heads = [old, good, newest] if which != "window" else [old, good, newest, make_head(NOW - timedelta(hours=1))]
        expire = tuple(Decision(head.label, ("by mistake",), 1) for head in gone)
        made = RetentionPlan("shop", NOW, (), expire, window=timedelta(days=30))
        said = {"everything": "every backup", "held": "lawsuit"}.get(which, which)
        with pytest.raises(RetentionRefused, match=said):
            refuse_unsafe(made, heads, hold)


def test_a_set_whose_head_cannot_be_read_stays_and_so_does_all_wal(make_head: MakeHead) -> None:
    heads = [make_head(NOW - timedelta(days=n), segment=100 - n) for n in (90, 60, 1)]
    lost = make_head(NOW - timedelta(days=80)).label
    names = [Segment(1, n).name for n in range(101)]
    policy = RetentionPolicy.of_days(7)
    sound = retention.plan("shop", heads, (), policy, now=NOW, wal_names=names, at_rest=True)
    assert sound.wal and labels(sound.expire) == {heads[0].label}
    plan = retention.plan(
        "shop", heads, (), policy, now=NOW, wal_names=names, unreadable={lost: "its hash is wrong"}, at_rest=True
    )
    assert plan.wal == ()
    assert labels(plan.expire) == {heads[0].label}
    assert ("its head cannot be read: its hash is wrong",) in [d.reasons for d in plan.keep if d.label == lost]


def test_a_set_that_lost_its_manifest_waits_for_the_window_and_counts_for_nothing(make_head: MakeHead) -> None:
    newest = make_head(NOW - timedelta(days=1))
    young, old = make_head(NOW - timedelta(days=3)), make_head(NOW - timedelta(days=9))
    plan = retention.plan(
        "shop", [newest], (), RetentionPolicy.of_days(7), now=NOW, unfinished=[young, old], at_rest=True
    )
    assert labels(plan.keep) == {newest.label, young.label}
    assert labels(plan.expire) == {old.label}


def test_wal_behind_a_set_that_lost_its_manifest_stays_because_that_may_come_back(make_head: MakeHead) -> None:
    lost, newest = make_head(NOW - timedelta(days=3), segment=10), make_head(NOW - timedelta(days=1), segment=50)
    names = [Segment(1, n).name for n in range(60)]
    plan = retention.plan(
        "shop", [newest], (), RetentionPolicy.of_days(7), now=NOW, wal_names=names, unfinished=[lost], at_rest=True
    )
    assert [(w.first, w.last) for w in plan.wal] == [(Segment(1, 0).name, Segment(1, 9).name)]


def test_a_hold_may_cover_the_wal_behind_its_backup(make_head: MakeHead) -> None:
    old, newest = make_head(NOW - timedelta(days=90), segment=10), make_head(NOW - timedelta(days=40), segment=80)
    last = make_head(NOW - timedelta(days=1), segment=90)
    names = [Segment(1, n).name for n in range(100)]

    def gone(through: str) -> set[int]:
        hold = Hold("h", old.label, "r", "o", NOW, through=through)
        plan = retention.plan("shop", [old, newest, last], [hold], RetentionPolicy.of_days(7), now=NOW, wal_names=names)
        ranges = [(Segment.parse(w.first).number, Segment.parse(w.last).number) for w in plan.wal]
        return {n for low, high in ranges for n in range(low, high + 1)}

    assert gone("") == {*range(10), *range(11, 80)}
    assert gone(Segment(1, 42).name) == {*range(10), *range(43, 80)}


class TestSettings:
    def parsed(self, text: str) -> settings.Settings:
        import tomllib

        return settings.parse(tomllib.loads(text))

    def test_without_a_word_the_defaults_hold(self) -> None:
        policy = policy_for(self.parsed("[sources.shop]"), "shop")
        assert (policy.window, policy.daily) == (timedelta(days=30), timedelta(days=30))
        assert (policy.weekly_months, policy.monthly_years) == (12, 7)

    def test_a_source_overrides_the_site_and_a_location_the_source(self) -> None:
        found = self.parsed(
            """
            [server]
            time_zone = "Europe/Berlin"
            [retention]
            monthly_years = 3
            [sources.shop]
            retention_days = 14
            [sources.shop.retention]
            weekly_months = 6
            [sources.shop.retention.locations.primary]
            daily_days = 3
            [sources.crm]
            """
        )
        shop = policy_for(found, "shop", "offsite")
        assert (shop.window.days, shop.daily.days, shop.weekly_months, shop.monthly_years) == (14, 14, 6, 3)
        assert shop.time_zone == "Europe/Berlin"
        here = policy_for(found, "shop")
        assert (here.daily.days, here.weekly_months, here.monthly_years) == (3, 6, 3)
        assert policy_for(found, "crm").weekly_months == 12

    @pytest.mark.parametrize(
        "text, said",
        [
            ("[sources.shop.retention]\nyears = 3", "unknown key 'years'"),
            ("[sources.shop.retention]\nweekly_months = -1", "at least 0"),
            ("[sources.shop.retention.locations.moon]\ndaily_days = 3", "moon"),
            ("[sources.shop]\nretention = 7", "must be a section"),
            ("[sources.shop]\nretention_days = 40000", "at most 36525"),
            ("[retention]\nmonthly_years = 9999", "at most 100"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, text: str, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            self.parsed(text)

    def test_a_policy_of_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="keep nothing"):
            policy_for(self.parsed("[sources.shop]\nretention_days = 0"), "shop")


class TestOtherLocations:
    def test_a_backup_stays_until_each_location_that_would_keep_it_has_it(self, make_head: MakeHead) -> None:
        heads = [make_head(NOW - timedelta(days=n, hours=1)) for n in range(40)]
        here, there = RetentionPolicy.of_days(7), RetentionPolicy.of_days(30)
        old = heads[20].label
        everything = frozenset(h.label for h in heads)

        def kept(copies: dict[str, frozenset[BackupLabel]]) -> dict[BackupLabel, tuple[str, ...]]:
            waiting = awaited_by(heads, {"offsite": there}, copies, now=NOW)
            plan = retention.plan("shop", heads, (), here, now=NOW, awaited=waiting)
            return {decision.label: decision.reasons for decision in plan.keep}

        assert old not in kept({"offsite": everything})
        assert kept({"offsite": everything - {old}})[old] == ("offsite shall hold it and does not yet",)
        unheard = kept({})
        assert old in unheard, "who does not answer may lack everything"
        assert heads[35].label not in unheard, "what nobody would keep waits for nobody"

    def test_locations_are_asked_for_what_they_have(self, make_head: MakeHead, tmp_path: Path) -> None:
        found = settings.parse(
            {
                "repository": {"url": "memory:"},
                "locations": {"offsite": {"url": str(tmp_path / "nothing yet")}},
                "sources": {"shop": {"mirrors": ["offsite"], "copies": 2}, "crm": {}},
            }
        )
        heads = [make_head(NOW - timedelta(days=1))]
        assert retention.awaited(found, "shop", heads, now=NOW, observe=silent()) == {heads[0].label: ("offsite",)}
        assert retention.awaited(found, "crm", heads, now=NOW, observe=silent()) == {}
