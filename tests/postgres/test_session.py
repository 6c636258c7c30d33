"""The session of a low-level backup on real servers."""

from __future__ import annotations

import time

import pytest

from seawall.errors import ClusterError, PrivilegeMissing, ServerUnreachable, UsageError
from seawall.postgres.session import BackupSession, switch_wal
from seawall.settings import SourceSettings
from seawall.wal import Lsn, Segment

pytestmark = pytest.mark.postgres


def as_role(cluster, role: str) -> SourceSettings:
    return SourceSettings("main", cluster.instance.conninfo.replace("user=postgres", f"user={role}"))


def test_a_backup_says_where_it_starts_and_stops_and_what_its_label_is(each_cluster):
    with BackupSession(each_cluster.source, "tonight's backup – ünïcode") as session:
        started = session.start()
        session.check()
        each_cluster.query("CREATE TABLE IF NOT EXISTS between_start_and_stop (i int)")
        stopped = session.stop()
    assert (started.timeline, started.in_recovery) == (1, False)
    assert started.lsn < stopped.lsn
    assert started.started_at < stopped.stopped_at
    first = Segment.containing(started.lsn, 1).name
    assert f"START WAL LOCATION: {started.lsn} (file {first})" in stopped.backup_label
    assert "LABEL: tonight's backup – ünïcode\n" in stopped.backup_label
    assert str(each_cluster.home / "side") in stopped.tablespace_map


def test_without_tablespaces_there_is_no_map(make_cluster):
    cluster = make_cluster(18)
    with BackupSession(cluster.source, "x") as session:
        session.start()
        assert session.stop().tablespace_map == ""


def test_stopping_completes_the_segment_so_that_it_can_be_archived(make_cluster):
    cluster = make_cluster(17)
    with BackupSession(cluster.source, "x") as session:
        session.start()
        stopped = session.stop()
    last = Segment.ending_at(stopped.lsn, 1)
    now = Lsn.parse(cluster.value("SELECT pg_current_wal_lsn()::text"))
    assert now >= last.end


def test_leaving_without_stop_abandons_the_backup_and_leaves_nothing_in_the_data_directory(cluster18):
    with BackupSession(cluster18.source, "x") as session:
        session.start()
    cluster18.wait("count(*) = 0 FROM pg_stat_activity WHERE application_name = 'seawall backup'")
    assert not (cluster18.data / "backup_label").exists()


def test_several_backups_run_at_once(cluster18):
    with BackupSession(cluster18.source, "a") as one, BackupSession(cluster18.source, "b") as two:
        one.start()
        two.start()
        assert "LABEL: b\n" in two.stop().backup_label
        assert "LABEL: a\n" in one.stop().backup_label


def test_a_lost_session_is_noticed_by_the_keepalive_and_voids_the_backup(cluster18):
    with BackupSession(cluster18.source, "x", keepalive_seconds=0.05) as session:
        session.start()
        cluster18.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'seawall backup'"
        )
        end = time.monotonic() + 60
        with pytest.raises(ServerUnreachable, match="the backup's session was lost"):
            while time.monotonic() < end:
                session.check()
                time.sleep(0.02)
        with pytest.raises(ServerUnreachable, match="session was lost"):
            session.stop()


def test_a_session_lost_between_two_keepalives_is_noticed_at_the_stop(cluster18):
    with BackupSession(cluster18.source, "x") as session:
        session.start()
        cluster18.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'seawall backup'"
        )
        with pytest.raises(ServerUnreachable):
            session.stop()


def test_a_session_outlives_the_time_outs_that_applications_get(make_cluster):
    cluster = make_cluster(18, settings={"idle_session_timeout": "200ms", "statement_timeout": "200ms"})
    with BackupSession(cluster.source, "x") as session:
        session.start()
        time.sleep(0.6)
        session.stop()


def test_a_standby_can_be_backed_up(make_cluster):
    primary = make_cluster(17)
    standby = make_cluster.standby(primary)
    with BackupSession(standby.source, "from the standby") as session:
        started = session.start()
        stopped = session.stop()
    assert started.in_recovery
    assert "BACKUP FROM: standby" in stopped.backup_label
    assert started.lsn <= stopped.lsn


def test_a_standby_promoted_meanwhile_voids_the_backup(make_cluster):
    standby = make_cluster.standby(make_cluster(15))
    with BackupSession(standby.source, "x") as session:
        session.start()
        standby.query("SELECT pg_promote()")
        with pytest.raises(ClusterError, match="promoted"):
            session.stop()


def test_after_a_promotion_the_new_timeline_is_said(make_cluster):
    standby = make_cluster.standby(make_cluster(18))
    standby.query("SELECT pg_promote()")
    with BackupSession(standby.source, "x") as session:
        assert session.start().timeline == 2
        assert "START TIMELINE: 2" in session.stop().backup_label


def test_a_role_with_the_documented_grants_suffices_and_one_without_is_refused(make_cluster):
    cluster = make_cluster(15)
    cluster.query("CREATE ROLE backup LOGIN")
    with (
        BackupSession(as_role(cluster, "backup"), "x") as session,
        pytest.raises(PrivilegeMissing, match="pg_backup_start"),
    ):
        session.start()
    for function in ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_switch_wal()"):
        cluster.query(f"GRANT EXECUTE ON FUNCTION {function} TO backup")
    with BackupSession(as_role(cluster, "backup"), "x") as session:
        assert session.start().timeline == 1
        assert session.stop().backup_label
    assert switch_wal(as_role(cluster, "backup")) > Lsn(0)


@pytest.mark.parametrize("label", ["two\nlines", "x" * 1024, "nul\0"])
def test_a_label_that_the_file_cannot_carry_is_refused_before_anything_happens(cluster18, label):
    with pytest.raises(UsageError):
        BackupSession(cluster18.source, label)


def test_switching_wal_closes_the_segment_once(make_cluster):
    cluster = make_cluster(18)
    cluster.query("CREATE TABLE t (i int)")
    end = switch_wal(cluster.source)
    assert Lsn.parse(cluster.value("SELECT pg_current_wal_lsn()::text")).value % (16 << 20) <= 0x100
    assert switch_wal(cluster.source) >= end


def test_switching_wal_on_a_standby_is_refused(make_cluster):
    standby = make_cluster.standby(make_cluster(18))
    with pytest.raises(ClusterError, match="recovery is in progress"):
        switch_wal(standby.source)
