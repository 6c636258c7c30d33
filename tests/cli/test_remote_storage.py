"""A repository in each kind of remote storage, from `init` to a restored cluster, by commands alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance
from seawall.settings import RepositorySettings, load
from seawall.storage import open_storage
from tools.storage_servers import Servers

pytestmark = [pytest.mark.postgres, pytest.mark.servers, pytest.mark.slow]
Run = Callable[..., Any]
ROWS = "SELECT count(*), sum(n), max(x) FROM t"


@pytest.fixture(scope="module")
def server(open_directory: Path) -> Iterator[Instance]:
    home = open_directory / "remote"
    home.mkdir()
    account = Account.for_servers()
    account.own(home)
    made = Instance(home / "data", find(18), account)
    made.initdb()
    made.start(options={"fsync": "off", "max_wal_senders": "10", "max_replication_slots": "10"})
    try:
        with made.connect() as session:
            session.execute("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 50000) AS n")
        yield made
    finally:
        made.stop("immediate")


def row(server: Instance) -> object:
    with server.connect() as session:
        return session.execute(ROWS).fetchone()


def options(settings: RepositorySettings) -> list[str | Path]:
    """What `init` is told of a place."""
    named = {
        "--repository": settings.url,
        "--endpoint": settings.endpoint,
        "--region": settings.region,
        "--credentials-file": settings.credentials_file,
        "--known-hosts-file": settings.known_hosts_file,
    }
    return [part for option, value in named.items() if value for part in (option, value)]


def obey(done: Any) -> None:
    assert done.code == 0, done.out + done.err


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def receiving(server: Instance, source: str) -> bool:
    with server.connect() as session:
        found = session.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name = %s", [f"seawall_{source}"]
        ).fetchone()
    return found is not None and found[0] == 1


# One of them is sealed: what lies in storage does not depend on where that is.
SEALING = {"s3": "aes-256-gcm", "azure": "none", "gs": "none", "sftp": "none"}


@pytest.mark.parametrize("kind", SEALING)
def test_a_cluster_goes_into_remote_storage_and_comes_back(
    *, servers: Servers, server: Instance, open_directory: Path, program: Run, start: Run, kind: str
) -> None:
    place = servers[kind].settings()
    home = open_directory / kind
    source = ["--source", kind, "--conninfo", server.conninfo, "--sealing", SEALING[kind]]
    obey(program("init", "--directory", home, *source, *options(place), "--json"))
    config = home / "seawall.toml"
    receiver = start("wal", "receive", kind, "--config", config)
    try:
        until(lambda: receiving(server, kind))
        obey(program("backup", kind, "--config", config, "--json"))
        with server.connect() as session:
            session.execute("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(50001, 60000) AS n")
        expected = row(server)
        # The check closes the segment that the new rows are in, and waits until it is stored.
        obey(program("check", kind, "--config", config, "--json"))
        obey(program("verify", kind, "--config", config, "--json"))
    finally:
        end(receiver)
    storage = open_storage(load(config).repository)
    assert storage.url.startswith(f"{kind}://")
    assert "backups" in storage.children(f"sources/{kind}/")
    destination = open_directory / f"{kind}-restored"
    obey(program("restore", kind, "--into", destination, "--config", config, "--json"))
    restored = Instance(destination, server.binaries, server.account)
    restored.start(options={"fsync": "off"})
    try:
        assert row(restored) == expected
    finally:
        restored.stop("immediate")


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
