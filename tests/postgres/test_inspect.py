"""Looking at a live cluster."""

from __future__ import annotations

import pytest

from seawall.errors import PrivilegeMissing, ServerUnreachable, SettingsError
from seawall.postgres.connect import connect
from seawall.postgres.control import read_control
from seawall.postgres.inspect import configuration, globals_of, inspect
from seawall.postgres.instance import free_port
from seawall.settings import SourceSettings

pytestmark = pytest.mark.postgres


def test_a_cluster_says_who_and_what_it_is(each_cluster):
    cluster = inspect(each_cluster.source)
    control = read_control(each_cluster.data)
    assert cluster.system_identifier == control.system_identifier > 0
    assert cluster.major_version == each_cluster.major
    assert (cluster.timeline, cluster.segment_bytes, cluster.block_bytes) == (1, 16 * 1024 * 1024, 8192)
    assert (cluster.checksums, cluster.in_recovery) == (True, False)
    assert cluster.data_directory == str(each_cluster.data)
    assert [t.location for t in cluster.tablespaces] == [str(each_cluster.home / "side")]
    assert set(cluster.databases) == {"postgres", "template0", "template1"}
    assert cluster.total_bytes == sum(cluster.databases.values()) > 5_000_000


def test_extensions_are_found_in_every_database(make_cluster):
    cluster = make_cluster(18)
    cluster.query('CREATE DATABASE "Lagerbestände 2026"')
    cluster.query("CREATE EXTENSION amcheck", "Lagerbestände 2026")
    found = inspect(cluster.source).extensions
    assert ("Lagerbestände 2026", "plpgsql", "1.0") in found
    assert [name for database, name, _ in found if database == "Lagerbestände 2026"] == ["amcheck", "plpgsql"]


def test_configuration_outside_the_data_directory_is_found_and_read_with_its_includes(make_cluster, servers_account):
    cluster = make_cluster(15, start=False)
    outside = cluster.home / "etc"
    (outside / "conf.d").mkdir(parents=True)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (cluster.data / name).rename(outside / name)
    with (outside / "postgresql.conf").open("a") as file:
        file.write(
            f"include_dir = 'conf.d'\nhba_file = '{outside}/pg_hba.conf'\nident_file = '{outside}/pg_ident.conf'\n"
        )
    (outside / "conf.d" / "more.conf").write_text("work_mem = '5MB'\n")
    for path in [outside, *outside.rglob("*")]:
        servers_account.own(path)
    cluster.start({"config_file": f"{outside}/postgresql.conf"})

    found = inspect(cluster.source)
    texts = configuration(cluster.source, found)

    names = {"postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/more.conf"}
    assert set(texts) == {f"{outside}/{name}" for name in names}
    assert texts[f"{outside}/conf.d/more.conf"] == "work_mem = '5MB'\n"
    assert set(texts) <= set(found.configuration_files)


def test_configuration_inside_the_data_directory_is_not_read_twice(cluster18):
    found = inspect(cluster18.source)
    assert f"{cluster18.data}/postgresql.conf" in found.configuration_files
    assert configuration(cluster18.source, found) == {}


def test_globals_have_roles_and_no_password_unless_asked(each_cluster):
    each_cluster.query("DROP ROLE IF EXISTS clerk")
    each_cluster.query("CREATE ROLE clerk LOGIN PASSWORD 'very-secret'")
    without, with_passwords = globals_of(each_cluster.source), globals_of(each_cluster.source, passwords=True)
    assert "CREATE ROLE clerk" in without
    assert "SCRAM" not in without
    assert "SCRAM-SHA-256$" in with_passwords
    assert "CREATE TABLESPACE side" in without


def test_an_unprivileged_role_sees_the_identity_but_is_told_what_it_lacks(make_cluster, caplog):
    cluster = make_cluster(18)
    cluster.query("CREATE ROLE plain LOGIN")
    source = SourceSettings("main", cluster.instance.conninfo.replace("user=postgres", "user=plain"))
    with pytest.raises(PrivilegeMissing, match="data_directory"):
        inspect(source)
    cluster.query("GRANT pg_monitor TO plain")
    assert inspect(source).system_identifier == inspect(cluster.source).system_identifier
    (told,) = [record.getMessage() for record in caplog.records]
    assert "pg_file_settings, pg_hba_file_rules, pg_ident_file_mappings" in told
    caplog.clear()
    cluster.query("GRANT SELECT ON pg_file_settings, pg_hba_file_rules, pg_ident_file_mappings TO plain")
    functions = "pg_show_all_file_settings(), pg_hba_file_rules(), pg_ident_file_mappings()"
    cluster.query(f"GRANT EXECUTE ON FUNCTION {functions} TO plain")
    assert inspect(source).configuration_files == inspect(cluster.source).configuration_files
    assert not caplog.records


def test_a_standby_says_that_it_recovers_and_knows_its_timeline(make_cluster):
    primary = make_cluster(17)
    standby = make_cluster.standby(primary)
    found = inspect(standby.source)
    assert (found.in_recovery, found.timeline) == (True, 1)
    standby.query("SELECT pg_promote()")
    assert inspect(standby.source).timeline == 2


def test_nobody_answering_is_unreachable_and_may_be_tried_again():
    source = SourceSettings("main", f"host=127.0.0.1 port={free_port()} user=postgres")
    with pytest.raises(ServerUnreachable, match="'main'") as caught:
        connect(source)
    assert caught.value.retryable


def test_a_refused_role_lacks_a_privilege(cluster18):
    with pytest.raises(PrivilegeMissing, match="nobody_of_that_name"):
        connect(
            SourceSettings("main", cluster18.instance.conninfo.replace("user=postgres", "user=nobody_of_that_name"))
        )


@pytest.mark.parametrize("conninfo", ["host=x password=hunter2", "postgresql://u:hunter2@x/db", "host=x hunter2 oops"])
def test_a_password_in_the_connection_string_is_refused_and_never_repeated(conninfo):
    with pytest.raises(SettingsError) as caught:
        connect(SourceSettings("main", conninfo))
    assert "hunter2" not in str(caught.value.as_dict())


def test_timeouts_meant_for_applications_do_not_end_our_sessions(make_cluster):
    cluster = make_cluster(18, settings={"idle_session_timeout": "1s", "statement_timeout": "1s"})
    with connect(cluster.source) as session:
        session.execute("SELECT pg_sleep(1.5)")
