"""The deployed flows on a real PostgreSQL server: what an administrator's schedules will do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployments.processes import Child, Command
from deployments.stack import wal_companions
from seawall.catalog import Catalog, JobType, RunStatus, VerificationType
from seawall.model import BackupLabel
from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance, free_port
from seawall.repository import Repository
from seawall.settings import load
from seawall.storage import open_storage

pytestmark = [pytest.mark.prefect, pytest.mark.postgres, pytest.mark.slow]


@dataclass
class Shop:
    directory: Path
    settings_file: Path
    instance: Instance
    catalog: Catalog


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    # Not below pytest's own directory, which the server's account may not enter.
    directory = Path(tempfile.mkdtemp(prefix="seawall-flows-"))
    directory.chmod(0o755)
    account = Account.for_servers()
    home = directory / "server"
    home.mkdir()
    shutil.chown(home, account.uid, account.gid)
    instance = Instance(home / "data", find(), account)
    receiver = None
    try:
        instance.initdb()
        instance.start(free_port(), {"wal_level": "replica", "fsync": "off"})
        settings_file = write(directory, instance)
        settings = load(settings_file)
        Repository.create(open_storage(settings.repository), now=datetime.now(UTC))
        (companion,) = wal_companions(settings, settings_file)
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        receiver = Child(Command("wal", companion.arguments, environment, directory), directory / "wal.log")
        with Catalog.open(settings.catalog.url, create=True) as catalog:
            yield Shop(directory, settings_file, instance, catalog)
    finally:
        if receiver is not None:
            receiver.ask_to_end()
            receiver.wait(10)
            receiver.kill()
        instance.stop("immediate")
        shutil.rmtree(directory)


def write(directory: Path, instance: Instance) -> Path:
    path = directory / "seawall.toml"
    path.write_text(
        f"""
[repository]
url = "{directory}/repository"
[sealing]
mode = "none"
keyring = "{directory}/keyring"
[catalog]
url = "sqlite:///{directory}/catalog.db"
[server]
work_directory = "{directory}/work"
[sources.main]
conninfo = "{instance.source().conninfo}"
""",
        encoding="utf-8",
    )
    return path


def completed(prefect_stack, shop: Shop, name: str, **parameters: Any) -> None:
    deployment = prefect_stack.client.read_deployment_by_name(f"{name}/{name}")
    given = {"settings_file": str(shop.settings_file), **parameters}
    run = prefect_stack.client.create_flow_run_from_deployment(deployment.id, parameters=given)
    ended = prefect_stack.ended(run)
    assert ended.state.type.value == "COMPLETED", f"{name}: {ended.state.message}"


def test_the_flows_back_a_source_up_prove_it_restore_it_and_let_it_go(prefect_stack, shop):
    with shop.instance.connect() as session:
        session.execute("CREATE TABLE orders AS SELECT n, md5(n::text) AS note FROM generate_series(1, 1000) n")

    completed(prefect_stack, shop, "backup", source="main")
    (job,) = [job for job in shop.catalog.jobs() if job.job_type is JobType.FULL]
    execution = shop.catalog.newest_success(job.id)
    (file,) = shop.catalog.backup_files(source="main")
    assert file.execution_id == execution.id
    assert file.verified_at is not None
    assert execution.backup_size_bytes == file.file_size_bytes > 0
    assert execution.details["progress"]["plain_bytes"] > 0

    with shop.instance.connect() as session:
        session.execute("INSERT INTO orders VALUES (1001, 'after the backup')")
    completed(prefect_stack, shop, "archive-wal", source="main")
    (wal_job,) = [job for job in shop.catalog.jobs() if job.job_type is JobType.TRANSACTION_LOG]
    assert shop.catalog.newest_success(wal_job.id).details["recoverable_until"]

    into = shop.directory / "server" / "restored"
    completed(prefect_stack, shop, "restore", source="main", into=str(into))
    (recovery,) = shop.catalog.recoveries()
    assert (recovery.status, recovery.backup_file_id) == (RunStatus.COMPLETED, file.id)
    restored = Instance(into, shop.instance.binaries, shop.instance.account)
    restored.start(free_port())
    try:
        with restored.connect() as session:
            assert session.execute("SELECT count(*), max(note) FROM orders WHERE n > 1000").fetchone() == (
                1,
                "after the backup",
            )
    finally:
        restored.stop("immediate")

    expectation = {"database": "postgres", "query": "SELECT count(*) >= 1000 FROM orders", "expected": "True"}
    completed(prefect_stack, shop, "restore-test", source="main", expectations=[expectation])
    newest = shop.catalog.verifications(file.id)[0]
    assert (newest.verification_type, newest.status) == (VerificationType.RESTORE_TEST, RunStatus.COMPLETED)
    assert newest.verification_results["achieved_rto_seconds"] > 0
    assert not list((shop.directory / "work" / "scratch").iterdir())

    completed(prefect_stack, shop, "verify", source="main")
    completed(prefect_stack, shop, "retention-cleanup")
    assert [BackupLabel.parse(one.label) for one in shop.catalog.backup_files(source="main")]

    # A folder locks nothing: that is said, and is no failure.
    completed(prefect_stack, shop, "immutability-probe")
    (probing,) = [job for job in shop.catalog.jobs() if job.job_type is JobType.IMMUTABILITY]
    assert shop.catalog.newest_success(probing.id).details["primary"]["state"] == "none"


def test_damage_is_a_failed_verification_with_an_alert_and_the_backup_stays(prefect_stack, shop):
    (bundle, *_) = sorted((shop.directory / "repository").glob("sources/main/backups/*/bundles/*"))
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.chmod(0o644)
    bundle.write_bytes(content)
    deployment = prefect_stack.client.read_deployment_by_name("verify/verify")
    run = prefect_stack.client.create_flow_run_from_deployment(
        deployment.id, parameters={"source": "main", "settings_file": str(shop.settings_file)}
    )
    ended = prefect_stack.ended(run)
    assert ended.state.type.value == "FAILED"
    (file,) = shop.catalog.backup_files(source="main")
    assert shop.catalog.verifications(file.id)[0].status is RunStatus.FAILED
    assert "verify-failed" in {alert.alert_type for alert in shop.catalog.alerts()}
