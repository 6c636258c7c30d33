"""Servers that Seawall starts: they come up, tell why not, and never stay behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from seawall.errors import PrivilegeMissing, ServerFailed, ServerUnreachable, UsageError
from seawall.postgres.binaries import find
from seawall.postgres.instance import Instance, free_port, scratch

pytestmark = pytest.mark.postgres


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return gone(pid)


def test_a_new_cluster_starts_serves_and_stops(each_major, make_cluster, servers_account):
    cluster = make_cluster.empty(each_major)
    instance = cluster.instance
    assert not instance.is_running()
    instance.initdb(["--wal-segsize=1"], checksums=False)
    instance.start(options={"fsync": "off"})
    pid = instance.pid()
    assert instance.is_running() and instance.is_ready()
    assert Path(f"/proc/{pid}").stat().st_uid == servers_account.uid != 0
    with instance.connect() as session:
        assert session.execute("SHOW wal_segment_size").fetchone() == ("1MB",)
        assert session.execute("SHOW data_checksums").fetchone() == ("off",)
    instance.stop()
    assert wait_gone(pid) and instance.pid() is None
    instance.stop()


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_every_way_to_stop_ends_the_server(make_cluster, mode):
    cluster = make_cluster(18)
    pid = cluster.instance.pid()
    cluster.stop(mode)
    assert wait_gone(pid)


def test_an_unknown_way_to_stop_is_refused(cluster18):
    with pytest.raises(UsageError, match="brutal"):
        cluster18.instance.stop("brutal")


def test_a_server_that_does_not_start_quotes_its_log(make_cluster):
    cluster = make_cluster(18, start=False)
    with pytest.raises(ServerFailed, match="unrecognized configuration parameter"):
        cluster.start({"no_such_setting": "1"})
    assert not cluster.instance.is_running()


def test_the_log_of_an_earlier_start_is_not_taken_for_this_ones(make_cluster):
    cluster = make_cluster(18, start=False)
    with pytest.raises(ServerFailed):
        cluster.instance.start(options={"no_such_setting": "1"})
    cluster.start()
    assert "no_such_setting" not in cluster.instance.log_tail()
    assert "ready to accept connections" in cluster.instance.log_tail()
    assert "no_such_setting" in cluster.instance.log.read_text()


def test_a_second_server_on_the_same_directory_is_refused(cluster18):
    other = Instance(cluster18.data, cluster18.instance.binaries, cluster18.instance.account)
    with pytest.raises(ServerFailed, match="already runs"):
        other.start()


def test_a_busy_port_is_told_from_the_log(make_cluster):
    cluster = make_cluster(18, start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerFailed, match="Address already in use"):
            cluster.instance.start(taken.getsockname()[1], {"unix_socket_directories": ""})


def test_a_leftover_pid_file_of_a_killed_server_is_not_believed(make_cluster):
    cluster = make_cluster(18)
    os.kill(cluster.instance.pid(), signal.SIGKILL)
    end = time.monotonic() + 60
    while cluster.instance.is_running():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert (cluster.data / "postmaster.pid").exists()
    assert not cluster.instance.is_ready()
    cluster.stop()
    cluster.start()
    assert cluster.value("SELECT 1") == 1


def test_the_socket_of_a_killed_server_goes_when_it_is_stopped_and_another_servers_stays(make_cluster):
    cluster = make_cluster()
    instance = cluster.instance
    socket_file = cluster.home / f".s.PGSQL.{instance.port}"
    other = cluster.home / ".s.PGSQL.1.lock"
    other.write_text("1\n")
    os.kill(instance.pid(), signal.SIGKILL)
    assert wait_gone(int((cluster.data / "postmaster.pid").read_text().split()[0]))
    assert socket_file.exists()
    instance.stop()
    assert not socket_file.exists()
    assert not socket_file.with_name(f"{socket_file.name}.lock").exists()
    assert other.exists()


def test_a_connection_string_carries_spaces_and_quotes(tmp_path, servers_account):
    instance = Instance(tmp_path / "data", find(18), servers_account, user="it's a \\ boss")
    instance.port, instance._host = 5433, "/run/my sockets"
    assert conninfo_to_dict(instance.conninfo) == {
        "host": "/run/my sockets",
        "port": "5433",
        "user": "it's a \\ boss",
        "dbname": "postgres",
    }


def test_a_pid_that_belongs_to_somebody_else_by_now_is_never_signalled(make_cluster):
    cluster = make_cluster(18, start=False)
    with subprocess.Popen(["sleep", "60"], cwd="/") as bystander:
        (cluster.data / "postmaster.pid").write_text(f"{bystander.pid}\n{cluster.data}\n0\n5432\n/tmp\n\n\nready\n")
        assert cluster.instance.pid() is None
        cluster.instance.stop("immediate")
        assert bystander.poll() is None
        bystander.kill()


def test_another_instance_object_finds_and_stops_the_server(make_cluster):
    cluster = make_cluster(17)
    other = Instance(cluster.data, cluster.instance.binaries, cluster.instance.account)
    with other.connect() as session:
        assert session.execute("SHOW data_directory").fetchone() == (str(cluster.data),)
    other.stop()
    assert not cluster.instance.is_running()


def test_a_private_server_is_on_no_port_and_acts_on_nothing_outside(make_cluster):
    cluster = make_cluster(17, start=False)
    port = free_port()
    copied = "archive_mode = on\nsynchronous_standby_names = '*'\nssl = on\nssl_cert_file = '/gone'\n"
    (cluster.data / "postgresql.auto.conf").write_text(
        f"{copied}data_directory = '/of/the/old/host'\nexternal_pid_file = '/of/the/old/host/pid'\n"
    )
    (cluster.data / "pg_hba.conf").write_text("local all all reject\n")
    cluster.instance.start(port, private=True)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass
    with cluster.instance.connect() as session:
        session.execute("CREATE TABLE commits_without_a_standby (i int)")
        assert session.execute("SHOW archive_mode").fetchone() == ("off",)
    sockets = Path(cluster.instance.conninfo.split()[0].removeprefix("host="))
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert len(str(sockets)) < 80
    cluster.stop()
    assert not sockets.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="another account is only to be had as root")
def test_other_accounts_cannot_reach_a_private_server(make_cluster, servers_account):
    cluster = make_cluster(18, start=False)
    cluster.instance.start(private=True)
    sockets = Path(cluster.instance.conninfo.split()[0].removeprefix("host="))
    stranger = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    done = subprocess.run(["ls", sockets], check=False, capture_output=True, **stranger)
    assert servers_account.name != "nobody" and done.returncode != 0


def test_a_scratch_instance_leaves_nothing_behind_even_when_the_test_in_it_fails(cluster18, servers_place):
    instance = cluster18.instance
    with pytest.raises(RuntimeError), scratch(servers_place, instance.binaries, instance.account) as made:
        made.initdb()
        made.start()
        pid, root = made.pid(), made.root
        sockets = Path(made.conninfo.split()[0].removeprefix("host="))
        with made.connect() as session:
            session.execute("SELECT 1")
        raise RuntimeError("the test in it fails")
    assert wait_gone(pid)
    assert not root.exists() and not sockets.exists()


def test_a_scratch_instance_can_be_kept_for_a_look_but_not_running(cluster18, servers_place):
    with scratch(servers_place, cluster18.instance.binaries, cluster18.instance.account, keep=True) as made:
        made.initdb()
        made.start()
    assert (made.data_directory / "PG_VERSION").exists()
    assert not made.is_running()


def test_a_scratch_instance_is_never_public(cluster18, servers_place):
    with scratch(servers_place, cluster18.instance.binaries, cluster18.instance.account) as made:
        with pytest.raises(UsageError):
            made.start(private=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="root can enter what the servers' account cannot")
def test_a_closed_parent_directory_is_named_before_anything_is_made(cluster18, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(PrivilegeMissing, match="closed to account"):
        with scratch(closed, cluster18.instance.binaries, cluster18.instance.account):
            pass
    assert list(closed.iterdir()) == []


def test_a_private_server_ends_when_its_caller_is_killed_and_leaves_nothing_for_long(make_cluster):
    cluster = make_cluster(18, start=False)
    program = f"""
