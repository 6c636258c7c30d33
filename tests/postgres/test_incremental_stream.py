"""`BASE_BACKUP … INCREMENTAL` with a manifest of Seawall's own: prior and runs make the cluster again."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from seawall.codec.runs import run_bytes
from seawall.errors import ClusterError, IncrementalRefused
from seawall.events import Event, Noticed, Observer
from seawall.model import Compression
from seawall.postgres import incremental
from seawall.postgres.incremental import Prior, PriorFile
from seawall.postgres.inspect import inspect
from seawall.postgres.remote import RemoteFiles
from seawall.postgres.stream import BaseBackup, base_backup
from tests.conftest import ClusterMaker, PgCluster

pytestmark = pytest.mark.postgres
_SUMMARIZED = {"summarize_wal": "on"}


@pytest.fixture(params=[17, 18])
def cluster(request: pytest.FixtureRequest, make_cluster: ClusterMaker) -> PgCluster:
    return make_cluster(request.param, tablespace=True, settings=_SUMMARIZED)


@dataclass
class Image:
    """What a streamed backup brought, as a restore would lay it."""

    backup: BaseBackup
    files: dict[str, bytearray] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    partial: dict[str, list[int]] = field(default_factory=dict)
    sent: int = 0

    def prior(self, cluster: PgCluster) -> Prior:
        known = {path: PriorFile(len(content), run_bytes(len(content))) for path, content in self.files.items()}
        identity = inspect(cluster.source).system_identifier
        return Prior(identity, self.backup.timeline, self.backup.start_lsn, self.backup.stop_lsn, known)

    def lay(self, place: Path) -> None:
        for path in self.directories:
            (place / path).mkdir(parents=True, exist_ok=True)
        for path, content in self.files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
        (place / "backup_label").write_text(self.backup.backup_label)


def _take(cluster: PgCluster, before: Image | None = None, **options: object) -> Image:
    prior = before.prior(cluster) if before else None
    with base_backup(cluster.source, "x", prior=prior, randomness=random.Random(1), **options) as backup:  # type: ignore[arg-type]
        image = Image(backup)
        for file in backup.files():
            if file.kind == "directory":
                image.directories.append(file.path)
            elif file.is_partial:
                assert before is not None
                _overlay(image, before, file.path, file.size, file.runs())
            elif file.kind == "file":
                image.files[file.path] = bytearray(b"".join(map(bytes, file.chunks())))
                image.sent += file.size
    return image


def _overlay(image: Image, before: Image, path: str, size: int, runs: Iterator[tuple[int, memoryview]]) -> None:
    length = run_bytes(len(before.files[path]))
    content, touched = bytearray(before.files[path][:size]), []
    for offset, run in runs:
        assert offset % length == 0
        assert len(run) % length == 0 or offset + len(run) == size
        touched += range(offset // length, -(-(offset + len(run)) // length))
        content[offset : offset + len(run)] = run
        image.sent += len(run)
    assert touched == sorted(set(touched))
    assert len(content) == size
    image.files[path], image.partial[path] = content, touched


def _paths(cluster: PgCluster, tables: Sequence[str]) -> dict[str, str]:
    return {table: str(cluster.value(f"SELECT pg_relation_filepath('{table}')")) for table in tables}


def _rows(cluster: PgCluster, tables: Sequence[str]) -> dict[str, object]:
    return {
        table: cluster.query(f"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} t")
        for table in tables
    }


def _fill(cluster: PgCluster) -> None:
    for statement in (
        "CREATE TABLE quiet AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n",
        "CREATE TABLE scattered AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n",
        "CREATE INDEX ON scattered (n)",
        "CREATE TABLE cut AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n",
        "CREATE TABLE emptied AS SELECT n FROM generate_series(1, 5000) n",
        "CREATE TABLE packed AS SELECT n, repeat('x', 100) x FROM generate_series(1, 5000) n",
        "CREATE TABLE gone AS SELECT n FROM generate_series(1, 5000) n",
        "CREATE TABLE far TABLESPACE side AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 9000) n",
        "CREATE UNLOGGED TABLE fleeting AS SELECT n FROM generate_series(1, 5000) n",
        "CREATE DATABASE leaving",
    ):
        cluster.query(statement)
    cluster.query("VACUUM FREEZE")


_TABLES = ("quiet", "scattered", "cut", "emptied", "packed", "far", "fresh")


def _change(cluster: PgCluster) -> None:
    for statement in (
        "UPDATE scattered SET x = 'changed' WHERE n % 1000 = 7",
        "DELETE FROM cut WHERE n > 4000",
        "VACUUM (TRUNCATE) cut",
        "INSERT INTO cut SELECT n, repeat(md5((n * 3)::text), 8) FROM generate_series(4001, 9000) n",
        "TRUNCATE emptied",
        "INSERT INTO emptied VALUES (1)",
        "VACUUM FULL packed",
        "DROP TABLE gone",
        "UPDATE far SET x = 'moved' WHERE n = 5000",
        "CREATE TABLE fresh AS SELECT n FROM generate_series(1, 5000) n",
        "INSERT INTO fleeting VALUES (0)",
        "DROP DATABASE leaving",
        "CREATE DATABASE copied STRATEGY file_copy",
        "CREATE DATABASE logged STRATEGY wal_log",
    ):
        cluster.query(statement)


def test_prior_and_runs_make_the_files_that_a_full_stream_brings(cluster: PgCluster) -> None:
    _fill(cluster)
    full = _take(cluster)
    _change(cluster)
    paths = _paths(cluster, _TABLES)
    cluster.query("CHECKPOINT")
    made = _take(cluster, full)
    again = _take(cluster)
    for table, path in paths.items():
        assert made.files[path] == again.files[path], table
    assert made.partial[paths["quiet"]] == []
    assert paths["scattered"] in made.partial
    assert 0 < len(made.partial[paths["scattered"]]) < len(full.files[paths["scattered"]]) // 16384
    assert paths["fresh"] not in made.partial
    assert not any("_vm" in path or "_fsm" in path for path in made.partial)
    assert made.sent < again.sent


def test_a_cluster_made_of_prior_and_runs_starts_and_has_the_rows(
    cluster: PgCluster, make_cluster: ClusterMaker
) -> None:
    _fill(cluster)
    full = _take(cluster)
    _change(cluster)
    middle = _take(cluster, full)
    cluster.query("UPDATE scattered SET x = 'again' WHERE n % 1500 = 11")
    cluster.query("DELETE FROM quiet WHERE n % 3 = 0")
    cluster.query("VACUUM quiet")
    wanted = _rows(cluster, _TABLES)
    last = _take(cluster, middle)
    cluster.query("SELECT pg_switch_wal()")
    restored = make_cluster.empty(cluster.major)
    last.lay(restored.data)
    side = restored.home / "restored-side"
    shutil.move(restored.data / "pg_tblspc", side)
    (restored.data / "pg_tblspc").mkdir()
    for space in side.iterdir():
        (restored.data / "pg_tblspc" / space.name).symlink_to(space)
    shutil.copytree(cluster.data / "pg_wal", restored.data / "pg_wal", dirs_exist_ok=True)
    restored.data.chmod(0o700)
    for path in restored.home.rglob("*"):
        restored.instance.account.own(path)
    restored.start()
    assert _rows(restored, _TABLES) == wanted
    assert restored.value("SELECT count(*) FROM fleeting") == 0
    assert restored.value("SELECT count(*) FROM pg_class", dbname="copied") > 300
    assert restored.value("SELECT count(*) FROM pg_class", dbname="logged") > 300
    restored.query("CREATE EXTENSION amcheck")
    restored.query("SELECT verify_heapam(c.oid) FROM pg_class c WHERE relkind = 'r'")
    assert restored.query("SELECT * FROM pg_class c, verify_heapam(c.oid) WHERE relkind IN ('r', 't')") == []


def test_blocks_that_no_wal_names_after_a_cut_are_not_taken_from_the_prior(cluster: PgCluster) -> None:
    """A relation that was cut and extended again has empty blocks which summaries do not know."""
    cluster.query("CREATE TABLE grown AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n")
    full = _take(cluster)
    cluster.query("DELETE FROM grown WHERE n > 2000")
    cluster.query("VACUUM (TRUNCATE) grown")
    path = _paths(cluster, ["grown"])["grown"]
    short = int(cluster.value("SELECT pg_relation_size('grown')"))
    cluster.query("CHECKPOINT")
    with (cluster.data / path).open("ab") as file:
        file.write(bytes(40 * 8192))  # as a bulk extension does, whose blocks WAL names only when they are used
    made = _take(cluster, full)
    assert len(full.files[path]) > short + 40 * 8192
    assert made.files[path][short:] == bytes(40 * 8192)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.NONE])
def test_partial_files_come_through_compression(cluster: PgCluster, compression: Compression) -> None:
    cluster.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n")
    cluster.query("VACUUM FREEZE t")
    full = _take(cluster)
    cluster.query("UPDATE t SET x = 'y' WHERE n % 2000 = 0")
    path = _paths(cluster, ["t"])["t"]
    made = _take(cluster, full, compression=compression)
    assert made.partial[path]
    assert made.files[path] == (cluster.data / path).read_bytes()


def test_a_torn_or_bad_page_among_the_changed_ones_is_found(cluster: PgCluster) -> None:
    cluster.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 20000) n")
    full = _take(cluster)
    cluster.query("UPDATE t SET x = 'y' WHERE n = 2")
    cluster.query("CHECKPOINT")
    path = _paths(cluster, ["t"])["t"]
    with (cluster.data / path).open("r+b") as file:
        file.seek(4000)
        file.write(b"\1\1\1")
    assert _take(cluster, full).backup.bad_pages == {path: (0,)}


def test_a_server_that_does_not_summarize_refuses_and_a_full_stream_works(make_cluster: ClusterMaker) -> None:
    cluster = make_cluster(17)
    full = _take(cluster)
    with pytest.raises(IncrementalRefused, match="summarize"):
        _take(cluster, full)
    assert _take(cluster).files


def test_a_server_before_17_refuses_before_it_is_asked(cluster15: PgCluster) -> None:
    full = _take(cluster15)
    with pytest.raises(IncrementalRefused, match="15"):
        _take(cluster15, full)


def test_missing_summaries_are_a_refusal_that_names_them(cluster: PgCluster) -> None:
    full = _take(cluster)
    cluster.query("CREATE TABLE t AS SELECT 1 n")
    cluster.query("CHECKPOINT")
    cluster.wait(f"(SELECT summarized_lsn FROM pg_get_wal_summarizer_state()) > '{full.backup.stop_lsn}'")
    for summary in (cluster.data / "pg_wal" / "summaries").iterdir():
        summary.unlink()
    with pytest.raises(IncrementalRefused, match="summar"):
        _take(cluster, full)


def test_a_prior_of_another_cluster_or_timeline_is_refused(cluster: PgCluster) -> None:
    full = _take(cluster)
    prior = full.prior(cluster)
    for wrong in (replace(prior, system_identifier=7), replace(prior, timeline=2)):
        with pytest.raises(IncrementalRefused):
            base_backup(cluster.source, "x", prior=wrong)


def test_a_role_that_cannot_complete_runs_is_refused_an_incremental(cluster: PgCluster) -> None:
    full = _take(cluster)
    cluster.query("CREATE ROLE copier LOGIN REPLICATION")
    source = replace(cluster.source, conninfo=re.sub(r"user=\S+", "user=copier", cluster.source.conninfo))
    with pytest.raises(IncrementalRefused, match="pg_read_binary_file"):
        base_backup(source, "x", prior=full.prior(cluster))
    cluster.query("GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean) TO copier")
    with base_backup(source, "x", prior=full.prior(cluster)) as backup:
        assert any(file.is_partial for file in backup.files())


def test_summaries_that_miss_a_change_are_caught_and_nothing_they_say_is_used(
    cluster: PgCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.query("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 8) x FROM generate_series(1, 40000) n")
    full = _take(cluster)
    cluster.query("UPDATE t SET x = x || 'y'")
    path = _paths(cluster, ["t"])["t"]
    real = incremental.changed_blocks

    def forgetful(*words: object, **named: object) -> object:
        changes = real(*words, **named)  # type: ignore[arg-type]
        kept = {fork: found for fork, found in changes.forks.items() if fork.relfilenode != int(path.split("/")[-1])}
        return replace(changes, forks=kept)

    monkeypatch.setattr(incremental, "changed_blocks", forgetful)
    heard: list[Event] = []
    with pytest.raises(IncrementalRefused, match=path):
        _take(cluster, full, observe=Observer(heard.append))
    assert [event.severity for event in heard if isinstance(event, Noticed)] == ["critical"]


def test_remote_files_give_what_lies_there_and_say_what_is_gone(cluster: PgCluster) -> None:
    files = RemoteFiles(cluster.source)
    try:
        content = (cluster.data / "PG_VERSION").read_bytes()
        assert files.read("PG_VERSION", [(0, 2), (1, 100), (500, 3)]) == [content[:2], content[1:], b""]
        assert files.read("base/1/99999999", [(0, 8192)]) == [None]
    finally:
        files.close()


def test_a_stream_that_sends_parts_of_an_unknown_file_is_refused(cluster: PgCluster) -> None:
    full = _take(cluster)
    prior = full.prior(cluster)

    class Forgetting(dict[str, PriorFile]):
        def get(self, key: str, default: object = None) -> None:  # type: ignore[override]
            return None

    with (
        base_backup(cluster.source, "x", prior=replace(prior, files=Forgetting(prior.files))) as backup,
        pytest.raises(ClusterError, match="no such file"),
    ):
        list(backup.files())
