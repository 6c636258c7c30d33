"""The host is lost with its catalog and its settings: a copy of the storage and an exported key bring all back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall import restore, verify
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import Proof, RecoveryTarget
from seawall.repository import Repository
from seawall.storage.local import LocalStorage
from seawall.wal import Segment

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), max(x) FROM t"


@pytest.mark.parametrize("which", ["operations", "escrow"])
def test_storage_and_one_of_the_two_keys_are_enough_to_get_everything_back(
    site: Site, which: str, tmp_path: Path, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    site.query("DROP TABLE IF EXISTS t", "CREATE TABLE t AS SELECT n AS x FROM generate_series(1, 1000) AS n")
    head = site.backup()
    site.query("INSERT INTO t SELECT n FROM generate_series(1001, 2000) AS n")
    site.ship()
    # Never in a complete segment: only the saved beginning of the open one has it.
    site.query("INSERT INTO t VALUES (77777)")
    position = site.value("SELECT pg_current_wal_flush_lsn()")
    opened = Segment.parse(site.value("SELECT pg_walfile_name(pg_current_wal_lsn())"), head.segment_bytes)
    site.until(lambda: any(str(end) >= position for end in site.area.wal.tails(opened)), "the tail")
    expected = site.query(ROWS)
    site.stop_receiving()
    key = next(key for key in site.ring.list() if which in key.user_id)
    paper = site.ring.export_secret(key.fingerprint)
    shutil.copytree(site.home / "repository", tmp_path / "another host")
    try:
        directory = _brought_back(site, paper, tmp_path)
    finally:
        site.receive()
    with site.running(directory) as instance:
        assert rows(instance, ROWS) == expected


def _brought_back(site: Site, paper: str, tmp_path: Path) -> Path:
    repository = Repository.open(LocalStorage(tmp_path / "another host"))
    assert repository.sources() == ("shop",)
    with KeyRing(tmp_path / "new ring", lambda: "a passphrase of the tests") as ring:
        ring.import_keys(paper)
        now = datetime.now(UTC)
        plan = restore.plan(repository, "shop", RecoveryTarget(), site.place("back"), now=now)
        restore.run(
            plan,
            repository,
            ring=ring,
            binaries=site.binaries,
            account=site.account,
            actor="a stranger",
            now=now,
            observe=silent(),
        )
        area = repository.source("shop")
        verdict = verify.check(area, plan.head.label, ring, now=now, observe=silent())
        assert verdict.reached is Proof.WAL_CONTINUOUS
    return plan.destination
