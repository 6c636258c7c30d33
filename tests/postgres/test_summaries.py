"""WAL summaries against what really changed in the files: nothing that changed may be missing from the claims."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seawall.errors import Cancelled, IncrementalRefused
from seawall.events import Observer, silent
from seawall.postgres.connect import connect
from seawall.postgres.inspect import inspect
from seawall.postgres.pages import page_lsn
from seawall.postgres.scan import CopyEntry, scan
from seawall.postgres.session import BackupSession, StartInfo
from seawall.postgres.summaries import (
    BlockChanges,
    RelationFork,
    SampledFile,
    WalChanges,
    changed_blocks,
    covered_to,
    cross_check,
    is_missed,
)
from seawall.wal import Lsn
from tests.conftest import ClusterMaker, PgCluster

pytestmark = pytest.mark.postgres
_BLOCK = 8192


@pytest.fixture(params=[17, 18])
def cluster(request: pytest.FixtureRequest, make_cluster: ClusterMaker) -> PgCluster:
    return make_cluster(request.param, tablespace=True, settings={"summarize_wal": "on"})


def _look(cluster: PgCluster, keep: Path | None = None) -> tuple[StartInfo, dict[str, CopyEntry]]:
    """Begin a backup, list the files, perhaps keep them as they are, and end it."""
    with BackupSession(cluster.source, "x") as session:
        started = session.start()
        listed = {entry.path: entry for entry in scan(cluster.data, inspect(cluster.source)).files if entry.is_relation}
        if keep is not None:
            for entry in listed.values():
                target = keep / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(entry.absolute, target)
        session.stop()
    return started, listed


def _changes(cluster: PgCluster, prior: StartInfo, new: StartInfo) -> WalChanges:
    with connect(cluster.source) as session:
        return changed_blocks(session, prior.lsn, new.lsn, new.timeline, observe=silent())


def _work(cluster: PgCluster, chance: random.Random) -> None:
    statements = [
        "INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 500) n",
        "UPDATE rows SET x = x || 'u' WHERE n % 97 = 3",
        "DELETE FROM rows WHERE n % 5 = 1",
        "VACUUM (TRUNCATE) rows",
        "VACUUM FULL rows",
        "VACUUM FREEZE rows",
        "CLUSTER rows USING rows_n",
        "TRUNCATE rows",
        "REINDEX TABLE rows",
        "CREATE TABLE IF NOT EXISTS made AS SELECT n FROM generate_series(1, 3000) n",
        "DROP TABLE IF EXISTS made",
        "ALTER TABLE rows SET TABLESPACE side",
        "ALTER TABLE rows SET TABLESPACE pg_default",
        "ALTER TABLE fleeting SET LOGGED",
        "ALTER TABLE fleeting SET UNLOGGED",
        "DELETE FROM tail WHERE n > 1000",
        "VACUUM (TRUNCATE) tail",
        "INSERT INTO tail SELECT n, md5(n::text) FROM generate_series(1001, 6000) n",
        "CREATE DATABASE copied STRATEGY file_copy",
        "CREATE DATABASE logged STRATEGY wal_log",
        "CHECKPOINT",
        "SELECT count(*) FROM rows",
    ]
    for statement in chance.choices(statements, k=12):
        if statement.startswith("CREATE DATABASE"):
            cluster.query(f"DROP DATABASE IF EXISTS {statement.split()[2]}")
        cluster.query(statement)


@pytest.mark.parametrize("seed", range(4))
def test_no_block_changes_without_a_claim(cluster: PgCluster, tmp_path: Path, seed: int) -> None:
    for statement in (
        "CREATE TABLE rows AS SELECT n, md5(n::text) x FROM generate_series(1, 20000) n",
        "CREATE INDEX rows_n ON rows (n)",
        "CREATE TABLE tail AS SELECT n, md5(n::text) x FROM generate_series(1, 6000) n",
        "CREATE UNLOGGED TABLE fleeting AS SELECT n FROM generate_series(1, 3000) n",
    ):
        cluster.query(statement)
    prior, before = _look(cluster, keep=tmp_path / "before")
    _work(cluster, random.Random(seed))
    new, after = _look(cluster, keep=tmp_path / "after")
    changes = _changes(cluster, prior, new)
    claimed_nothing_of = 0
    for path, entry in after.items():
        claims = changes.runs(path, entry.size, first_block=entry.first_block, block_bytes=_BLOCK, run_bytes=_BLOCK)
        if claims is None or path not in before:
            continue
        old, now = (tmp_path / "before" / path).read_bytes(), (tmp_path / "after" / path).read_bytes()
        for block in np.flatnonzero(~claims):
            at = int(block) * _BLOCK
            page = now[at : at + _BLOCK]
            if at < len(old) and page and page != old[at : at + _BLOCK]:
                assert page_lsn(page) >= new.lsn, f"{path} block {block}"
        claimed_nothing_of += not claims.any()
    assert claimed_nothing_of > 100


def test_claims_name_the_block_that_changed_and_few_others(cluster: PgCluster) -> None:
    cluster.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n")
    cluster.query("VACUUM FREEZE t")
    path = str(cluster.value("SELECT pg_relation_filepath('t')"))
    prior, listed = _look(cluster)
    cluster.query("UPDATE t SET x = 'y' WHERE n = 10000")
    block = int(str(cluster.value("SELECT ctid FROM t WHERE n = 9999")).strip("()").split(",")[0])
    new, _ = _look(cluster)
    claims = _changes(cluster, prior, new).runs(
        path, listed[path].size, first_block=0, block_bytes=_BLOCK, run_bytes=2 * _BLOCK
    )
    assert claims is not None
    assert claims[block // 2]
    assert 1 <= claims.sum() <= 2


def test_databases_made_meanwhile_are_claimed_whole(cluster: PgCluster) -> None:
    prior, _ = _look(cluster)
    for strategy in ("file_copy", "wal_log"):
        cluster.query(f"CREATE DATABASE by_{strategy} STRATEGY {strategy}")
    new, listed = _look(cluster)
    changes = _changes(cluster, prior, new)
    made = cluster.query("SELECT oid FROM pg_database WHERE datname LIKE 'by%'")
    for (oid,) in made:
        paths = [path for path in listed if path.startswith(f"base/{oid}/")]
        assert len(paths) > 200
        assert all(
            changes.runs(path, listed[path].size, first_block=0, block_bytes=_BLOCK, run_bytes=_BLOCK) is None
            for path in paths
        )


def test_a_server_without_a_summarizer_is_refused_at_once(make_cluster: ClusterMaker, cluster15: PgCluster) -> None:
    cluster = make_cluster(18)
    prior, _ = _look(cluster)
    cluster.query("CREATE TABLE t AS SELECT 1 n")
    new, _ = _look(cluster)
    with pytest.raises(IncrementalRefused, match="no summarizer runs"):
        _changes(cluster, prior, new)
    old, _ = _look(cluster15)
    with pytest.raises(IncrementalRefused, match="before PostgreSQL 17"):
        _changes(cluster15, old, old)


def test_summaries_that_were_removed_are_noticed_at_once(cluster: PgCluster) -> None:
    prior, _ = _look(cluster)
    cluster.query("CREATE TABLE t AS SELECT 1 n")
    middle, _ = _look(cluster)
    _changes(cluster, prior, middle)
    for summary in (cluster.data / "pg_wal" / "summaries").iterdir():
        summary.unlink()
    cluster.query("INSERT INTO t VALUES (2)")
    new, _ = _look(cluster)
    with pytest.raises(IncrementalRefused, match="is not summarized"):
        _changes(cluster, prior, new)
    assert _changes(cluster, middle, new).forks


def test_waiting_for_a_summarizer_ends_when_somebody_asks(cluster: PgCluster) -> None:
    prior, _ = _look(cluster)
    observe = Observer()
    observe.cancel.set()
    with connect(cluster.source) as session, pytest.raises(Cancelled):
        changed_blocks(session, prior.lsn, prior.lsn + (1 << 30), 1, observe=observe)


def test_a_summarizer_that_stands_still_is_given_up(cluster: PgCluster) -> None:
    prior, _ = _look(cluster)
    with connect(cluster.source) as session, pytest.raises(IncrementalRefused, match="is not summarized"):
        changed_blocks(session, prior.lsn, prior.lsn + (1 << 30), 1, observe=silent(), patience_seconds=0.3)


def test_a_sample_finds_what_summaries_forgot_and_nothing_else(cluster: PgCluster) -> None:
    cluster.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n")
    prior, listed = _look(cluster)
    cluster.query("UPDATE t SET x = x || 'y'")
    new, _ = _look(cluster)
    changes = _changes(cluster, prior, new)
    path = str(cluster.value("SELECT pg_relation_filepath('t')"))
    forgetful = replace(changes, forks={fork: v for fork, v in changes.forks.items() if fork != RelationFork.at(path)})
    files = [SampledFile(entry.path, entry.size, _BLOCK, entry.first_block) for entry in listed.values()]

    def read(path: str, offset: int, length: int) -> bytes | None:
        content = (cluster.data / path).read_bytes() if (cluster.data / path).exists() else None
        return None if content is None else content[offset : offset + length]

    def sampled(found: WalChanges) -> tuple[str, int] | None:
        return cross_check(found, lambda: files, read, block_bytes=_BLOCK, runs=200, randomness=random.Random(3))

    assert sampled(changes) is None
    missed = sampled(forgetful)
    assert missed is not None
    assert missed[0] == path


def test_relation_forks_are_known_by_their_paths() -> None:
    assert RelationFork.at("global/1262") == RelationFork(1664, 0, 1262)
    assert RelationFork.at("base/5/16384.3") == RelationFork(1663, 5, 16384)
    assert RelationFork.at("pg_tblspc/16400/PG_18_202506291/5/16401") == RelationFork(16400, 5, 16401)
    for other in ("base/5/16384_vm", "base/5/16384_fsm", "base/5/16384_init", "global/pg_control", "base/5/PG_VERSION"):
        assert RelationFork.at(other) is None


def test_runs_of_later_files_of_a_relation_count_from_their_own_beginning() -> None:
    fork = RelationFork(1663, 5, 16384)
    changed = np.array([3, 131072 + 5, 131072 + 9], dtype=np.uint32)
    changes = WalChanges(Lsn(1), Lsn(2), {fork: BlockChanges(131072 + 40, changed)})
    first = changes.runs("base/5/16384", 1 << 30, first_block=0, block_bytes=_BLOCK, run_bytes=4 * _BLOCK)
    second = changes.runs("base/5/16384.1", 48 * _BLOCK, first_block=131072, block_bytes=_BLOCK, run_bytes=4 * _BLOCK)
    assert first is not None
    assert second is not None
    assert list(np.flatnonzero(first)) == [0]
    assert list(np.flatnonzero(second)) == [1, 2, 10, 11]
    assert changes.runs("base/5/16384.2", _BLOCK, first_block=262144, block_bytes=_BLOCK, run_bytes=_BLOCK) is None


def test_a_gap_ends_what_ranges_cover() -> None:
    ranges = [(Lsn(0), Lsn(10)), (Lsn(10), Lsn(20)), (Lsn(25), Lsn(30))]
    assert covered_to(ranges, Lsn(5)) == Lsn(20)
    assert covered_to(ranges[1:], Lsn(5)) == Lsn(5)
    assert covered_to([], Lsn(5)) == Lsn(5)


@pytest.mark.parametrize(("lsn", "missed"), [(9, False), (10, True), (19, True), (20, False), (0, False)])
def test_only_a_page_that_wal_in_between_changed_was_missed(lsn: int, missed: bool) -> None:
    page = lsn.to_bytes(8, "little")[4:] + lsn.to_bytes(8, "little")[:4] + bytes(_BLOCK - 8)
    assert is_missed(bytes(_BLOCK) + page, Lsn(10), Lsn(20), _BLOCK) is missed
