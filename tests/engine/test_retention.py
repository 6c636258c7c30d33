"""What retention keeps, and what it never lets go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import retention
from seawall.errors import ClockWentBackwards, UsageError
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    Hold,
    SealingMode,
)
from seawall.retention import RetentionPolicy
from seawall.wal import Lsn, Segment

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
MONTH = RetentionPolicy.of_days(30)


def a_head(age_days: float, *, health: Health = Health.GOOD, at: int | None = None) -> Head:
    """A full backup that stopped so many days ago; WAL position grows with time unless given."""
    stopped = (NOW - timedelta(days=age_days)).replace(microsecond=0)
    position = at if at is not None else int((400 - age_days) * 64) * (1 << 24)
    return Head(
        label=BackupLabel(stopped - timedelta(minutes=5)),
        source="shop",
        kind=BackupKind.FULL,
        mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7, 18, (1,)),
        server_version=180006,
        timeline=1,
        start_lsn=Lsn(position),
        stop_lsn=Lsn(position + (3 << 24)),
        segment_bytes=1 << 24,
        began_at=stopped - timedelta(minutes=5),
        ended_at=stopped,
        stopped_at=stopped,
        plain_bytes=100,
        stored_bytes=50,
        file_count=1,
        object_count=1,
        compression=Compression.ZSTD,
        sealing=SealingMode.AES_256_GCM,
        key_id="k",
        manifest_sha256="0" * 64,
        manifest_bytes=10,
        health=health,
    )


def labels(decisions: tuple[retention.Decision, ...]) -> set[BackupLabel]:
    return {decision.label for decision in decisions}


def test_every_moment_of_the_window_stays_restorable() -> None:
    heads = [a_head(age) for age in (1, 10, 29, 33, 40, 50)]
    plan = retention.plan("shop", heads, (), MONTH, now=NOW)
    assert labels(plan.keep) == {head.label for head in heads[:4]}
    reason = next(d.reasons for d in plan.keep if d.label == heads[3].label)
    assert reason == ("the window of 30 days begins with it",)
    assert all(decision.reasons for decision in plan.expire)


def test_the_last_good_full_backup_stays_however_old_it_is() -> None:
    good, degraded = a_head(300), a_head(2, health=Health.DEGRADED)
    plan = retention.plan("shop", [good, degraded], (), MONTH, now=NOW)
    assert labels(plan.keep) == {good.label, degraded.label}


def test_a_held_backup_stays_and_says_why() -> None:
    heads = [a_head(age) for age in (1, 100, 200)]
    hold = Hold("h", heads[2].label, "lawsuit", "ada", NOW)
    plan = retention.plan("shop", heads, [hold], MONTH, now=NOW)
    kept = {d.label: d.reasons for d in plan.keep}
    assert "held by ada: lawsuit" in kept[heads[2].label]


def test_of_what_a_kept_backup_builds_on_the_data_stays() -> None:
    base, between = a_head(100), a_head(60)
    label = BackupLabel(NOW - timedelta(days=1), BackupKind.INCREMENTAL, base.label.begun_at)
    dependent = replace(a_head(1), label=label, kind=BackupKind.INCREMENTAL, prior=str(base.label))
    plan = retention.plan("shop", [base, between, dependent], (), MONTH, now=NOW)
    gone = {decision.label: decision.reasons for decision in plan.expire}
    assert f"its data stays as far as {label} refers to it" in gone[base.label]


def test_a_policy_that_keeps_nothing_is_refused() -> None:
    for days in (0, -1):
        with pytest.raises(UsageError):
            RetentionPolicy.of_days(days)


def test_a_clock_before_the_newest_backup_stops_everything() -> None:
    with pytest.raises(ClockWentBackwards):
        retention.plan("shop", [a_head(0)], (), MONTH, now=NOW - timedelta(hours=1))


def test_wal_before_the_oldest_needed_backup_goes_and_a_held_backups_own_wal_stays() -> None:
    old, newest = a_head(200, at=10 << 24), a_head(1, at=50 << 24)
    names = [Segment(1, number).name for number in range(60)]
    plan = retention.plan("shop", [old, newest], [Hold("h", old.label, "r", "o", NOW)], MONTH, now=NOW, wal_names=names)
    gone = {
        Segment(1, n).name
        for wal in plan.wal
        for n in range(Segment.parse(wal.first).number, Segment.parse(wal.last).number + 1)
    }
    assert gone == {Segment(1, n).name for n in range(10)}, "the held set opens the window, so replay may start there"


def test_nothing_is_let_go_when_there_is_no_backup() -> None:
    plan = retention.plan("shop", [], (), MONTH, now=NOW, wal_names=[Segment(1, n).name for n in range(5)])
    assert (plan.keep, plan.expire, plan.wal) == ((), (), ())


@given(
    st.lists(st.tuples(st.floats(0, 390), st.booleans()), max_size=25, unique_by=lambda t: int(t[0] * 86400)),
    st.integers(1, 120),
    st.data(),
)
def test_what_must_stay_always_stays(history: list[tuple[float, bool]], days: int, data: st.DataObject) -> None:
    heads = [a_head(age, health=Health.GOOD if good else Health.DEGRADED) for age, good in history]
    held = data.draw(st.sets(st.sampled_from([h.label for h in heads]))) if heads else set()
    holds = [Hold(str(n), label, "r", "o", NOW) for n, label in enumerate(held)]
    names = [Segment(1, n).name for n in range(0, 26_000, 16)]
    policy = RetentionPolicy.of_days(days)
    plan = retention.plan("shop", heads, holds, policy, now=NOW, wal_names=names, at_rest=True)
    kept = labels(plan.keep)
    assert kept | labels(plan.expire) == {h.label for h in heads}
    assert not kept & labels(plan.expire)
    assert held <= kept
    good = [h for h in heads if h.health is Health.GOOD]
    if good:
        assert max(good, key=lambda h: h.stopped_at).label in kept
    begins = NOW - policy.window
    assert {h.label for h in heads if h.stopped_at >= begins} <= kept
    before = [h for h in heads if h.stopped_at < begins]
    if before:
        assert max(before, key=lambda h: h.stopped_at).label in kept
    gone = [(wal.first, wal.last) for wal in plan.wal]
    for head in heads:
        if head.label in kept:
            first = Segment.containing(head.start_lsn, 1).number
            last = Segment.ending_at(head.stop_lsn, 1).number
            own = {Segment(1, n).name for n in range(first, last + 1)}
            assert not any(low <= name <= high for name in own & set(names) for low, high in gone)
