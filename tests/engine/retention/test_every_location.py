"""Retention over random lives of a primary and a copy, each with its own rules and its own outages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from seawall import locations, retention
from seawall.audit import AuditLog
from seawall.errors import RetentionRefused, StorageUnreachable
from seawall.events import Observer, silent
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, Head
from seawall.repository import SourceArea, documents
from seawall.retention import Cleaned, policy_for
from seawall.settings import Settings, parse
from seawall.storage.base import Storage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment
from tests.engine.retention import test_two_steps
from tests.engine.retention.test_two_steps import FULL, INCREMENTAL, Life

MakeHead = Callable[..., Head]
OPERATIONS = (
    *("day", "day", "days", "full", "incremental", "differential"),
    *("hold", "hold", "release", "wait", "mirror", "clean", "outage", "return"),
)


class Site:
    """A life with a copy in another location, which may be down."""

    def __init__(self, make_head: MakeHead, ring: KeyRing, here: int, there: int) -> None:
        self.life = Life(make_head, ring)
        self.offsite = MemoryStorage("offsite", clock=lambda: self.life.now)
        self.is_down = False
        self.use(here, there)
        test_two_steps.TestCopies().mirror(self.life, self.offsite)

    def use(self, here: int, there: int) -> None:
        """Settings in which so many days are kept in the primary, and so many offsite."""
        days = {"full_days": 0, "differential_days": 0, "incremental_days": 0, "weekly_months": 0, "monthly_years": 0}
        offsite = {"window_days": there, "daily_days": there}
        shop = {"mirrors": ["offsite"], "retention_days": here, "retention": {"locations": {"offsite": offsite}}}
        self.settings: Settings = parse(
            {
                "repository": {"url": "memory:"},
                "locations": {"offsite": {"url": "/nowhere/offsite"}},
                "retention": days,
                "sources": {"shop": shop},
            }
        )

    @property
    def copy(self) -> SourceArea:
        return SourceArea(self.offsite, "shop")

    def opened(self, _settings: Settings, _name: str, _observe: Observer, **_more: bool) -> Storage:
        if self.is_down:
            raise StorageUnreachable("offsite is down")
        return self.offsite

    def mirror(self) -> None:
        if not self.is_down:
            useless = retention.unwanted(self.life.area, self.policy("offsite"), now=self.life.now)
            test_two_steps.TestCopies().mirror(self.life, self.offsite, useless)

    def policy(self, location: str) -> retention.RetentionPolicy:
        return policy_for(self.settings, "shop", location)

    def awaited(self, heads: Sequence[Head]) -> dict[BackupLabel, tuple[str, ...]]:
        return retention.awaited(self.settings, "shop", heads, now=self.life.now, observe=silent())

    def clean(self) -> None:
        """As the flow does: the primary, then each other location that answers."""
        life, policy = self.life, self.policy("primary")
        plan = retention.plan_for(life.area, policy, now=life.now, at_rest=True, awaited=self.awaited)
        retention.expire(life.repository, plan, actor="ada", now=life.now)
        retention.collect(life.repository, "shop", actor="ada", now=life.now, observe=silent(), policy=policy)
        # After a rest nothing is let go for a week; see `test_rules`.
        with suppress(StorageUnreachable, RetentionRefused):
            self.clean_copy()

    def clean_copy(self) -> Cleaned:
        life = self.life
        return retention.clean_copy(
            self.settings, life.repository, "shop", "offsite", actor="ada", now=life.now, observe=silent()
        )

    def perform(self, operation: str, number: int) -> None:
        life, listed = self.life, self.life.area.labels()
        if operation in ("day", "days"):
            for _ in range(1 if operation == "day" else number):
                life.backup(INCREMENTAL if number % 3 else FULL)
                self.mirror()
                self.clean()
                life.now += timedelta(hours=25)
        elif operation in ("full", "incremental", "differential"):
            life.backup(BackupKind(operation))
        elif operation == "hold" and listed:
            life.area.place_hold(listed[number % len(listed)], reason="why", owner="ada", now=life.now)
        elif operation == "release" and life.area.holds(life.now):
            life.area.release_hold(life.area.holds(life.now)[0].id, owner="ada", now=life.now)
        elif operation == "wait":
            life.now += timedelta(hours=9 * (1 + number))
        elif operation == "mirror":
            self.mirror()
        elif operation == "clean":
            self.clean()
        elif operation in ("outage", "return"):
            self.is_down = operation == "outage"

    # ---- what must always hold

    def prove(self) -> None:
        self.life.prove()
        there, layout, copy = {stat.name for stat in self.offsite.list()}, self.copy.layout, self.copy
        for label in copy.labels(with_expired=True):
            needed = copy.needed_objects(label)
            assert needed <= there, f"{label} lost {needed - there} offsite"
            assert {layout.key(name.split("/")[3], 1) for name in needed} <= there, "nothing opens it"
            head = copy.head(label)
            assert copy.wal.stored(Segment.containing(head.start_lsn, 1).name), f"{label} lost its WAL offsite"

    def prove_gone(self, area: SourceArea) -> None:
        """Nothing lies there but what a set needs that is listed, or was marked less than a day ago."""
        layout, names = area.layout, {stat.name for stat in area.storage.list("sources/")}
        present = area.labels(with_expired=True)
        for name in names:
            mark = documents.get(area.storage, name) if name.startswith(layout.expired) else {}
            # A mark goes with the last object of its set, which a later set may still need.
            if mark and ("label" not in mark or BackupLabel.parse(mark["label"]) in present):
                marked_at = documents.moment(mark["marked_at"], name=name)
                assert self.life.now - marked_at < retention.MINIMUM_GRACE, f"{name} should be done"
        needed = {name for label in present for name in area.needed_objects(label)}
        owners = {name.split("/")[3] for name in needed} | {str(label) for label in present}
        for name in names:
            if name.startswith(layout.backups):
                assert name in needed or BackupLabel.parse(name.split("/")[3]) in present, f"{name} should be gone"
            elif name.startswith(layout.keys):
                assert name.split("/")[3] in owners, f"{name} should be gone"


def best_of_each_day(heads: Sequence[Head]) -> Iterator[Head]:
    """The last full backup of each day, else the last of all."""
    by_day: dict[object, list[Head]] = {}
    for head in heads:
        by_day.setdefault(head.stopped_at.date(), []).append(head)
    for sets in by_day.values():
        yield max([head for head in sets if head.kind is FULL] or sets, key=lambda head: head.stopped_at)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7)), min_size=3, max_size=30),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_over_any_life_what_must_stay_stays_somewhere_and_what_is_let_go_is_gone_everywhere(
    make_head: MakeHead,
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[str, int]],
    here: int,
    there: int,
) -> None:
    site = Site(make_head, KeyRing(tmp_path_factory.getbasetemp() / "no-keys-here"), here, there)
    life = site.life
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "opened", site.opened)
        for operation, number in operations:
            held = {hold.label for hold in life.area.holds(life.now)}
            held_there = held & set(site.copy.labels(with_expired=True))
            site.perform(operation, number)
            site.prove()
            assert held_there <= set(site.copy.labels(with_expired=True)), "a hold is in force everywhere"
            taken = set(best_of_each_day(life.heads))
            promised = {h.label for h in taken if h.stopped_at >= life.now - timedelta(days=there)}
            assert promised <= {*life.area.labels(), *site.copy.labels()}
        for hold in life.area.holds(life.now):
            life.area.release_hold(hold.id, owner="ada", now=life.now)
        site.is_down = False
        # A location that was down is caught up, once it and the backups are back.
        for _ in range(9):
            life.backup(FULL)
            site.mirror()
            site.clean()
            life.now += timedelta(days=1)
        site.clean()
        site.prove()
    for area in (life.area, site.copy):
        site.prove_gone(area)
    promised = {h.label for h in best_of_each_day(life.heads) if h.stopped_at >= life.now - timedelta(days=there)}
    assert promised <= set(site.copy.labels())
    AuditLog(life.storage).verify()


@pytest.fixture
def site(make_head: MakeHead, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(make_head, KeyRing(tmp_path_factory.mktemp("no-keys")), 1, 2)
    monkeypatch.setattr(locations, "opened", made.opened)
    for _ in range(5):
        made.life.backup(FULL)
        made.mirror()
        made.life.now += timedelta(days=1)
    return made


@pytest.mark.parametrize("when", ["before the mark", "after the mark"])
def test_a_hold_of_the_primary_is_in_force_offsite_before_a_mirror_brought_it_there(site: Site, when: str) -> None:
    old = site.copy.labels()[0]

    def hold() -> None:
        site.life.area.place_hold(old, reason="lawsuit", owner="ada", now=site.life.now)

    if when == "before the mark":
        hold()
    site.clean_copy()
    assert site.copy.is_expired(old) == (when == "after the mark")
    if when == "after the mark":
        hold()
    site.life.now += timedelta(hours=25)
    done = site.clean_copy()
    assert done.collected.sets or when == "before the mark"
    assert old in site.copy.labels(with_expired=True)
    site.prove()


def test_what_was_marked_offsite_by_a_slip_in_the_settings_stays_there_when_they_are_mended(site: Site) -> None:
    old = site.copy.labels()[0]
    site.clean_copy()
    assert site.copy.is_expired(old)
    site.use(here=1, there=30)
    site.life.now += timedelta(hours=25)
    assert "it stays after all" in site.clean_copy().collected.left[str(old)]
    assert old in site.copy.labels(with_expired=True)


def test_a_location_that_was_down_while_others_were_cleaned_is_caught_up_later(site: Site) -> None:
    before = set(site.copy.labels())
    site.is_down = True
    for _ in range(3):
        site.clean()
        site.life.now += timedelta(hours=25)
    assert set(site.copy.labels()) == before
    assert len(site.life.area.labels()) == 1
    site.is_down = False
    for _ in range(2):
        site.clean()
        site.life.now += timedelta(hours=25)
    assert site.copy.labels(with_expired=True) == (max(before, key=lambda label: label.begun_at),)
    site.prove()
    site.prove_gone(site.copy)
