"""Which account can reach which program, and what is said when it cannot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from seawall.errors import BinariesMissing, PrivilegeMissing
from seawall.postgres.binaries import Account, Binaries, find

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another account is only to be had as root")


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="seawall-binaries-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def program(directory: Path, text: str = "#!/bin/sh\n", name: str = "postgres") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_servers_never_run_as_root():
    account = Account.for_servers()
    assert account.uid != 0
    assert account.is_current == (os.geteuid() == account.uid)


@needs_root
def test_root_chooses_the_account_that_the_settings_name():
    assert Account.for_servers("nobody").name == "nobody"
    with pytest.raises(PrivilegeMissing, match="refuses to run as root"):
        Account.for_servers("root")
    with pytest.raises(PrivilegeMissing, match="no account 'not-there'"):
        Account.for_servers("not-there")


def test_a_program_in_an_open_place_can_be_executed(place):
    assert Account.for_servers().can_execute(program(place / "bin")) is None


@needs_root
@pytest.mark.parametrize("closed", ["home", "home/user", "home/user/bin"])
def test_the_directory_that_the_account_cannot_enter_is_named_with_what_to_do(place, closed):
    path = program(place / "home" / "user" / "bin")
    (place / closed).chmod(0o700)
    reason = Account.for_servers().can_execute(path)
    assert reason is not None
    assert f"{place / closed} is closed to account" in reason
    assert f"chmod a+x {place / closed}" in reason


@needs_root
def test_a_closed_directory_behind_a_link_is_named(place):
    real = program(place / "secret" / "bin")
    (place / "bin").symlink_to(real.parent)
    (place / "secret").chmod(0o700)
    reason = Account.for_servers().can_execute(place / "bin" / "postgres")
    assert reason is not None and f"{place / 'secret'} is closed" in reason


@needs_root
def test_a_program_without_the_right_to_execute_is_named_itself(place):
    path = program(place)
    path.chmod(0o644)
    assert f"{path} is closed" in (Account.for_servers().can_execute(path) or "")


def test_a_program_that_is_not_there_is_said_to_be_missing(place):
    assert "No such file" in (Account.for_servers().can_execute(place / "nothing") or "")


def test_nothing_of_the_callers_environment_reaches_a_program(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.setenv("SEAWALL_SOMETHING", "x")
    said = Account.for_servers().run(["env"]).stdout
    assert "hunter2" not in said and "SEAWALL" not in said


def test_the_version_is_asked_of_the_program(place):
    program(place / "a", '#!/bin/sh\necho "postgres (PostgreSQL) 16.4 (Debian 16.4-1)"\n')
    binaries = find(directory=place / "a")
    assert (binaries.version, binaries.major) == ("16.4", 16)
    with pytest.raises(BinariesMissing, match="17 is wanted"):
        find(17, place / "a")


def test_a_directory_without_postgresql_is_refused(place):
    with pytest.raises(BinariesMissing, match="does not tell its version"):
        find(directory=place)
    program(place / "b", "#!/bin/sh\necho something else\n")
    with pytest.raises(BinariesMissing, match="no PostgreSQL version"):
        find(directory=place / "b")


def test_a_tool_that_an_installation_lacks_is_named(place):
    with pytest.raises(BinariesMissing, match="no program 'pg_dump'"):
        Binaries(place).path("pg_dump")


def test_what_was_found_instead_is_listed():
    with pytest.raises(BinariesMissing, match=r"no PostgreSQL 9 on this host \(found: "):
        find(9)
