"""What of a data directory is copied, on real clusters and on directories made up to be awkward."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from seawall.errors import ClusterError, ClusterMismatch, PrivilegeMissing
from seawall.postgres.control import read_control
from seawall.postgres.inspect import inspect
from seawall.postgres.pages import PageChecker
from seawall.postgres.scan import CopyPlan, is_left_out, relation_block, scan, walk

pytestmark = pytest.mark.postgres


def paths(plan: CopyPlan) -> set[str]:
    return {entry.path for entry in plan.entries}


def entry(plan: CopyPlan, path: str):
    return next(found for found in plan.entries if found.path == path)


def relation_path(cluster, name: str) -> str:
    return cluster.value(f"SELECT pg_relation_filepath('{name}')")


def test_a_backup_has_what_postgresql_needs_and_not_what_it_makes_anew(each_cluster):
    each_cluster.query("SELECT pg_create_physical_replication_slot('scan_slot', true)")
    try:
        plan = scan(each_cluster.data, inspect(each_cluster.source))
    finally:
        each_cluster.query("SELECT pg_drop_replication_slot('scan_slot')")
    found = paths(plan)
    assert {"PG_VERSION", "global/pg_control", "postgresql.conf", "pg_hba.conf", "pg_xact/0000", "base/1"} <= found
    emptied = ("pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
    for directory in emptied:
        assert entry(plan, directory).kind == "directory"
        assert not any(path.startswith(f"{directory}/") for path in found)
    assert {path for path in found if path.startswith("pg_wal/")} <= {"pg_wal/archive_status", "pg_wal/summaries"}
    assert "pg_wal/archive_status" in found
    assert not found & {"postmaster.pid", "postmaster.opts"}
    assert not any("pg_internal.init" in path for path in found)


def test_entries_are_sorted_say_their_size_and_are_the_same_when_walked(cluster18):
    plan = scan(cluster18.data)
    assert [e.path for e in plan.entries] == sorted(e.path for e in plan.entries)
    assert plan.total_bytes == sum(e.size for e in plan.files) > 5_000_000
    assert {e.path for e in walk(cluster18.data)} == paths(plan)
    assert entry(plan, "global/pg_control").is_control
    assert entry(plan, "PG_VERSION").absolute.read_text() == "18\n"


def test_every_page_of_a_real_cluster_has_the_checksum_that_we_compute(each_cluster):
    each_cluster.fill(f"checked_{each_cluster.major}", 3)
    each_cluster.query("CHECKPOINT")
    plan, checker, pages = scan(each_cluster.data), PageChecker(), 0
    for found in plan.files:
        if found.is_relation:
            data = found.absolute.read_bytes()
            assert checker.check(data, found.first_block) == [], found.path
            pages += len(data) // 8192
    assert pages > 1000


def test_a_bit_flipped_in_a_real_relation_is_named_by_its_block(make_cluster):
    cluster = make_cluster(15)
    cluster.fill("t", 2)
    path = cluster.data / relation_path(cluster, "t")
    cluster.stop()
    with path.open("r+b") as file:
        file.seek(77 * 8192 + 4000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    assert PageChecker().check(path.read_bytes(), 0) == [77]


def test_files_after_the_first_gigabyte_count_their_blocks_on():
    assert relation_block("base/5/16384") == 0
    assert relation_block("base/5/16384.3") == 3 * 131072
    assert relation_block("base/5/16384_vm.1") == 131072
    assert relation_block("pg_tblspc/16400/PG_18_202506291/5/2619_fsm") == 0
    assert relation_block("global/1262") == 0
    for path in ("base/5/PG_VERSION", "global/pg_filenode.map", "pg_xact/0000", "base/5/16384.x", "x/base/5/1"):
        assert relation_block(path) is None


def test_unlogged_relations_leave_their_init_forks_only(each_cluster):
    each_cluster.query("DROP TABLE IF EXISTS unlogged_one")
    each_cluster.query("CREATE UNLOGGED TABLE unlogged_one (id int PRIMARY KEY, t text)")
    each_cluster.query("INSERT INTO unlogged_one SELECT n, 'x' FROM generate_series(1, 5000) n")
    each_cluster.query("VACUUM unlogged_one")
    each_cluster.query("CHECKPOINT")
    table, index = relation_path(each_cluster, "unlogged_one"), relation_path(each_cluster, "unlogged_one_pkey")
    assert (each_cluster.data / f"{table}_fsm").exists(), "the test needs a fork to leave out"
    found = paths(scan(each_cluster.data))
    assert {f"{table}_init", f"{index}_init"} <= found
    assert not found & {table, index, f"{table}_fsm", f"{table}_vm"}


def test_temporary_relations_and_files_are_left_out(each_cluster):
    with each_cluster.instance.connect() as session:
        session.execute("CREATE TEMPORARY TABLE mine AS SELECT * FROM generate_series(1, 10000)")
        (path,) = session.execute("SELECT pg_relation_filepath('mine')").fetchone()
        assert (each_cluster.data / path).exists()
        assert path not in paths(scan(each_cluster.data))
    for path in ("base/pgsql_tmp/pgsql_tmp1.0", "base/5/t3_16384", "base/5/t3_16384_fsm", "base/5/t3_16384.1"):
        assert is_left_out(path)
    assert not is_left_out("stray/t3_16384"), "only PostgreSQL's own directories have temporary relations"


def test_tablespaces_come_as_a_link_and_the_files_of_this_version_alone(each_cluster):
    each_cluster.query("DROP TABLE IF EXISTS aside")
    each_cluster.query("CREATE TABLE aside TABLESPACE side AS SELECT 1 AS n")
    relation = relation_path(each_cluster, "aside")
    oid = each_cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'side'")
    foreign = each_cluster.home / "side" / "PG_9.6_201608131"
    foreign.mkdir(exist_ok=True)
    (foreign / "1").write_text("of another cluster")

    plan = scan(each_cluster.data)

    link = entry(plan, f"pg_tblspc/{oid}")
    assert (link.kind, link.link) == ("link", str(each_cluster.home / "side"))
    found = entry(plan, relation)
    assert found.path.startswith(f"pg_tblspc/{oid}/PG_{each_cluster.major}_")
    assert found.is_relation and found.absolute.stat().st_size == found.size
    assert not any("PG_9.6" in path for path in paths(plan))


def test_a_tablespace_inside_the_data_directory_is_copied_once(make_cluster):
    cluster = make_cluster(18)
    place = cluster.data / "inside"
    place.mkdir(mode=0o700)
    cluster.instance.account.own(place)
    cluster.query(f"CREATE TABLESPACE inside LOCATION '{place}'")
    cluster.query("CREATE TABLE t TABLESPACE inside AS SELECT 1")
    found = paths(scan(cluster.data))
    assert relation_path(cluster, "t") in found
    assert not any(path.startswith("inside") for path in found)


def test_foreign_files_with_any_utf8_name_are_copied(make_cluster):
    cluster = make_cluster(18, start=False)
    for name in ("café au lait.txt", "two  spaces", "-dash", "#hash", "日本語", "quote'\"", "back\\slash"):
        (cluster.data / name).write_text(name)
    (cluster.data / "notes" / "deep").mkdir(parents=True)
    (cluster.data / "notes" / "deep" / "postmaster.pid").write_text("not ours to judge")
    plan = scan(cluster.data)
    assert {"café au lait.txt", "two  spaces", "日本語", "notes/deep/postmaster.pid"} <= paths(plan)
    assert plan.left_out == ()


def test_what_no_backup_can_carry_is_named(make_cluster):
    cluster = make_cluster(18, start=False)
    (cluster.data / os.fsdecode(b"latin-\xe9")).write_text("x")
    (cluster.data / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(cluster.data / "a.socket"))
        plan = scan(cluster.data)
    reasons = {os.fsencode(path): reason for path, reason in plan.left_out}
    assert set(reasons) == {b"latin-\xe9", b"dangling", b"a.socket"}
    assert not {"dangling", "a.socket"} & paths(plan)


def test_linked_configuration_is_copied_as_the_file_it_is(make_cluster):
    cluster = make_cluster(18, start=False)
    outside = cluster.home / "outside.conf"
    (cluster.data / "postgresql.conf").rename(outside)
    (cluster.data / "postgresql.conf").symlink_to(outside)
    found = entry(scan(cluster.data), "postgresql.conf")
    assert (found.kind, found.link, found.size) == ("file", str(outside), outside.stat().st_size)


def test_a_moved_pg_wal_is_a_directory_and_a_foreign_linked_directory_stays_a_link(make_cluster):
    cluster = make_cluster(18, start=False)
    for name in ("pg_wal", "pg_xact"):
        (cluster.data / name).rename(cluster.home / name)
        (cluster.data / name).symlink_to(cluster.home / name)
    (cluster.data / "everything").symlink_to("/")
    plan = scan(cluster.data)
    assert entry(plan, "pg_wal").kind == entry(plan, "pg_xact").kind == "directory"
    assert "pg_xact/0000" in paths(plan)
    assert entry(plan, "everything").kind == "link"
    assert not any(path.startswith("everything/") for path in paths(plan))
    assert [path for path, _ in plan.left_out] == ["everything"]


def test_signal_files_and_old_labels_do_not_come_along(make_cluster):
    cluster = make_cluster(18, start=False)
    names = ("standby.signal", "recovery.signal", "backup_label", "tablespace_map", "backup_manifest")
    for name in names:
        (cluster.data / name).write_text("")
    assert not set(names) & paths(scan(cluster.data))


def test_files_that_vanish_while_listed_are_no_error(make_cluster):
    cluster = make_cluster(18)
    for n in range(20):
        cluster.query(f"CREATE TABLE vanishing_{n} (i int)")
    found = []
    for number, seen in enumerate(walk(cluster.data)):
        found.append(seen.path)
        if number == 5:
            cluster.query("CREATE DATABASE short_lived STRATEGY file_copy")
            cluster.query("DROP DATABASE short_lived")
            for n in range(20):
                cluster.query(f"DROP TABLE vanishing_{n}")
            cluster.query("CHECKPOINT")
    assert "global/pg_control" in found


def test_a_data_directory_of_another_cluster_is_refused(make_cluster, cluster18):
    other = make_cluster(18, fresh=True, start=False)
    with pytest.raises(ClusterMismatch, match=str(read_control(other.data).system_identifier)):
        scan(other.data, inspect(cluster18.source))


def test_what_is_no_data_directory_is_refused(tmp_path: Path):
    with pytest.raises(ClusterError):
        scan(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_closed_directory_is_named(make_cluster):
    cluster = make_cluster(18, start=False)
    (cluster.data / "base").chmod(0)
    try:
        with pytest.raises(PrivilegeMissing, match="base"):
            scan(cluster.data)
    finally:
        (cluster.data / "base").chmod(0o700)


def test_pg_control_says_what_the_server_says(each_cluster):
    control = read_control(each_cluster.data)
    names = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
             "max_locks_per_transaction")  # fmt: skip
    assert dict(control.minimums) == {name: int(each_cluster.value(f"SHOW {name}")) for name in names}
    assert str(control.checkpoint_lsn) == each_cluster.value("SELECT checkpoint_lsn::text FROM pg_control_checkpoint()")
    assert control.catalog_version == each_cluster.value("SELECT catalog_version_no FROM pg_control_system()")
    assert control.state.name == "IN_PRODUCTION"


def test_pg_control_is_never_read_in_halves_while_checkpoints_run(cluster18):
    with cluster18.instance.connect() as session:
        for _ in range(20):
            session.execute("CHECKPOINT")
            assert read_control(cluster18.data).checksums
