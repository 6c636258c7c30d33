"""What makes the next backup a full one, done to a real server; and that nothing before or after it is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall.errors import ClusterMismatch
from seawall.model import BackupKind, Head, Proof, RecoveryTarget, TargetKind
from seawall.postgres.instance import Instance

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
FULL, INCREMENTAL = BackupKind.FULL, BackupKind.INCREMENTAL
COUNT = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM kept"


def fill(site: Site) -> None:
    site.query("DROP TABLE IF EXISTS kept")
    site.query("CREATE TABLE kept AS SELECT n, md5(n::text) AS x FROM generate_series(1, 5000) AS n", "CHECKPOINT")


def change(site: Site) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = site.query("UPDATE kept SET x = md5(x) WHERE n % 7 = 0", "CHECKPOINT", COUNT)
    return found


def stopped(site: Site, *work: str | Path) -> None:
    """Do something to the data directory while no server runs there."""
    site.stop_receiving()
    site.instance.stop()
    if work:
        done = site.account.run([str(word) for word in work], timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    site.instance.start()
    site.receive()


def restores_to(site: Site, rows: Callable[..., Any], head: Head, expected: object) -> bool:
    with site.restored(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label) as instance:
        return bool(rows(instance, COUNT) == expected)


def test_page_checksums_switched_off_and_on(site18: Site, rows: Callable[..., Any]) -> None:
    site, taken = site18, []
    fill(site)
    taken.append((site.backup(), change(site)))
    tool = site.binaries.path("pg_checksums")
    for switch, said in (("--disable", "now there are none"), ("--enable", "now there are some")):
        stopped(site, tool, switch, "-D", site.data)
        expected = change(site)
        forced = site.backup(INCREMENTAL)
        assert forced.kind is FULL
        assert said in forced.reason
        taken.append((forced, expected))
        expected = change(site)
        built = site.backup(INCREMENTAL)
        assert (built.kind, built.prior, built.reason) == (INCREMENTAL, str(forced.label), "")
        taken.append((built, expected))
    for head, _ in taken:
        assert site.verify(head.label).reached is Proof.WAL_CONTINUOUS
    for head, expected in taken[1:]:
        assert restores_to(site, rows, head, expected)


def test_a_promotion(site18: Site, rows: Callable[..., Any]) -> None:
    site = site18
    fill(site)
    before = site.backup()
    signal = site.data / "standby.signal"
    signal.touch()
    site.account.own(signal)
    stopped(site)
    site.query("SELECT pg_promote()")
    site.until(lambda: site.value("SELECT pg_is_in_recovery()") == "False", "the promotion")
    expected = change(site)
    forced = site.backup(INCREMENTAL)
    assert forced.kind is FULL
    assert f"promoted: it is on timeline {before.timeline + 1}" in forced.reason
    built = site.backup(INCREMENTAL)
    assert (built.kind, built.timeline) == (INCREMENTAL, before.timeline + 1)
    for head in (forced, built):
        assert restores_to(site, rows, head, expected)


def test_an_upgrade_makes_another_cluster_which_gets_a_source_of_its_own(sites: Any, rows: Callable[..., Any]) -> None:
    new = sites.binaries(18)
    with sites.site(17) as site:
        fill(site)
        expected = change(site)
        old = site.backup()
        site.ship()
        segment = site.value("SELECT setting::int / 1048576 FROM pg_settings WHERE name = 'wal_segment_size'")
        site.stop_receiving()
        site.instance.stop()
        upgraded = Instance(site.data.parent / "upgraded", new, site.account)
        upgraded.initdb([f"--wal-segsize={segment}"])
        work = site.data.parent / "upgrading"
        work.mkdir()
        site.account.own(work)
        done = site.account.run(
            [new.path("pg_upgrade"), "-b", site.binaries.directory, "-B", new.directory, "-d", site.data, "-D",
             upgraded.data_directory, "-s", work],
            directory=work,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        upgraded.start()
        after = replace(site, instance=upgraded, binaries=new)
        try:
            assert after.query(COUNT) == expected
            before = site.beside_wal()
            with pytest.raises(ClusterMismatch, match="system identifier") as refused:
                after.backup(INCREMENTAL)
            assert "pg_upgrade" in refused.value.hint
            assert site.beside_wal() == before
        finally:
            upgraded.stop("immediate")
        # What was taken before the upgrade restores with the binaries of then.
        assert restores_to(site, rows, old, expected)
