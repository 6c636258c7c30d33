"""The logbook and the rest of the catalog are two ways to the same rows."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlmodel import select

from seawall.catalog import (
    Alert,
    BackupFile,
    BackupOutcome,
    Catalog,
    Execution,
    Job,
    JobType,
    LocationType,
    Logbook,
    Recovery,
    RecoveryType,
    RunStatus,
    Severity,
    StorageLocation,
    Verification,
    VerificationType,
    models,
)
from seawall.catalog.logbook.rows import TABLES
from seawall.catalog.place import Place
from seawall.catalog.records import view
from seawall.catalog.views import AuditAnchor, AuditEntry
from seawall.errors import CatalogError, CatalogUnreachable, LeaseHeld, RecordMissing, SettingsError

LEASE = timedelta(minutes=1)
ROWS = {
    Job: models.BackupJobRow,
    Execution: models.BackupExecutionRow,
    BackupFile: models.BackupFileRow,
    Recovery: models.RecoveryOperationRow,
    Verification: models.BackupVerificationRow,
    StorageLocation: models.StorageLocationRow,
    Alert: models.BackupAlertRow,
    AuditEntry: models.AuditRow,
}


def file_of(execution: UUID, now: datetime) -> BackupFile:
    return BackupFile(
        id=uuid4(), execution_id=execution, file_name="20261123-020000F", file_path="sources/shop/backups/x",
        file_size_bytes=1 << 40, compressed_size_bytes=3, checksum="ab" * 32, encryption_key_id=None,
        storage_location="nas", expires_at=now, verified_at=None, created_at=now, repository_id=uuid4(),
        source="shop", label="20261123-020000F", expired_at=None, suspicions=["twice as large"],
    )  # fmt: skip


def fill(logbook: Logbook, now: datetime) -> None:
    """One row in each table, with something in every kind of column."""
    job = logbook.ensure_job(
        "läden",
        JobType.FULL,
        backup_targets={"source": "shop"},
        destination_config={"n": [1, 2.5, None, True]},
        now=now,
    )
    run = logbook.begin_execution(job, now=now, lease=LEASE, flow_run_id=uuid4(), host="db1")
    logbook.finish_execution(
        run, status=RunStatus.FAILED, now=now, outcome=BackupOutcome(1 << 40, 2, "a/b", "cd", {"when": now}),
        error=CatalogError("naïve \x00 text"),
    )  # fmt: skip
    file = file_of(run, now)
    with logbook._writes() as rows:
        assert rows.insert(file)
    proof = logbook.begin_verification(file.id, VerificationType.CHECKSUM, now=now, lease=LEASE)
    logbook.finish_verification(proof, status=RunStatus.COMPLETED, now=now, results={"objects": 3})
    logbook.begin_recovery(RecoveryType.FULL, backup_file_id=file.id, target_timestamp=now, now=now, lease=LEASE)
    logbook.ensure_storage_location("nas", LocationType.LOCAL, connection_config={"url": "/n"}, role="mirror", now=now)
    logbook.observe_storage_location("nas", now=now, latency_ms=3, problem="slow")
    logbook.raise_alert("backup-failed", Severity.LOW, "no", subject="shop", data={"a": 1}, now=now)
    logbook.raise_alert("backup-failed", Severity.HIGH, "still no", subject="shop", now=now)
    logbook.audit("ada", "backup.take", "shop", {"bytes": 1.5}, now)


def test_sqlmodel_reads_exactly_what_a_logbook_wrote_and_reads(catalog: Catalog, url: str, now: datetime) -> None:
    with Logbook.open(url) as logbook:
        fill(logbook, now)
        assert set(ROWS) == set(TABLES)
        for kind, table in ROWS.items():
            with logbook._reads() as rows, catalog._reading() as session:
                read = rows.all(kind)
                assert read
                assert read == tuple(view(kind, row) for row in session.exec(select(table)))
    assert catalog.check() == ()
    assert catalog.verify_audit().good


def test_a_logbook_reads_what_sqlmodel_wrote(catalog: Catalog, url: str, now: datetime) -> None:
    with Logbook.open(url) as logbook:
        fill(logbook, now)
        with catalog._writing() as session:
            (row,) = session.exec(select(models.BackupAlertRow))
            row.alert_data, row.resolved_at, row.severity = {"x": {"y": [None]}}, now + LEASE, Severity.CRITICAL
            session.add(row)
        with logbook._reads() as rows:
            (read,) = rows.all(Alert)
    assert (read.alert_data, read.resolved_at, read.severity) == ({"x": {"y": [None]}}, now + LEASE, Severity.CRITICAL)


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(catalog: Catalog, now: datetime) -> None:
    job = catalog.ensure_job("a", JobType.FULL, backup_targets={}, destination_config={}, now=now)
    with pytest.raises(RuntimeError), catalog._writes() as rows:
        rows.update(Job, job, retention_days=1)
        raise RuntimeError("the power went out")
    with pytest.raises(CatalogError, match="refused"), catalog._writes() as rows:
        rows.update(Job, job, retention_days=None)
    assert catalog.job(job).retention_days == 30
    with pytest.raises(RecordMissing):
        catalog.retire_storage_location("nowhere")


def test_of_many_that_begin_a_job_at_once_one_may(catalog: Catalog, url: str, now: datetime) -> None:
    job = catalog.ensure_job("a", JobType.FULL, backup_targets={}, destination_config={}, now=now)
    answers: list[object] = []
    start = threading.Barrier(6)

    def begin() -> None:
        with Logbook.open(url) as logbook:
            start.wait()
            try:
                answers.append(logbook.begin_execution(job, now=now, lease=LEASE))
            except LeaseHeld:
                answers.append("held")

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("held") == 5
    assert [one.id for one in catalog.executions()] == [one for one in answers if one != "held"]


def test_an_older_end_of_a_repositorys_audit_never_takes_the_place_of_a_newer(catalog: Catalog, now: datetime) -> None:
    repository = uuid4()
    for sequence in (3, 5, 4):
        catalog.keep_repository_anchor(repository, AuditAnchor(sequence, f"{sequence}" * 64), now=now)
    assert catalog.repository_anchor(repository) == AuditAnchor(5, "5" * 64)


@pytest.mark.postgres
def test_a_logbook_goes_on_after_its_server_ended_the_connection(server, migrated: str) -> None:
    database = server.new_database(migrated)
    with Logbook.open(server.url(database)) as logbook:
        assert logbook.jobs() == ()
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        assert logbook.jobs() == ()


def test_a_server_that_is_away_can_be_tried_again() -> None:
    with pytest.raises(CatalogUnreachable) as caught:
        Logbook.open("postgresql://postgres@127.0.0.1:1/catalog")
    assert caught.value.retryable


def test_a_url_says_where_and_never_how_to_log_in() -> None:
    place = Place.parse("postgresql+psycopg://seawall@[::1]:5432/seawall?passfile=/etc/pgpass&host=/run")
    assert (place.url, place.file) == ("postgresql://seawall@[::1]:5432/seawall?passfile=/etc/pgpass&host=/run", None)
    assert str(Place.parse("sqlite:////var/50% of läden/c.db").file) == "/var/50% of läden/c.db"
    for bad in ("postgresql://a:b@h/d", "postgresql://h/d?password=b", "postgresql://h/d?a=1&password=", "sqlite:///"):
        with pytest.raises(SettingsError):
            Place.parse(bad)


def test_a_logbook_needs_no_library_of_the_catalog(fresh_modules: Callable[[str], set[str]]) -> None:
    loaded = fresh_modules("import seawall.cli.recorded, seawall.catalog.logbook")
    assert "seawall.catalog.logbook" in loaded
    assert not loaded & {"sqlalchemy", "sqlmodel", "pydantic", "alembic", "psycopg"}
    assert "sqlmodel" in fresh_modules("from seawall.catalog import Catalog")


@pytest.fixture
def fresh_modules() -> Callable[[str], set[str]]:
    """The modules that a new interpreter has loaded after a statement."""

    def loaded(statement: str) -> set[str]:
        import subprocess

        program = f"{statement}\nimport sys\nprint(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return loaded
