"""Which backup, timeline and WAL a restore uses, and what it refuses before anything is written."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall import restore
from seawall.errors import BackupMissing, DestinationInUse, StorageFull, TargetUnreachable, WalGap
from seawall.model import BackupLabel, Health, RecoveryTarget, Tablespace, TargetKind
from seawall.restore import RestorePlan
from seawall.restore.reach import Reach
from seawall.storage.local import LocalStorage
from seawall.wal import Branch, Lsn, TimelineHistory

LATEST = RecoveryTarget(TargetKind.LATEST)
SPACE = Tablespace(16384, "/old")


def planned(site: Any, into: Path, target: RecoveryTarget = LATEST, **more: Any) -> RestorePlan:
    return restore.plan(site.repository, "shop", target, into, now=more.pop("now", site.at(60)), **more)


def at_minute(site: Any, minute: float, **more: Any) -> RecoveryTarget:
    return RecoveryTarget.at_time(site.at(minute).isoformat(), **more)


# ---- which backup


def test_the_newest_backup_that_ended_before_the_time_is_chosen(site: Any, into: Path) -> None:
    first = site.backup(0, 1, 2)
    site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    plan = planned(site, into, at_minute(site, 5))
    assert plan.head == first
    assert "newest good backup that ended before the target" in plan.why


def test_a_time_exactly_at_the_end_of_a_backup_needs_the_one_before(site: Any, into: Path) -> None:
    first = site.backup(0, 1, 2)
    site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    assert planned(site, into, at_minute(site, 10)).head == first


def test_a_position_at_the_end_of_a_backup_is_reached_by_it(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    second = site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    at_stop = RecoveryTarget(TargetKind.LSN, str(second.stop_lsn))
    assert planned(site, into, at_stop).head == second
    before = RecoveryTarget(TargetKind.LSN, str(Lsn(second.stop_lsn.value - 1)))
    assert planned(site, into, before).head != second


def test_a_degraded_backup_is_only_used_when_there_is_no_good_one(site: Any, into: Path) -> None:
    good = site.backup(0, 1, 2)
    bad = site.backup(10, 5, 6, health=Health.DEGRADED)
    site.wal(1, 20, minute=50)
    assert planned(site, into).head == good
    named = planned(site, into, label=bad.label)
    assert named.head == bad
    assert "wrong checksums" in " ".join(named.warnings)


def test_a_target_before_the_first_backup_is_refused_and_the_earliest_named(site: Any, into: Path) -> None:
    head = site.backup(0, 1, 2)
    site.wal(1, 20, minute=50)
    with pytest.raises(TargetUnreachable, match=f"{head.label}.*from 2026-11-23T12:00:00"):
        planned(site, into, at_minute(site, -5))


def test_a_named_backup_is_not_exchanged_for_an_earlier_one(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    second = site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    with pytest.raises(TargetUnreachable, match="before the end of backup"):
        planned(site, into, at_minute(site, 5), label=second.label)


def test_a_future_time_is_refused(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 20, minute=50)
    with pytest.raises(TargetUnreachable, match="in the future"):
        planned(site, into, at_minute(site, 61))


def test_a_time_without_offset_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="no offset"):
        RecoveryTarget.at_time("2026-11-23 12:05:00")


def test_nothing_to_restore_is_said_plainly(site: Any, into: Path) -> None:
    with pytest.raises(BackupMissing, match="shop has no backup"):
        planned(site, into)
    site.backup(0, 1, 2)
    with pytest.raises(BackupMissing, match="20261122T000000Z-full"):
        planned(site, into, label=BackupLabel.parse("20261122T000000Z-full"))


def test_one_damaged_head_does_not_keep_the_others_from_being_restored(site: Any, into: Path) -> None:
    first = site.backup(0, 1, 2)
    second = site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    site.overwrite(site.area.layout.head(second.label), b"{}")
    plan = planned(site, into)
    assert plan.head == first
    assert str(second.label) in plan.why


def test_for_a_name_the_newest_backup_is_taken_and_the_risk_is_told(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    second = site.backup(10, 5, 6)
    site.wal(1, 20, minute=50)
    plan = planned(site, into, RecoveryTarget(TargetKind.NAME, "before-upgrade"))
    assert plan.head == second
    assert "name an earlier backup" in " ".join(plan.warnings)


# ---- WAL


def test_wal_of_the_backup_itself_must_be_whole(site: Any, into: Path) -> None:
    site.backup(0, 1, 4)
    site.wal(1, 1)
    site.wal(3, 9)
    with pytest.raises(WalGap, match="000000010000000000000002 is missing"):
        planned(site, into, RecoveryTarget(TargetKind.IMMEDIATE))


def test_a_gap_before_the_target_is_named(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4, minute=5)
    site.wal(6, 9, minute=20)
    with pytest.raises(WalGap, match="000000010000000000000005 is missing on timeline 1"):
        planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(7))))
    with pytest.raises(WalGap, match="000000010000000000000005"):
        planned(site, into, at_minute(site, 15))


def test_latest_never_stops_silently_at_a_gap(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    site.wal(6, 9)
    with pytest.raises(WalGap, match="silently lose"):
        planned(site, into)


def test_a_gap_behind_the_target_only_warns(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4, minute=5)
    site.wal(6, 9, minute=20)
    plan = planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(3))))
    assert "missing behind the target" in " ".join(plan.warnings)
    assert plan.wal_last == "000000010000000000000004"


def test_a_target_after_all_stored_wal_is_refused(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4, minute=5)
    with pytest.raises(TargetUnreachable, match="WAL is stored up to 0/500000"):
        planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(5.5))))
    with pytest.raises(TargetUnreachable, match="lies after what is stored"):
        planned(site, into, at_minute(site, 30))


def test_the_tail_of_the_open_segment_counts(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4, minute=5)
    site.tail(5.5, minute=30)
    plan = planned(site, into, at_minute(site, 29))
    assert (plan.wal_end, plan.wal_last) == (site.lsn(5.5), "000000010000000000000005")
    planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(5.5))))
    with pytest.raises(TargetUnreachable):
        planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(5.6))))


def test_immediate_needs_no_wal_after_the_backup(site: Any, into: Path) -> None:
    site.backup(0, 1, 3)
    site.wal(1, 2)
    assert planned(site, into, RecoveryTarget(TargetKind.IMMEDIATE)).wal_count == 2


# ---- timelines


def forked(site: Any) -> None:
    """Timeline 1 was left in the middle of segment 5, but its old primary went on archiving up to 9."""
    site.backup(0, 1, 2)
    site.wal(1, 9, minute=5)
    site.history(2, (1, 5.5))
    site.wal(5, 7, timeline=2, minute=20)


def test_latest_follows_the_highest_timeline_that_a_backup_reaches(site: Any, into: Path) -> None:
    forked(site)
    plan = planned(site, into)
    assert plan.history.timeline == 2
    assert plan.wal_last == "000000020000000000000007"


def test_current_stays_on_the_timeline_of_the_backup(site: Any, into: Path) -> None:
    forked(site)
    plan = planned(site, into, RecoveryTarget(TargetKind.LATEST, timeline="current"))
    assert (plan.history.timeline, plan.wal_last) == (1, "000000010000000000000009")


def test_current_is_the_named_backups_own_timeline(site: Any, into: Path) -> None:
    forked(site)
    first = site.area.heads()[0]
    site.backup(30, 6.2, 6.5, timeline=2)
    plan = planned(site, into, RecoveryTarget(TargetKind.LATEST, timeline="current"), label=first.label)
    assert plan.history.timeline == 1


def test_segments_that_the_old_primary_wrote_after_it_was_left_are_not_the_path(site: Any, into: Path) -> None:
    forked(site)
    assert planned(site, into).wal_end == site.lsn(8)
    with pytest.raises(TargetUnreachable):
        planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(8.5))))


def test_the_old_timelines_copy_of_the_switch_segment_counts_up_to_the_switch(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 9, minute=5)
    site.history(2, (1, 5.5))
    plan = planned(site, into)
    assert (plan.history.timeline, plan.wal_end) == (2, site.lsn(5.5))
    with pytest.raises(TargetUnreachable):
        planned(site, into, RecoveryTarget(TargetKind.LSN, str(site.lsn(5.6))))


def test_a_missing_switch_segment_is_a_gap_when_later_ones_are_stored(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 5, minute=5)
    site.history(2, (1, 5.5))
    site.wal(6, 8, timeline=2, minute=20)
    with pytest.raises(WalGap, match="000000020000000000000005"):
        planned(site, into)


def test_a_backup_after_the_fork_does_not_reach_the_other_branch(site: Any, into: Path) -> None:
    site.history(2, (1, 5.5))
    site.backup(0, 6, 7)
    site.wal(5, 9)
    site.wal(5, 9, timeline=2)
    with pytest.raises(TargetUnreachable, match="timeline 2, before 1 was left at 0/580000"):
        planned(site, into, RecoveryTarget(TargetKind.LATEST, timeline="2"))
    assert planned(site, into).history.timeline == 1


def test_unknown_timelines_are_refused_with_the_known_ones(site: Any, into: Path) -> None:
    forked(site)
    with pytest.raises(TargetUnreachable, match="timeline 7 is unknown; there are 1, 2"):
        planned(site, into, RecoveryTarget(TargetKind.LATEST, timeline="7"))
    with pytest.raises(TargetUnreachable, match="'next' is no timeline"):
        planned(site, into, RecoveryTarget(TargetKind.LATEST, timeline="next"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    switches=st.lists(st.integers(3 << 20, 12 << 20), max_size=3, unique=True).map(sorted),
    missing=st.sets(st.integers(3, 13), max_size=2),
)
def test_the_reach_ends_where_the_first_segment_of_the_path_is_missing(
    fresh_site: Any, switches: list[int], missing: set[int]
) -> None:
    """Against a model: each number's segment lies on the timeline that its last byte was written on."""
    site = fresh_site()
    head = site.backup(0, 1, 2)
    newest = 1 + len(switches)
    history = TimelineHistory(newest, tuple(Branch(i + 1, Lsn(at)) for i, at in enumerate(switches)))
    for number in range(1, 14):
        if number not in missing:
            site.wal(number, number, timeline=history.timeline_at(Lsn(((number + 1) << 20) - 1)))
    reach = Reach(site.area, head, history)
    first = min(missing, default=14)
    assert reach.end == Lsn(first << 20)
    assert reach.missing.number == first
    assert reach.has_gap == any(number not in missing for number in range(first + 1, 14))


