"""The grants of docs/how-to/prepare-postgres.md, run as they stand there, are enough and are needed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from seawall.postgres.inspect import configuration, globals_of, inspect
from seawall.postgres.session import BackupSession, switch_wal
from seawall.postgres.stream import base_backup
from seawall.settings import SourceSettings
from seawall.wal import Lsn

pytestmark = pytest.mark.postgres
PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "prepare-postgres.md"


def blocks() -> list[str]:
    found: list[str] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def prepared(make_cluster, major: int, optional: bool):
    cluster = make_cluster(major, tablespace=True)
    for statement in "".join(blocks()[: 2 if optional else 1]).split(";"):
        if statement.strip():
            cluster.query(statement)
    return cluster, SourceSettings("main", cluster.instance.conninfo.replace("user=postgres", "user=seawall"))


def test_the_role_of_the_page_can_do_everything_in_both_modes(make_cluster, each_major):
    _, source = prepared(make_cluster, each_major, optional=False)
    assert inspect(source).configuration_files
    assert "CREATE ROLE seawall" in globals_of(source)
    with BackupSession(source, "direct") as session:
        session.start()
        assert session.stop().backup_label
    with base_backup(source, "stream") as backup:
        assert sum(1 for _ in backup.files()) > 900
        assert backup.backup_label
    assert switch_wal(source) > Lsn(0)


def test_the_optional_grants_give_configuration_through_the_server(make_cluster, each_major, caplog):
    cluster, source = prepared(make_cluster, each_major, optional=True)
    elsewhere = replace(inspect(source), data_directory="/of/another/host")
    assert set(configuration(source, elsewhere)) == set(elsewhere.configuration_files)
    with (cluster.data / "postgresql.conf").open("a") as file:
        file.write(f"include '{cluster.home}/more.conf'\n")
    (cluster.home / "more.conf").write_text("work_mem = '5MB'\n")
    assert f"{cluster.home}/more.conf" in inspect(source).configuration_files


def test_files_of_another_host_are_not_mistaken_for_this_ones(make_cluster):
    _, source = prepared(make_cluster, 18, optional=False)
    elsewhere = replace(inspect(source), data_directory="/of/another/host")
    assert configuration(source, elsewhere) == {}


def test_the_query_for_what_slots_hold_runs(make_cluster):
    cluster, _ = prepared(make_cluster, 18, optional=False)
    cluster.query("SELECT pg_create_physical_replication_slot('seawall_shop', true)")
    assert cluster.query(blocks()[2])[0][:2] == ("seawall_shop", "reserved")
    cluster.query(re.search(r"`(SELECT pg_drop_replication_slot.*?);`", PAGE.read_text())[1])
