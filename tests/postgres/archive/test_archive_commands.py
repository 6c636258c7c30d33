"""archive_command and restore_command as PostgreSQL itself runs them, with a running agent, a dead one, and none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from seawall.archive.agent import PUSHED, Agent
from seawall.archive.commands import CLIENT, START, archive_command, restore_command
from seawall.keys import KeyRing
from seawall.postgres.binaries import Account
from seawall.repository import Repository, Sealing, SourceArea
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.local import LocalStorage

# Pytest hands fixtures over by name:
# ruff: noqa: PLR0917
pytestmark = pytest.mark.postgres
one_version = pytest.mark.parametrize("major", [18])  # where nothing depends on the server's version


@pytest.fixture
def client(open_directory: Path, account: Account) -> Path:
    """The client where the server's account can read it, in a path that a shell must quote."""
    place = open_directory / "Sea wall 100%"
    place.mkdir()
    shutil.copy(CLIENT, place / "client.py")
    return Path(shutil.copy(START, place / "start.py"))


@pytest.fixture
def python(account: Account) -> Path:
    found = Path("/usr/bin/python3")
    assert account.can_execute(found) is None
    return found


@pytest.fixture
def socket_path(open_directory: Path) -> Path:
    return open_directory / "agent's socket"


@pytest.fixture
def spool(open_directory: Path) -> Path:
    return open_directory / "spool"


@pytest.fixture
def archiving(make_server: Callable[..., Any], socket_path: Path, spool: Path, python: Path, client: Path) -> Any:
    """A primary whose archive_command is the client, without a spool."""
    command = archive_command(socket_path, python=python, client=client).replace("'", "''")
    server = make_server("primary", wal_level="replica", archive_mode="on", archive_command=f"'{command}'")
    server.initdb()
    server.start()
    return server


@pytest.fixture
def agent_for(
    area: SourceArea, sealing: Sealing, ring: KeyRing, spool: Path, socket_path: Path, account: Account
) -> Callable[..., Agent]:
    def make(server: Any = None, **options: Any) -> Agent:
        options = {"accounts": frozenset({account.uid}), "gap_patience_seconds": 0.3, **options}
        chosen = options.pop("area", area)
        directory = server.data if server is not None else None
        return Agent(chosen, sealing, ring, spool, socket_path, data_directory=directory, **options)

    return make


def failures(server: Any) -> int:
    return int(server.value("SELECT failed_count FROM pg_stat_archiver"))


def test_every_segment_is_pushed_and_is_what_the_server_wrote(
    archiving: Any, agent_for: Callable[..., Agent], area: SourceArea, ring: KeyRing, eventually: Any
) -> None:
    archiving.query("ALTER SYSTEM SET wal_keep_size = '1GB'")
    archiving.query("SELECT pg_reload_conf()")
    with agent_for(archiving):
        archiving.write(50)
        last = archiving.switch()
        eventually(lambda: archiving.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last)
        assert failures(archiving) == 0
    names = area.wal.names()
    assert len(names) >= 4
    for name in names:
        assert area.wal.fetch(name, ring) == (archiving.wal / name).read_bytes()


@one_version
def test_without_agent_and_spool_the_server_keeps_its_wal_and_counts_the_failures(
    archiving: Any, agent_for: Callable[..., Agent], area: SourceArea, eventually: Any
) -> None:
    last = archiving.switch()
    eventually(lambda: failures(archiving) >= 2)
    assert not area.wal.names()
    assert "no agent listens" in archiving.log()
    with agent_for(archiving):
        eventually(lambda: area.wal.stored(last), 70.0)


@one_version
def test_an_unreachable_storage_fails_the_push_with_the_codes_of_storage_errors(
    archiving: Any, agent_for: Callable[..., Agent], repository_path: Path, eventually: Any
) -> None:
    broken = Faulty(LocalStorage(repository_path), [Fault(Trouble.FAIL_BEFORE, "put", times=10**6)])
    with agent_for(archiving, area=Repository.open(broken).source("shop")):
        archiving.switch()
        eventually(lambda: failures(archiving) >= 1)
    eventually(lambda: "failed with exit code 25" in archiving.log())


