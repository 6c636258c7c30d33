"""Real servers that archive or are streamed from, and a repository on disk beside them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.postgres.binaries import Account, Binaries, available
from seawall.repository import Repository, Sealing, SourceArea
from seawall.settings import SourceSettings
from seawall.storage.local import LocalStorage


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One server on 127.0.0.1; `settings` go into postgresql.auto.conf before each start."""

    binaries: Binaries
    account: Account
    home: Path
    templates: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def wal(self) -> Path:
        return self.data / "pg_wal"

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres client_encoding=UTF8"

    @property
    def source(self) -> SourceSettings:
        return SourceSettings("shop", conninfo=self.conninfo)

    def tool(self, *arguments: str | Path) -> str:
        program, *rest = arguments
        done = self.account.run([self.binaries.path(str(program)), *rest], timeout=120)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def initdb(self, *, anew: bool = False) -> None:
        """A new cluster; a copy of one made before, so with its system identifier, unless it shall be another."""
        template = self.templates / str(self.binaries.major)
        if anew or not template.exists():
            self.tool("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync")
        if not template.exists():
            shutil.copytree(self.data, template)
        elif not anew:
            subprocess.run(["cp", "-a", template, self.data], check=True)
            subprocess.run(["chown", "-R", f"{self.account.uid}:{self.account.gid}", self.data], check=True)

    def start(self) -> None:
        fixed = {"port": str(self.port), "listen_addresses": "'127.0.0.1'", "unix_socket_directories": "''"}
        lines = {"fsync": "off", "max_wal_size": "4GB", "log_line_prefix": "'%m '", **self.settings, **fixed}
        conf = self.data / "postgresql.auto.conf"
        conf.write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        self.tool("pg_ctl", "-D", self.data, "-l", self.home / "log", "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        if (self.data / "postmaster.pid").exists():
            self.tool("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def log(self) -> str:
        path = self.home / "log"
        return path.read_text()[-4000:] if path.exists() else ""

    def query(self, text: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.conninfo, autocommit=True) as session:
            cursor = session.execute(text)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def value(self, text: str) -> str:
        return str(self.query(text)[0][0])

    def write(self, megabytes: int = 1) -> None:
        """Make about that much WAL."""
        self.query("CREATE TABLE IF NOT EXISTS noise (bytes bytea)")
        self.query("ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL")
        self.query(
            "INSERT INTO noise SELECT decode(repeat(md5(random()::text || n), 320), 'hex')"
            f" FROM generate_series(1, {megabytes * 200}) AS n"
        )

    def switch(self) -> str:
        """Close the open segment; its name."""
        self.query("SELECT pg_logical_emit_message(false, 'test', 'x')")
        return self.value("SELECT pg_walfile_name(pg_switch_wal() - 1)")


@pytest.fixture(params=[15, 17, 18])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def account() -> Account:
    return Account.for_servers()


@pytest.fixture
def open_directory(account: Account) -> Iterator[Path]:
    """A directory that the servers' account may enter, which pytest's own is not."""
    made = Path(tempfile.mkdtemp(prefix="seawall-archive-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def make_server(
    major: int, account: Account, open_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Makes servers of the version under test; they are stopped at the end."""
    found = next((b for b in available() if b.major == major), None)
    if found is None:
        pytest.skip(f"PostgreSQL {major} is not installed")
    binaries: Binaries = found
    templates = tmp_path_factory.getbasetemp() / "clusters"
    templates.mkdir(exist_ok=True)
    made: list[Server] = []

    def make(name: str, **settings: str) -> Server:
        home = open_directory / name
        home.mkdir(mode=0o700)
        account.own(home)
        made.append(Server(binaries, account, home, templates, settings))
        return made[-1]

    yield make
    for server in made:
        with suppress(AssertionError):
            server.stop("immediate")


@pytest.fixture
def primary(make_server: Callable[..., Server]) -> Server:
    server = make_server("primary", wal_level="replica")
    server.initdb()
    server.start()
    return server


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    with KeyRing(tmp_path / "ring") as opened:
        yield opened


@pytest.fixture
def sealing(ring: KeyRing) -> Sealing:
    return Sealing(SealingMode.NONE, Compression.LZ4, 1, (), ring)


@pytest.fixture
def repository_path(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    Repository.create(LocalStorage(path), now=datetime.now(UTC))
    return path


@pytest.fixture
def area(repository_path: Path) -> SourceArea:
    return Repository.open(LocalStorage(repository_path)).source("shop")


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 60.0, what: str = "it") -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_at, f"{what} did not happen within {seconds} s"
            time.sleep(0.02)

    return wait
