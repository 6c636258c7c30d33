"""Real PostgreSQL clusters for every test that wants one: quick to make, never left behind.

`make_cluster(18)` gives a new one, copied from a template that `initdb` made once in the session. `cluster15`,
`cluster17` and `cluster18` are shared by the whole session: make objects of your own in them, change no settings.
`each_cluster` runs a test on all three.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from seawall.postgres.binaries import Account, Binaries, available
from seawall.postgres.instance import Instance
from seawall.settings import SourceSettings
from tools.storage_servers import Servers
from tools.surroundings import Refused

QUICK = {
    "fsync": "off",
    "wal_level": "replica",
    "max_wal_senders": "5",
    "max_replication_slots": "5",
    "shared_buffers": "16MB",
    "max_wal_size": "1GB",
    "log_line_prefix": "%m ",
    "autovacuum": "off",
}


# How fast an example runs says how busy the machine is. The checks before a change is accepted draw the same examples
# each time; everybody else's draw new ones.
hypothesis.settings.register_profile(
    "seawall",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
hypothesis.settings.load_profile("seawall")


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM (of `timeout`, of a service manager) end a session as Ctrl-C does: fixtures still clean up."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    # The file that tests' output is captured into is gone with the process.
    config.stash[_REPORT_TO] = os.dup(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--repeats", action="store_true", help="also what is marked as a repetition")


# Files go to whichever process is free, in this order: the long ones first, so that none is left waiting for one.
_LONG_FIRST = (
    "flows/test_stack",
    "flows/test_stopping",
    "flows",
    "scenarios",
    "campaigns",
    "cli",
    "postgres",
    "contract",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave repetitions out unless they are asked for, and let the files that take longest begin."""
    if not config.getoption("--repeats"):
        repeated = [item for item in items if item.get_closest_marker("repeats")]
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if not item.get_closest_marker("repeats")]
    items.sort(key=_length)


def _length(item: pytest.Item) -> int:
    file = item.nodeid.removeprefix("tests/")
    return next((place for place, start in enumerate(_LONG_FIRST) if file.startswith(start)), len(_LONG_FIRST))


_REPORT_TO = pytest.StashKey[int]()
# Beside pytest-timeout's: its alarm raises in the main thread, where a finalizer may swallow it, or a lock wait again.
_HANGS_SECONDS = 420


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a process in which a test hangs, telling what every thread was at; pytest-xdist goes on with another one."""
    faulthandler.dump_traceback_later(_HANGS_SECONDS, exit=True, file=item.config.stash[_REPORT_TO])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass
class PgCluster:
    """A cluster of a test: its instance, and short ways to say what tests say often."""

    instance: Instance
    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.instance.data_directory

    @property
    def source(self) -> SourceSettings:
        return self.instance.source("main")

    @property
    def major(self) -> int:
        return self.instance.binaries.major

    def start(self, settings: Mapping[str, str] | None = None, **how: Any) -> None:
        self.settings |= settings or {}
        # Its socket goes with its home, also when it is killed.
        place = {} if how.get("private") else {"unix_socket_directories": str(self.home)}
        self.instance.start(self.instance.port, place | QUICK | self.settings, **how)

    def stop(self, mode: str = "fast") -> None:
        self.instance.stop(mode)

    def query(self, text: str, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        with self.instance.connect(dbname) as session:
            cursor = session.execute(text)
            return cursor.fetchall() if cursor.description else []

    def value(self, text: str, dbname: str = "postgres") -> Any:
        return self.query(text, dbname)[0][0]

    def fill(self, table: str, megabytes: int = 1, dbname: str = "postgres") -> None:
        """A table of about that size."""
        rows = megabytes * 120
        self.query(f"CREATE TABLE IF NOT EXISTS {table} (id int, body text)", dbname)
        self.query(f"ALTER TABLE {table} ALTER body SET STORAGE PLAIN", dbname)
        self.query(f"INSERT INTO {table} SELECT n, repeat(md5(n::text), 240) FROM generate_series(1, {rows}) n", dbname)

    def tool(self, name: str, *arguments: str | Path) -> str:
        done = self.instance.account.run([self.instance.binaries.path(name), *arguments], timeout=120)
        assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an SQL condition is true."""
        end = time.monotonic() + seconds
        while not self.value(f"SELECT {condition}"):
            assert time.monotonic() < end, f"{condition} did not become true\n{self.instance.log_tail()}"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def servers_account() -> Account:
    return Account.for_servers()


@pytest.fixture(scope="session")
def servers_place(servers_account: Account) -> Iterator[Path]:
    """A directory that the servers' account owns and may enter, which pytest's own is not."""
    place = Path(tempfile.mkdtemp(prefix="seawall-pg-", dir=_quick_place()))
    place.chmod(0o755)
    servers_account.own(place)
    yield place
    shutil.rmtree(place)


def _quick_place() -> str:
    """In memory where there is plenty: servers of tests need no disk, and fsync costs nothing there."""
    memory = Path("/dev/shm")
    plenty = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 6 << 30
    return str(memory) if plenty else "/tmp"


def binaries_of(major: int) -> Binaries:
    found = next((b for b in available() if b.major == major), None)
    if found is None:
        pytest.fail(f"PostgreSQL {major} is not installed; `make setup` installs what the tests need")
    return found