def test_a_client_that_cannot_even_start_is_counted_and_never_ends_the_archiver(
    archiving: Any, socket_path: Path, client: Path, eventually: Any
) -> None:
    command = archive_command(socket_path, python=Path("/nowhere/python"), client=client).replace("'", "''")
    archiving.query(f"ALTER SYSTEM SET archive_command = '{command}'")
    archiving.query("SELECT pg_reload_conf()")
    archiver = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'"
    eventually(lambda: archiving.query(archiver))
    before = archiving.value(archiver)
    archiving.switch()
    eventually(lambda: failures(archiving) >= 1)
    eventually(lambda: "failed with exit code 125" in archiving.log())
    assert archiving.value(archiver) == before


@one_version
def test_segments_wait_in_the_spool_while_no_agent_runs_and_are_shipped_when_it_starts(
    archiving: Any,
    agent_for: Callable[..., Agent],
    area: SourceArea,
    ring: KeyRing,
    spool: Path,
    socket_path: Path,
    python: Path,
    client: Path,
    account: Account,
    eventually: Any,
) -> None:
    (spool / PUSHED).mkdir(parents=True)
    account.own(spool / PUSHED)
    command = archive_command(socket_path, spool=spool / PUSHED, python=python, client=client).replace("'", "''")
    archiving.query(f"ALTER SYSTEM SET archive_command = '{command}'")
    archiving.query("ALTER SYSTEM SET wal_keep_size = '1GB'")
    archiving.query("SELECT pg_reload_conf()")
    eventually(lambda: "--spool" in archiving.value("SHOW archive_command"))
    archiving.write(20)
    last = archiving.switch()
    eventually(lambda: archiving.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= last, 70.0)
    assert not area.wal.names()
    assert (spool / PUSHED / last).exists()
    with agent_for(archiving) as agent:
        eventually(lambda: not agent.spooled())
    for name in (last, *area.wal.names()):
        assert area.wal.fetch(name, ring) == (archiving.wal / name).read_bytes()


@one_version
def test_another_clusters_wal_is_refused(
    archiving: Any, make_server: Callable[..., Any], agent_for: Callable[..., Agent], area: SourceArea, eventually: Any
) -> None:
    with agent_for(archiving):
        last = archiving.switch()
        eventually(lambda: area.wal.stored(last))
    archiving.stop()
    stranger = make_server("stranger", **archiving.settings)
    stranger.initdb(anew=True)
    stranger.start()
    with agent_for(stranger):
        stranger.switch()
        eventually(lambda: failures(stranger) >= 1)
    eventually(lambda: "failed with exit code 53" in stranger.log())


@one_version
def test_the_agent_answers_neither_other_accounts_nor_other_directories(
    archiving: Any, agent_for: Callable[..., Agent], open_directory: Path, python: Path, client: Path, socket_path: Path
) -> None:
    archiving.switch()
    name = sorted(p.name for p in archiving.wal.iterdir() if len(p.name) == 24)[0]
    elsewhere = open_directory / name
    shutil.copy(archiving.wal / name, elsewhere)
    push = [python, "-I", "-S", client, "push", "--socket", socket_path]
    with agent_for(archiving):
        foreign = subprocess.run([*push, elsewhere], capture_output=True, text=True, check=False)
        elsewhere.chmod(0o644)
        nobody = subprocess.run(
            [*push, elsewhere], capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=()
        )
    assert foreign.returncode == 2
    assert "does not lie in" in foreign.stderr
    assert nobody.returncode == 24
    assert "is not served" in nobody.stderr


# ---- restore


@pytest.fixture
def base(archiving: Any, agent_for: Callable[..., Agent], open_directory: Path, account: Account) -> Iterator[Path]:
    """A copy of the archiving server from before it wrote anything, with no WAL of its own."""
    with agent_for(archiving):
        home = open_directory / "base"
        home.mkdir(mode=0o700)
        account.own(home)
        archiving.tool("pg_basebackup", "-D", home / "data", "-d", archiving.conninfo, "-X", "none", "-c", "fast")
    yield home


@pytest.fixture
def recovering(
    base: Path, make_server: Callable[..., Any], socket_path: Path, python: Path, client: Path
) -> Callable[..., Any]:
    def make(**settings: str) -> Any:
        command = restore_command(socket_path, python=python, client=client, wait_seconds=1).replace("'", "''")
        server = make_server("restored", restore_command=f"'{command}'", archive_mode="off", **settings)
        shutil.rmtree(server.home)
        shutil.move(base, server.home)
        (server.data / "recovery.signal").touch()
        server.account.own(server.data / "recovery.signal")
        return server

    return make


