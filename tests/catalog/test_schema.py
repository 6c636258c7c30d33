"""The schema: as demanded, equal on both databases, migrated whole or not at all."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from seawall.catalog import Catalog, JobType, LocationType, Logbook, schema
from seawall.catalog.database import Database, engine_url
from seawall.catalog.place import Place
from seawall.catalog.revisions import MIGRATIONS, VERSION_TABLE, known_revisions
from seawall.catalog.views import ObjectProof
from seawall.errors import (
    CatalogError,
    CatalogMissing,
    CatalogOutdated,
    CatalogTooNew,
    CatalogUnreachable,
    SettingsError,
)

DEMANDED = {
    "backup_jobs": "id name job_type schedule_cron retention_days is_active backup_targets destination_config"
    " notification_config created_at updated_at",
    "backup_executions": "id job_id execution_start execution_end status backup_size_bytes compressed_size_bytes"
    " file_path checksum error_message metadata created_at",
    "backup_files": "id execution_id file_name file_path file_size_bytes compressed_size_bytes checksum"
    " encryption_key_id storage_location expires_at verified_at created_at",
    "recovery_operations": "id recovery_type backup_file_id target_timestamp recovery_start recovery_end status"
    " recovery_details initiated_by error_message created_at",
    "backup_verifications": "id backup_file_id verification_type verification_start verification_end status"
    " verification_results error_message created_at",
    "dr_configuration": "id primary_site_config backup_site_config failover_procedures rto_hours rpo_minutes"
    " last_tested_at is_active created_at updated_at",
    "storage_locations": "id name location_type connection_config encryption_config capacity_bytes used_bytes"
    " is_active last_health_check created_at",
    "backup_alerts": "id alert_type severity message alert_data acknowledged_at acknowledged_by resolved_at created_at",
    "users": "id name email role is_active created_at",
    "audit": "id recorded_at actor action subject details previous_hash hash",
}
DESCENDING = (
    "ix_backup_executions_execution_start",
    "ix_recovery_operations_recovery_start",
    "ix_backup_alerts_created_at",
)
INDEXED = {
    "backup_executions": {"job_id", "status"},
    "backup_files": {"execution_id", "expires_at"},
    "backup_verifications": {"backup_file_id"},
    "backup_alerts": {"severity"},
}
REFERENCES = {
    ("backup_executions", "job_id", "backup_jobs"),
    ("backup_files", "execution_id", "backup_executions"),
    ("recovery_operations", "backup_file_id", "backup_files"),
    ("recovery_operations", "initiated_by", "users"),
    ("backup_verifications", "backup_file_id", "backup_files"),
    ("backup_alerts", "acknowledged_by", "users"),
}


@pytest.fixture
def inspector(url: str):
    engine = sa.create_engine(engine_url(Place.parse(url)))
    yield sa.inspect(engine)
    engine.dispose()


def test_every_demanded_table_has_every_demanded_column(inspector: sa.Inspector) -> None:
    for table, columns in DEMANDED.items():
        assert set(columns.split()) <= {column["name"] for column in inspector.get_columns(table)}, table


def test_demanded_indexes_and_references_exist(inspector: sa.Inspector) -> None:
    for table, columns in INDEXED.items():
        plain = {tuple(index["column_names"]) for index in inspector.get_indexes(table)}
        assert {(column,) for column in columns} <= plain, table
    found = {
        (table, key["constrained_columns"][0], key["referred_table"])
        for table in DEMANDED
        for key in inspector.get_foreign_keys(table)
    }
    assert found == REFERENCES


def test_newest_first_indexes_are_descending(url: str) -> None:
    database = Database(Place.parse(url))
    query = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index'"
        if database.is_sqlite
        else "SELECT indexname, indexdef FROM pg_indexes"
    )
    with database.reading() as session:
        definitions = dict(session.connection().exec_driver_sql(query).tuples().all())
    database.close()
    for name in DESCENDING:
        assert " DESC" in definitions[name]


def test_lengths_defaults_and_types_are_the_demanded_ones(inspector: sa.Inspector) -> None:
    columns = {(table, column["name"]): column for table in DEMANDED for column in inspector.get_columns(table)}
    assert columns["backup_jobs", "name"]["type"].length == 200
    assert columns["backup_jobs", "schedule_cron"]["type"].length == 100
    assert not columns["backup_files", "checksum"]["nullable"]
    defaults = {
        ("backup_executions", "status"): "running",
        ("recovery_operations", "status"): "pending",
        ("backup_verifications", "status"): "pending",
        ("dr_configuration", "rto_hours"): "4",
        ("dr_configuration", "rpo_minutes"): "15",
    }
    for place, default in defaults.items():
        assert default in str(columns[place]["default"])
    if inspector.engine.dialect.name == "postgresql":
        assert isinstance(columns["audit", "id"]["type"], sa.UUID)
        for (_table, name), column in columns.items():
            text = str(column["type"])
            assert text != "JSON", name
            assert "TIMESTAMP" not in text or column["type"].timezone, name
        assert str(columns["backup_executions", "metadata"]["type"]) == "JSONB"


@pytest.mark.parametrize(
    ("table", "column"), [("backup_executions", "status"), ("backup_jobs", "job_type"), ("backup_alerts", "severity")]
)
def test_the_database_itself_refuses_a_value_outside_an_enumeration(
    inspector: sa.Inspector, table: str, column: str
) -> None:
    texts = [constraint["sqltext"] for constraint in inspector.get_check_constraints(table)]
    assert any(column in text for text in texts), texts


def test_a_fresh_catalog_equals_the_models(catalog: Catalog) -> None:
    assert catalog.check() == ()


def test_check_names_a_missing_trigger_index_and_column(catalog: Catalog, execute: Callable[[str], None]) -> None:
    on_table = "" if "sqlite" in str(catalog._database.url) else " ON audit_head"
    execute(f"DROP TRIGGER audit_head_only_advances{on_table}")
    execute("DROP INDEX ix_backup_alerts_created_at")
    execute("ALTER TABLE backup_jobs ADD COLUMN surprise INTEGER")
    found = " ".join(catalog.check())
    for name in ("audit_head_only_advances", "ix_backup_alerts_created_at", "surprise"):
        assert name in found


def test_downgrade_leaves_nothing_and_upgrade_comes_back(catalog: Catalog) -> None:
    schema.downgrade(catalog._database, "base")
    with catalog._database.reading() as session:
        assert set(sa.inspect(session.connection()).get_table_names()) <= {VERSION_TABLE}
    catalog.upgrade()
    assert catalog.check() == ()


def test_rows_of_an_older_schema_survive_the_upgrade(catalog: Catalog, now) -> None:
    job = catalog.ensure_job("main-full", JobType.FULL, backup_targets={}, destination_config={}, now=now)
    execution = catalog.begin_execution(job, now=now, lease=timedelta(minutes=1))
    swept = catalog.ensure_job("retention", JobType.RETENTION, backup_targets={}, destination_config={}, now=now)
    catalog.begin_execution(swept, now=now, lease=timedelta(minutes=1))
    schema.downgrade(catalog._database, "0001")
    catalog.upgrade()
    assert catalog.check() == ()
    # The older schema has no room for jobs of maintenance; everything else comes back.
    assert [(one.id, one.name, one.job_type) for one in catalog.jobs()] == [(job, "main-full", JobType.FULL)]
    assert [one.id for one in catalog.executions()] == [execution]


def test_upgrade_of_the_newest_schema_does_nothing(catalog: Catalog, now) -> None:
    user = catalog.ensure_user("ada", now=now)
    assert catalog.upgrade() == catalog.upgrade()
    assert catalog.users()[0].id == user


def test_a_catalog_of_a_newer_version_is_refused_everywhere(
    catalog: Catalog, url: str, execute: Callable[[str], None]
) -> None:
    execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for use in (lambda: Catalog.open(url), lambda: Catalog.open(url, create=True), catalog.upgrade, catalog.check):
        with pytest.raises(CatalogTooNew, match="9999"):
            use()


def test_a_database_without_a_catalog_says_so_at_first_use(empty_url: str, tmp_path: Path) -> None:
    if empty_url.startswith("sqlite"):
        (tmp_path / "catalog.db").touch(0o600)
    with Catalog.open(empty_url) as catalog:
        with pytest.raises(CatalogMissing):
            catalog.jobs()
        catalog.upgrade()
        assert catalog.jobs() == ()


def test_a_catalog_with_pending_migrations_says_so(url: str, execute: Callable[[str], None]) -> None:
    oldest, *_, newest = known_revisions()
    execute(f"UPDATE {VERSION_TABLE} SET version_num = '{oldest}'")
    for kind in (Catalog, Logbook):
        with kind.open(url) as opened, pytest.raises(CatalogOutdated, match=newest):
            opened.jobs()


def test_the_revisions_that_files_are_named_after_are_those_that_alembic_knows() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert known_revisions() == tuple(script.revision for script in scripts.walk_revisions())[::-1]
    assert known_revisions()[-1] == scripts.get_current_head()


def test_a_migration_that_fails_half_way_leaves_the_old_schema(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("the power went out")

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "bulk_insert", fail)
        with pytest.raises(RuntimeError):
            Catalog.open(empty_url, create=True)
    database = Database(Place.parse(empty_url))
    with database.reading() as session:
        assert sa.inspect(session.connection()).get_table_names() == []
    database.close()
    with Catalog.open(empty_url, create=True) as catalog:
        assert catalog.check() == ()


def test_other_tables_in_the_database_are_none_of_its_business(
    catalog: Catalog, execute: Callable[[str], None]
) -> None:
    execute("CREATE TABLE somebody_elses (id INTEGER PRIMARY KEY)")
    assert catalog.check() == ()


def test_an_sqlite_catalog_is_private_and_survives_power_failure(tmp_path: Path, now) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(f"sqlite:///{path}", create=True) as catalog:
        catalog.ensure_user("ada", now=now)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        with catalog._database.reading() as session:
            settings = {
                name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_a_catalog_below_a_path_with_spaces_and_percent_signs_works(tmp_path: Path) -> None:
    folder = tmp_path / "50% of läden"
    folder.mkdir()
    with Catalog.open(f"sqlite:///{folder / 'my catalog.db'}", create=True) as catalog:
        assert catalog.check() == ()


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogMissing, match="nowhere") as caught:
        Catalog.open(f"sqlite:///{tmp_path}/nowhere/catalog.db", create=True)
    assert "mkdir" in caught.value.hint
    with pytest.raises(CatalogMissing, match=r"catalog\.db"):
        Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"these are holiday photographs " * 100)
    path.chmod(0o600)
    with pytest.raises(CatalogError, match="not a database"):
        Catalog.open(f"sqlite:///{path}", create=True)
    assert path.read_bytes().startswith(b"these are holiday")


@pytest.mark.parametrize(
    "bad",
    ["nonsense", "mysql://db/catalog", "sqlite://", "sqlite:///:memory:", "postgresql://seawall:hunter2@db/catalog"],
)
def test_a_wrong_url_is_refused_without_showing_a_password(bad: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Catalog.open(bad)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_an_unreachable_server_can_be_tried_again() -> None:
    with pytest.raises(CatalogUnreachable) as caught:
        Catalog.open("postgresql://postgres@127.0.0.1:1/catalog")
    assert caught.value.retryable


@pytest.mark.slow
def test_processes_that_create_the_same_catalog_together_make_one(empty_url: str) -> None:
    program = "import sys; from seawall.catalog import Catalog; Catalog.open(sys.argv[1], create=True).close()"
    processes = [subprocess.Popen([sys.executable, "-c", program, empty_url]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with Catalog.open(empty_url) as catalog:
        assert catalog.check() == ()


def test_everything_that_migrates_lies_in_the_package() -> None:
    migrations = Path(schema.__file__).parent / "migrations"
    for file in ("env.py", "script.py.mako", "alembic.ini", "versions/0001_initial_tables.py"):
        assert (migrations / file).is_file()


def test_a_migration_can_be_drafted_and_finds_nothing_to_change(catalog: Catalog, url: str, tmp_path: Path) -> None:
    source = Path(schema.__file__).parent / "migrations"
    drafts = tmp_path / "migrations"
    shutil.copytree(source, drafts, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "alembic", "-c", drafts / "alembic.ini", "-x", f"url={url}"]
    subprocess.run([*command, "revision", "--autogenerate", "-m", "nothing", "--rev-id", "9000"], check=True)
    text = (drafts / "versions" / "9000_nothing.py").read_text()
    assert "op." not in text
    assert "pass" in text
    subprocess.run([*command, "upgrade", "head"], check=True)
    with pytest.raises(CatalogTooNew):
        catalog.upgrade()


@pytest.mark.postgres
def test_a_role_that_owns_nothing_can_do_the_daily_work_but_not_switch_triggers_off(server, migrated: str, now) -> None:
    database = server.new_database(migrated)
    server.execute("DO $$ BEGIN CREATE ROLE daily LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    page = (Path(schema.__file__).parents[2] / "docs" / "reference" / "catalog.md").read_text(encoding="utf-8")
    granted = re.findall(r"^GRANT .* TO seawall;$", page, re.MULTILINE)
    assert len(granted) == 2
    for statement in granted:
        server.execute(statement.replace("TO seawall", "TO daily"), database)
    url = server.url(database).replace("postgres@", "daily@")
    with Catalog.open(url) as catalog:
        assert catalog.check() == ()
        job = catalog.ensure_job("a", JobType.FULL, backup_targets={}, destination_config={}, now=now)
        run = catalog.begin_execution(job, now=now, lease=timedelta(minutes=1))
        catalog.renew(run, now, timedelta(minutes=1))
        assert catalog.reconcile(now + timedelta(hours=1)) == (run,)
        catalog.audit("daily", "x", "y", {}, now)
        assert catalog.verify_audit().good
        catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={"url": "/vault"}, now=now)
        for repeated in (1, 2):
            catalog.record_proofs(job, "vault", [ObjectProof("bundles/1", "hash-good", now)])
            catalog.record_copies(job, "shop", "vault", ["a"], now=now)
            catalog.record_measurement(
                "vault", used_bytes=repeated, object_count=1, capacity_bytes=None, details={}, measured_at=now
            )
        catalog.forget_proofs(job, "vault", ["bundles/1"])
        with pytest.raises(CatalogError, match="permission denied"), catalog._database.writing() as session:
            session.connection().exec_driver_sql("DELETE FROM backup_executions")
        with pytest.raises(CatalogError, match="must be owner"), catalog._database.writing() as session:
            session.connection().exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER USER")
