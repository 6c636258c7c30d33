"""Configuration outside the data directory, as on Debian: saved with each backup, laid beside, and usable after it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall.events import Event, Noticed, Observer
from seawall.model import CopyMode, RecoveryTarget, TargetKind
from tests.conftest import ClusterMaker, PgCluster

if TYPE_CHECKING:
    Site = Any
    Sites = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
_MAIN = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")


@pytest.fixture
def debian(make_cluster: ClusterMaker) -> PgCluster:
    """A cluster of 15 whose files lie as Debian's packages put them."""
    cluster = make_cluster(15, start=False)
    etc = _etc(cluster)
    (etc / "conf.d").mkdir(parents=True)
    for name in _MAIN:
        (cluster.data / name).rename(etc / name)
    with (etc / "postgresql.conf").open("a") as file:
        file.write(
            f"data_directory = '{cluster.data}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\n"
            "max_connections = 30\ninclude_dir = 'conf.d'\n"
        )
    (etc / "conf.d" / "10-shop.conf").write_text("work_mem = '7MB'\nmax_connections = 41\n")
    with (etc / "pg_hba.conf").open("a") as file:
        file.write("host shop shop 192.0.2.7/32 scram-sha-256\n")
    with (etc / "pg_ident.conf").open("a") as file:
        file.write("people grete shop_admin\n")
    for path in [cluster.home / "etc", *(cluster.home / "etc").rglob("*")]:
        cluster.instance.account.own(path)
    cluster.start({"config_file": f"{etc}/postgresql.conf"})
    cluster.query("CREATE TABLE rows AS SELECT n FROM generate_series(1, 1000) n")
    return cluster


def _etc(cluster: PgCluster) -> Path:
    return cluster.home / "etc" / "postgresql" / "15" / "main"


@pytest.fixture
def site(debian: PgCluster, sites: Sites) -> Iterator[Site]:
    home = debian.home / "site"
    home.mkdir(mode=0o755)
    made = sites.beside(debian.instance, home)
    made.receive()
    yield made
    made.stop_receiving()


@pytest.mark.parametrize("mode", CopyMode)
def test_files_outside_are_specials_and_lie_beside_the_restored_cluster(
    debian: PgCluster, site: Site, mode: CopyMode
) -> None:
    originals = {str(path): path.read_text() for path in _etc(debian).rglob("*.conf")}
    assert len(originals) == 4
    heard: list[Event] = []
    head = site.backup(mode=mode, observe=Observer(heard.append))
    assert [event for event in heard if isinstance(event, Noticed)] == []
    specials = site.area.manifest(head.label, site.ring).specials
    saved = {name.removeprefix("configuration:"): text for name, text in specials.items() if "configuration:" in name}
    assert saved == originals

    plan = site.plan(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label)
    site.run(plan)
    made_hba = plan.destination / "pg_hba.conf"
    assert "192.0.2.7" not in made_hba.read_text()
    with made_hba.open("a") as file:
        file.write("host all all 127.0.0.1/32 trust\n")
    with site.running(plan.destination) as instance:
        with instance.connect() as session:
            assert session.execute("SELECT count(*) FROM rows").fetchone() == (1000,)
            # Replay refuses fewer than the source had, wherever that was said; nothing else of it is in force.
            (connections,) = session.execute("SHOW max_connections").fetchone()
            (hba,) = session.execute("SHOW hba_file").fetchone()
        assert int(connections) >= 41
        assert hba == str(made_hba)
        kept = instance.data_directory / "seawall-configuration"
        for path, text in originals.items():
            assert (kept / path.lstrip("/")).read_text() == text


def test_an_administrator_puts_the_saved_files_back_in_force(debian: PgCluster, site: Site) -> None:
    """What the how-to tells: move them to where they were, and start with that configuration file."""
    head = site.backup()
    plan = site.plan(RecoveryTarget(TargetKind.IMMEDIATE), label=head.label)
    site.run(plan)
    etc = _etc(debian)
    debian.stop()
    shutil.rmtree(debian.data)
    shutil.rmtree(etc)
    kept = plan.destination / "seawall-configuration" / str(etc).lstrip("/")
    shutil.copytree(kept, etc)
    for name in _MAIN:
        (plan.destination / name).unlink()
    plan.destination.rename(debian.data)
    for path in [etc, *etc.rglob("*")]:
        debian.instance.account.own(path)
    debian.start()
    assert debian.value("SELECT count(*) FROM rows") == 1000
    assert debian.value("SHOW work_mem") == "7MB"
    assert debian.value("SHOW max_connections") == "41"
    assert debian.value("SELECT count(*) FROM pg_hba_file_rules WHERE address = '192.0.2.7'") == 1
    assert debian.value("SELECT count(*) FROM pg_ident_file_mappings WHERE map_name = 'people'") == 1


def test_a_role_that_may_not_read_them_says_what_is_missing_from_elsewhere(
    debian: PgCluster, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seawall.postgres.inspect._is_here", lambda _cluster: False)
    debian.query("CREATE ROLE copier LOGIN REPLICATION")
    debian.query("GRANT pg_monitor TO copier")
    debian.query("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO copier")
    conninfo = site.instance.conninfo.replace("user=postgres", "user=copier")
    head = site.backup(mode=CopyMode.STREAM, conninfo=conninfo)
    specials = site.area.manifest(head.label, site.ring).specials
    assert not [name for name in specials if name.startswith("configuration:")]
    assert f"configuration file {_etc(debian)}/postgresql.conf" in caplog.text