import os, time
from pathlib import Path
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.instance import Instance
instance = Instance(Path({str(cluster.data)!r}), Binaries(Path({str(cluster.instance.binaries.directory)!r})),
                    Account.for_servers())
instance.start(private=True)
print(instance.pid(), instance.conninfo.split()[0].removeprefix("host="), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path.cwd()) as caller:
        assert caller.stdout is not None
        words = caller.stdout.readline().decode().split()
        pid, sockets = int(words[0]), Path(words[1])
        assert not gone(pid)
        caller.kill()
    assert wait_gone(pid)
    os.utime(sockets, (0, 0))
    cluster.instance.start(private=True)
    assert not sockets.exists(), "the next one sweeps what the killed one could not"
    in_use = Path(cluster.instance.conninfo.split()[0].removeprefix("host="))
    os.utime(in_use, (0, 0))
    other = make_cluster(18, start=False)
    other.instance.start(private=True)
    assert in_use.exists()


def test_ctrl_c_on_the_callers_terminal_does_not_reach_the_server(cluster18):
    assert os.getsid(cluster18.instance.pid()) != os.getsid(0)


def test_nobody_answers_on_a_stopped_server(make_cluster):
    cluster = make_cluster(18)
    cluster.stop()
    with pytest.raises(ServerUnreachable):
        cluster.instance.connect()


def test_settings_of_a_source_work_for_psycopg_as_they_are(cluster18):
    with psycopg.connect(cluster18.source.conninfo) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