# ---- destination


def test_a_directory_with_something_in_it_is_refused_and_untouched(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    into.mkdir()
    (into / "precious").write_text("x")
    for delta in (False, True):
        with pytest.raises(DestinationInUse):
            planned(site, into, delta=delta)
    assert (into / "precious").read_text() == "x"


def test_a_running_server_is_refused_even_for_a_delta(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    into.mkdir()
    (into / "PG_VERSION").write_text("18\n")
    for text in (f"{os.getpid()}\n", f"-{os.getpid()}\n"):
        (into / "postmaster.pid").write_text(text)
        with pytest.raises(DestinationInUse, match=f"process id {os.getpid()} runs"):
            planned(site, into, delta=True)


def test_the_pid_file_of_a_dead_server_does_not_stop_a_delta(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    into.mkdir()
    (into / "PG_VERSION").write_text("18\n")
    ended = subprocess.Popen(["true"])
    ended.wait()
    (into / "postmaster.pid").write_text(f"{ended.pid}\n")
    assert planned(site, into, delta=True).delta


@pytest.mark.parametrize("place", ["/", "relative/path", "/srv/../etc", "/srv/new\nline"])
def test_strange_destinations_are_refused(site: Any, place: str) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    with pytest.raises(DestinationInUse):
        planned(site, Path(place))


def test_a_link_as_destination_is_refused(site: Any, tmp_path: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(DestinationInUse, match="is a link"):
        planned(site, tmp_path / "link")


def test_a_file_as_destination_is_refused(site: Any, tmp_path: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    (tmp_path / "file").touch()
    with pytest.raises(DestinationInUse, match="no directory"):
        planned(site, tmp_path / "file")


def test_the_repository_itself_is_no_destination(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    url = LocalStorage(tmp_path / "parent" / "repo").url
    monkeypatch.setattr(type(site.storage), "url", property(lambda _self: url))
    for place in (tmp_path / "parent", tmp_path / "parent" / "repo", tmp_path / "parent" / "repo" / "below"):
        with pytest.raises(DestinationInUse):
            planned(site, place)
    planned(site, tmp_path / "beside")


def test_a_file_system_that_is_too_small_is_refused_with_the_numbers(
    site: Any, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _place: full)
    with pytest.raises(StorageFull, match="has 40960 bytes free, the restore needs"):
        planned(site, into)


# ---- tablespaces


def test_tablespaces_go_beside_the_destination_and_never_to_their_old_place(site: Any, into: Path) -> None:
    site.backup(0, 1, 2, tablespaces=(SPACE,))
    site.wal(1, 4)
    assert planned(site, into).tablespaces == ((16384, "/old", into.with_name("restored.tablespaces") / "16384"),)


def test_a_tablespace_goes_where_it_is_mapped_to(site: Any, into: Path, tmp_path: Path) -> None:
    site.backup(0, 1, 2, tablespaces=(SPACE,))
    site.wal(1, 4)
    assert planned(site, into, tablespaces={"/old": tmp_path / "new"}).tablespaces[0][2] == tmp_path / "new"
    with pytest.raises(DestinationInUse, match="no tablespace lay at /other; there are: /old"):
        planned(site, into, tablespaces={"/other": tmp_path / "new"})


def test_a_tablespace_is_never_laid_over_something_or_into_the_data_directory(
    site: Any, into: Path, tmp_path: Path
) -> None:
    site.backup(0, 1, 2, tablespaces=(SPACE, Tablespace(16385, "/second")))
    site.wal(1, 4)
    used = tmp_path / "used"
    used.mkdir()
    (used / "precious").touch()
    for place in (used, into / "inside", tmp_path):
        with pytest.raises(DestinationInUse):
            planned(site, into, tablespaces={"/old": place})
    with pytest.raises(DestinationInUse, match="lie in each other"):
        planned(site, into, tablespaces={"/old": tmp_path / "one", "/second": tmp_path / "one"})


def test_a_delta_restore_never_clears_a_directory_that_is_not_its_own_tablespace(
    site: Any, into: Path, tmp_path: Path
) -> None:
    site.backup(0, 1, 2, tablespaces=(SPACE,))
    site.wal(1, 4)
    (into / "pg_tblspc").mkdir(parents=True)
    (into / "PG_VERSION").write_text("18\n")
    foreign = tmp_path / "foreign"
    (foreign / "PG_18_202506291").mkdir(parents=True)
    with pytest.raises(DestinationInUse, match="not empty"):
        planned(site, into, delta=True, tablespaces={"/old": foreign})
    (into / "pg_tblspc" / "16384").symlink_to(foreign)
    assert planned(site, into, delta=True).tablespaces[0][2] == foreign
    (foreign / "holiday.jpg").touch()
    with pytest.raises(DestinationInUse, match=r"holiday\.jpg"):
        planned(site, into, delta=True)


# ---- what the plan shows


def test_the_plan_warns_when_the_estimate_misses_the_rto(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 30)
    assert planned(site, into).meets_rto
    late = planned(site, into, rto=timedelta(seconds=1))
    assert not late.meets_rto
    assert "more than the RTO of 1 s" in " ".join(late.warnings)
    assert late.wal_count == 30


def test_planning_writes_nothing(site: Any, into: Path) -> None:
    site.backup(0, 1, 2)
    site.wal(1, 4)
    before = [stat.name for stat in site.storage.list()]
    planned(site, into)
    assert not into.exists()
    assert [stat.name for stat in site.storage.list()] == before
