"""Failover: the server that was restored becomes the primary, and its repository goes on across the switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from seawall.errors import ClusterMismatch, TargetUnreachable
from seawall.model import Head, Proof, RecoveryTarget, TargetKind

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n, x)) FROM t"


@dataclass
class Failover:
    """`old` is what timeline 1 ended with, `new` what timeline 2 has now; `first` was taken on 1, `second` on 2."""

    site: Site
    first: Head
    second: Head
    old: list[tuple[object, ...]]
    new: list[tuple[object, ...]]


@pytest.fixture(scope="module")
def failover(site: Site, rows: Callable[..., list[tuple[object, ...]]]) -> Iterator[Failover]:
    site.query("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 2000) AS n")
    first = site.backup()
    site.query("INSERT INTO t SELECT n, 'on timeline 1' FROM generate_series(1, 100) AS n")
    site.query("SELECT pg_create_restore_point('the last good moment')")
    site.query("INSERT INTO t SELECT n, 'also on timeline 1' FROM generate_series(1, 100) AS n")
    site.ship()
    old = site.query(ROWS)
    plan = site.plan(RecoveryTarget(TargetKind.NAME, "the last good moment"))
    site.run(plan)
    # The old primary's receiver ends with it; the new primary goes on under the same name.
    site.stop_receiving()
    with site.running(plan.destination) as instance:
        promoted = replace(site, instance=instance)
        promoted.receive()
        try:
            rows(instance, "INSERT INTO t SELECT n, 'on timeline 2' FROM generate_series(1, 100) AS n")
            second = promoted.backup()
            rows(instance, "DELETE FROM t WHERE n % 2 = 0")
            promoted.ship()
            yield Failover(site, first, second, old, rows(instance, ROWS))
        finally:
            promoted.stop_receiving()


def test_the_old_backup_leads_across_the_switch_to_the_latest(
    failover: Failover, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    plan = failover.site.plan(label=failover.first.label)
    assert plan.history.timeline == 2
    with failover.site.restored(label=failover.first.label) as instance:
        assert rows(instance, ROWS) == failover.new


@pytest.mark.parametrize("timeline", ["current", "1"])
def test_the_old_timeline_can_be_followed_to_its_own_end(
    failover: Failover, timeline: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    with failover.site.restored(RecoveryTarget(timeline=timeline), label=failover.first.label) as instance:
        assert rows(instance, ROWS) == failover.old


def test_a_timeline_is_followed_by_its_number(
    failover: Failover, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    with failover.site.restored(RecoveryTarget(timeline="2"), label=failover.first.label) as instance:
        assert rows(instance, ROWS) == failover.new
    with failover.site.restored() as instance:
        assert rows(instance, ROWS) == failover.new


def test_a_backup_of_the_new_timeline_does_not_lead_to_the_old_one(failover: Failover) -> None:
    assert failover.second.timeline == 2
    with pytest.raises(TargetUnreachable, match="timeline 1"):
        failover.site.plan(RecoveryTarget(timeline="1"), label=failover.second.label)
    assert failover.site.verify(failover.second.label).reached is Proof.WAL_CONTINUOUS


def test_another_cluster_is_refused_and_stores_nothing(failover: Failover, sites: Any) -> None:
    site = failover.site
    before = site.beside_wal()
    foreign = sites.cluster(site.major, "foreign")
    try:
        with pytest.raises(ClusterMismatch, match="system identifier") as refused:
            replace(site, instance=foreign).backup()
        assert refused.value.hint
    finally:
        foreign.stop("immediate")
    assert site.beside_wal() == before