def dies_in_recovery(server: Any, eventually: Any) -> None:
    """It may admit readers first, once it is consistent; but it must never end recovery."""
    with suppress(AssertionError):
        server.start()
    eventually(lambda: not (server.data / "postmaster.pid").exists(), what="the server's end")
    assert "could not restore file" in server.log()
    assert "archive recovery complete" not in server.log()


def test_a_server_recovers_everything_that_was_archived(
    archiving: Any, recovering: Callable[..., Any], agent_for: Callable[..., Agent], area: SourceArea, eventually: Any
) -> None:
    with agent_for(archiving):
        archiving.query("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        archiving.write(100)
        last = archiving.switch()
        eventually(lambda: area.wal.stored(last))
    restored = recovering()
    with agent_for():
        restored.start()
        eventually(lambda: restored.value("SELECT pg_is_in_recovery()") == "False")
    assert restored.value("SELECT count(*) FROM kept") == "1000"
    assert restored.value("SELECT count(*) FROM noise") == archiving.value("SELECT count(*) FROM noise")


def test_the_open_segments_tail_is_recovered_too(
    archiving: Any,
    recovering: Callable[..., Any],
    agent_for: Callable[..., Agent],
    area: SourceArea,
    sealing: Sealing,
    tmp_path: Path,
    eventually: Any,
) -> None:
    from seawall.archive.receiver import Receiver

    receiver = Receiver(archiving.source, area, sealing, tmp_path / "spool", create_slot=True, tail_seconds=0.2)
    with agent_for(archiving):
        receiver.start()
        archiving.query("CREATE TABLE young AS SELECT generate_series(1, 77) AS n")
        eventually(lambda: receiver.status().stored.value > 0)
        position = archiving.value("SELECT pg_current_wal_flush_lsn()")
        eventually(lambda: str(receiver.status().stored) >= position)
        archiving.stop("immediate")
        receiver.stop()
    restored = recovering()
    with agent_for():
        restored.start()
        eventually(lambda: restored.value("SELECT pg_is_in_recovery()") == "False")
    assert restored.value("SELECT count(*) FROM young") == "77"


def test_a_storage_that_does_not_answer_stops_recovery_and_is_never_taken_for_the_end_of_wal(
    archiving: Any,
    recovering: Callable[..., Any],
    agent_for: Callable[..., Agent],
    area: SourceArea,
    repository_path: Path,
    eventually: Any,
) -> None:
    with agent_for(archiving):
        archiving.write(40)
        last = archiving.switch()
        eventually(lambda: area.wal.stored(last))
    lost = sorted(area.wal.names())[-2]
    broken = Faulty(LocalStorage(repository_path), [Fault(Trouble.FAIL_BEFORE, "get", name=f"*{lost}", times=10**6)])
    restored = recovering()
    with agent_for(area=Repository.open(broken).source("shop")):
        dies_in_recovery(restored, eventually)


def test_a_gap_stops_recovery(
    archiving: Any,
    recovering: Callable[..., Any],
    agent_for: Callable[..., Agent],
    area: SourceArea,
    repository_path: Path,
    eventually: Any,
) -> None:
    with agent_for(archiving):
        archiving.write(60)
        last = archiving.switch()
        eventually(lambda: area.wal.stored(last))
    lost = sorted(area.wal.names())[-2]
    (repository_path / area.layout.segment(lost)).unlink()
    restored = recovering()
    with agent_for():
        dies_in_recovery(restored, eventually)
    assert f"{lost} is not stored, but segments before it" in restored.log()


@one_version
@pytest.mark.parametrize("missing", ["agent", "client", "python"])
def test_a_missing_program_stops_recovery_and_is_never_taken_for_the_end_of_wal(
    recovering: Callable[..., Any], client: Path, missing: str, socket_path: Path, eventually: Any
) -> None:
    restored = recovering()
    if missing == "client":
        client.unlink()
    if missing == "python":
        command = restore_command(socket_path, python=Path("/nowhere/python"), client=client).replace("'", "''")
        restored.settings["restore_command"] = f"'{command}'"
    dies_in_recovery(restored, eventually)