@pytest.fixture(scope="session")
def cluster_template(servers_account: Account, servers_place: Path) -> Callable[..., Path]:
    """Data directories made by initdb, one for each kind, made when first asked for."""
    made: dict[tuple[object, ...], Path] = {}

    def template(major: int, checksums: bool, options: tuple[str, ...]) -> Path:
        key = (major, checksums, options)
        if key not in made:
            place = servers_place / f"template-{len(made)}"
            Instance(place, binaries_of(major), servers_account).initdb(options, checksums=checksums)
            made[key] = place
        return made[key]

    return template


@dataclass
class ClusterMaker:
    """Makes clusters; all are stopped and removed at the end of its scope."""

    template: Callable[..., Path]
    place: Path
    account: Account
    made: list[PgCluster] = field(default_factory=list)

    def __call__(
        self,
        major: int = 18,
        *,
        checksums: bool = True,
        fresh: bool = False,
        tablespace: bool = False,
        options: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> PgCluster:
        """A new cluster.

        `fresh` runs initdb, so that it has a system identifier of its own; `tablespace` adds one named `side` below
        the cluster's home; `settings` are given at every start.
        """
        cluster = self.empty(major)
        cluster.settings.update(settings or {})
        if fresh:
            cluster.instance.initdb(options, checksums=checksums)
        else:
            self.copy(self.template(major, checksums, tuple(options)), cluster.data)
        if start or tablespace:
            cluster.start()
        if tablespace:
            side = cluster.home / "side"
            side.mkdir(mode=0o700)
            self.account.own(side)
            cluster.query(f"CREATE TABLESPACE side LOCATION '{side}'")
        if tablespace and not start:
            cluster.stop()
        return cluster

    def empty(self, major: int = 18) -> PgCluster:
        """A place for a cluster whose data directory does not exist yet, for a restore into it."""
        home = Path(tempfile.mkdtemp(prefix=f"pg{major}-", dir=self.place))
        home.chmod(0o755)
        self.account.own(home)
        cluster = PgCluster(Instance(home / "data", binaries_of(major), self.account), home)
        self.made.append(cluster)
        return cluster

    def standby(self, primary: PgCluster) -> PgCluster:
        """A running hot standby of `primary`, made by pg_basebackup."""
        cluster = self.empty(primary.major)
        primary.tool(
            "pg_basebackup", "-D", cluster.data, "-d", primary.instance.conninfo, "-R", "-c", "fast", "--no-sync"
        )
        cluster.start(primary.settings)
        return cluster

    def copy(self, origin: Path, destination: Path) -> None:
        subprocess.run(["cp", "-a", origin, destination], check=True)

    def end(self, keep: Sequence[PgCluster] = ()) -> None:
        """Stop and remove all that were made, except those to keep."""
        ending = [cluster for cluster in self.made if cluster not in keep]
        for cluster in reversed(ending):
            cluster.stop("immediate")
            shutil.rmtree(cluster.home, ignore_errors=True)
        self.made = [cluster for cluster in self.made if cluster in keep]


@pytest.fixture(scope="module")
def clusters_of_module(
    cluster_template: Callable[..., Path], servers_place: Path, servers_account: Account
) -> Iterator[ClusterMaker]:
    """As `make_cluster`, for a costly story that the tests of one module share."""
    maker = ClusterMaker(cluster_template, servers_place, servers_account)
    yield maker
    maker.end()


@pytest.fixture
def make_cluster(
    cluster_template: Callable[..., Path], servers_place: Path, servers_account: Account
) -> Iterator[ClusterMaker]:
    maker = ClusterMaker(cluster_template, servers_place, servers_account)
    yield maker
    maker.end()


@pytest.fixture(scope="session")
def shared_clusters(
    cluster_template: Callable[..., Path], servers_place: Path, servers_account: Account
) -> Iterator[Callable[[int], PgCluster]]:
    maker = ClusterMaker(cluster_template, servers_place, servers_account)
    made: dict[int, PgCluster] = {}

    def of(major: int) -> PgCluster:
        if major not in made:
            made[major] = maker(major, tablespace=True)
        return made[major]

    yield of
    maker.end()


@pytest.fixture(scope="session")
def cluster15(shared_clusters: Callable[[int], PgCluster]) -> PgCluster:
    return shared_clusters(15)


@pytest.fixture(scope="session")
def cluster17(shared_clusters: Callable[[int], PgCluster]) -> PgCluster:
    return shared_clusters(17)


@pytest.fixture(scope="session")
def cluster18(shared_clusters: Callable[[int], PgCluster]) -> PgCluster:
    return shared_clusters(18)


@pytest.fixture(scope="session", params=[15, 17, 18])
def each_cluster(request: pytest.FixtureRequest, shared_clusters: Callable[[int], PgCluster]) -> PgCluster:
    return shared_clusters(request.param)


@pytest.fixture(params=[15, 17, 18])
def each_major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Storage services on loopback; each starts when it is first asked for."""
    with TestServers(tmp_path_factory.mktemp("servers")) as running:
        yield running


class TestServers(Servers):
    """Where a server could not be installed, its tests are left out by name; never where everything must be there."""

    __test__ = False

    def __getitem__(self, kind: str) -> Any:
        try:
            return super().__getitem__(kind)
        except Refused as refusal:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"the server for {kind}: storage is not installed: {refusal}")
