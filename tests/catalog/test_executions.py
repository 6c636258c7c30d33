"""Executions: one at a time for each job, alive by lease, ended once, and what they made."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from seawall.catalog import BackupOutcome, Catalog, JobType, RunStatus, VerificationType
from seawall.errors import CatalogError, LeaseHeld, LeaseLost, RecordMissing, StorageFull, UsageError
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    SealingMode,
)
from seawall.process import identity
from seawall.wal import Lsn

LEASE = timedelta(minutes=2)
MINUTE = timedelta(minutes=1)
REPOSITORY = UUID("6f7f5b1e-6a53-4b8e-9a55-5f4f9e0d8a11")


@pytest.fixture
def job(catalog: Catalog, new_job: Callable[[Catalog], UUID]) -> UUID:
    return new_job(catalog)


def test_a_run_whose_process_was_killed_on_this_host_is_not_waited_for_and_one_that_lives_is(
    catalog: Catalog, job: UUID
) -> None:
    now = datetime(2026, 11, 23, 2, tzinfo=UTC)
    code = "from seawall import process; print(process.identity())"
    gone = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    killed = catalog.begin_execution(job, now=now, lease=LEASE, process=gone)
    alive = catalog.begin_execution(job, now=now, lease=LEASE, process=identity())
    row = next(one for one in catalog.executions(job) if one.id == killed)
    assert row.status is RunStatus.FAILED
    assert row.error_message is not None and row.error_message.startswith("[worker-gone]")
    with pytest.raises(LeaseHeld):
        catalog.begin_execution(job, now=now, lease=LEASE, process=identity())
    catalog.finish_execution(alive, status=RunStatus.COMPLETED, now=now)
    elsewhere = catalog.begin_execution(job, now=now, lease=LEASE, process="another-boot/pid:[1]/77/88")
    with pytest.raises(LeaseHeld):
        catalog.begin_execution(job, now=now, lease=LEASE)
    catalog.renew(elsewhere, now, LEASE)


def test_the_flow_runs_of_what_was_killed_on_this_host_are_known_before_its_lease_ran_out(
    catalog: Catalog, job: UUID, new_job: Callable[..., UUID], now: datetime
) -> None:
    code = "from seawall import process; print(process.identity())"
    gone = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    flow = uuid4()
    killed = catalog.begin_execution(job, now=now, lease=LEASE, flow_run_id=flow, process=gone)
    catalog.begin_execution(new_job(catalog, "by hand"), now=now, lease=LEASE, process=gone)
    for name, process in (("alive", identity()), ("elsewhere", "another-boot/pid:[1]/77/88"), ("unknown", "")):
        catalog.begin_execution(new_job(catalog, name), now=now, lease=LEASE, flow_run_id=uuid4(), process=process)
    assert catalog.runs_of_killed() == (flow,)
    catalog.finish_execution(killed, status=RunStatus.FAILED, now=now)
    assert catalog.runs_of_killed() == ()


def head_of(label: str = "20261123T020000Z-full", source: str = "shop", manifest: str = "ab" * 32) -> Head:
    parsed = BackupLabel.parse(label)
    return Head(
        label=parsed,
        source=source,
        kind=BackupKind.FULL,
        mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7300000000000000001, 18, (1,)),
        server_version=180006,
        timeline=1,
        start_lsn=Lsn.parse("0/2000028"),
        stop_lsn=Lsn.parse("0/2000158"),
        segment_bytes=16 << 20,
        began_at=parsed.begun_at,
        ended_at=parsed.begun_at + MINUTE,
        stopped_at=parsed.begun_at + MINUTE,
        plain_bytes=3_000_000_000,
        stored_bytes=900_000_000,
        file_count=1200,
        object_count=15,
        compression=Compression.ZSTD,
        sealing=SealingMode.AES_256_GCM,
        key_id="k1",
        manifest_sha256=manifest,
        manifest_bytes=1000,
    )


def record(catalog: Catalog, job: UUID, execution: UUID, now: datetime, head: Head | None = None) -> UUID:
    return catalog.record_backup(
        head or head_of(),
        job_id=job,
        execution_id=execution,
        repository_id=REPOSITORY,
        storage_location="vault",
        expires_at=now + timedelta(days=30),
        now=now,
    )


def test_a_running_job_does_not_run_again(catalog: Catalog, job: UUID, now: datetime) -> None:
    first = catalog.begin_execution(job, now=now, lease=LEASE)
    with pytest.raises(LeaseHeld, match="shop nightly"):
        catalog.begin_execution(job, now=now + MINUTE, lease=LEASE)
    assert [run.id for run in catalog.executions(job)] == [first]


def test_another_job_runs_beside_it(catalog: Catalog, job: UUID, now: datetime, new_job: Callable[..., UUID]) -> None:
    catalog.begin_execution(job, now=now, lease=LEASE)
    catalog.begin_execution(new_job(catalog, "other"), now=now, lease=LEASE)


def test_after_its_lease_ran_out_a_job_may_run_again_and_the_old_run_is_failed(
    catalog: Catalog, job: UUID, now: datetime
) -> None:
    first = catalog.begin_execution(job, now=now, lease=LEASE)
    later = now + LEASE + timedelta(seconds=1)
    second = catalog.begin_execution(job, now=later, lease=LEASE)
    given_up = catalog.execution(first)
    assert (given_up.status, given_up.execution_end) == (RunStatus.FAILED, later)
    assert "lease ran out" in (given_up.error_message or "")
    assert catalog.execution(second).status is RunStatus.RUNNING
    with pytest.raises(LeaseLost):
        catalog.renew(first, later, LEASE)


def test_a_renewed_lease_holds_longer(catalog: Catalog, job: UUID, now: datetime) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    catalog.renew(run, now + MINUTE, LEASE)
    after_first_lease = now + LEASE + timedelta(seconds=1)
    assert catalog.reconcile(after_first_lease) == ()
    with pytest.raises(LeaseHeld):
        catalog.begin_execution(job, now=after_first_lease, lease=LEASE)


def test_an_ended_execution_makes_room_for_the_next(catalog: Catalog, job: UUID, now: datetime) -> None:
    for number, status in enumerate((RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PARTIAL)):
        start = now + number * MINUTE
        run = catalog.begin_execution(job, now=start, lease=LEASE)
        catalog.finish_execution(run, status=status, now=start + timedelta(seconds=30))
    assert len(catalog.executions(job)) == 4


def test_threads_that_begin_together_get_one_execution(url: str, catalog: Catalog, job: UUID, now: datetime) -> None:
    with Catalog.open(url) as other:
        outcomes: list[object] = []
        gate = threading.Barrier(8)

        def begin(opened: Catalog) -> None:
            gate.wait()
            try:
                outcomes.append(opened.begin_execution(job, now=now, lease=LEASE))
            except LeaseHeld as error:
                outcomes.append(error)

        threads = [threading.Thread(target=begin, args=(opened,)) for opened in (catalog, other) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outcomes) == 8
    assert sum(isinstance(outcome, UUID) for outcome in outcomes) == 1


PROCESS = """
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID
from seawall.catalog import Catalog
from seawall.errors import LeaseHeld

catalog = Catalog.open(sys.argv[1])
catalog.jobs()
print("ready", flush=True)
sys.stdin.readline()
wins = 0
for minute in range(20):
    try:
        # Every lease has run out by the next round: each round is a race to take over.
        catalog.begin_execution(
            UUID(sys.argv[2]),
            now=datetime(2026, 11, 23, tzinfo=UTC) + timedelta(minutes=minute),
            lease=timedelta(seconds=30),
        )
        wins += 1
    except LeaseHeld:
        pass
print(wins, flush=True)
"""


@pytest.mark.slow
def test_processes_that_race_to_take_over_never_run_a_job_twice(url: str, catalog: Catalog, job: UUID) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, url, str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.stdin and process.stdin.write("go\n") and process.stdin.flush() for process in processes]
    wins = [int(process.communicate()[0]) for process in processes]
    assert len(answers) == 3
    runs = catalog.executions(job, limit=200)
    assert len(runs) == sum(wins)
    # Rounds of different processes overlap, so that a process late by a round is refused, but no minute was won twice.
    starts = [run.execution_start for run in runs]
    assert len(starts) == len(set(starts))
    assert len(runs) >= 1
    assert sum(run.status is RunStatus.RUNNING for run in runs) == 1


def test_an_end_is_recorded_once_and_the_same_end_again_is_nothing(catalog: Catalog, job: UUID, now: datetime) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE, flow_run_id=uuid4())
    outcome = BackupOutcome.of(head_of(), {"rate": 1.5})
    catalog.finish_execution(run, status=RunStatus.COMPLETED, now=now + MINUTE, outcome=outcome)
    ended = catalog.execution(run)
    assert (ended.status, ended.execution_end) == (RunStatus.COMPLETED, now + MINUTE)
    assert (ended.backup_size_bytes, ended.compressed_size_bytes) == (3_000_000_000, 900_000_000)
    assert ended.file_path == "sources/shop/backups/20261123T020000Z-full"
    assert ended.checksum == "ab" * 32
    assert ended.lease_expires_at is None
    assert ended.details["rate"] == 1.5
    assert ended.details["backup"]["start_lsn"] == "0/2000028"  # type: ignore[index]
    assert ended.details["backup"]["cluster"]["system_identifier"] == 7300000000000000001  # type: ignore[index]
    catalog.finish_execution(run, status=RunStatus.COMPLETED, now=now + 2 * MINUTE)
    assert catalog.execution(run) == ended
    with pytest.raises(CatalogError, match="already ended as completed"):
        catalog.finish_execution(run, status=RunStatus.FAILED, now=now + 2 * MINUTE)


def test_a_failure_keeps_the_error_with_its_hint_whatever_bytes_are_in_it(
    catalog: Catalog, job: UUID, now: datetime
) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    error = StorageFull("no space on \x00 /vault \udcff left")
    catalog.finish_execution(run, status=RunStatus.FAILED, now=now, error=error)
    failed = catalog.execution(run)
    assert failed.error_message is not None
    assert failed.error_message.startswith("[storage-full] no space on \ufffd /vault \ufffd left")
    assert error.hint in failed.error_message
    assert failed.details["error"]["code"] == "storage-full"  # type: ignore[index]


def test_an_execution_cannot_end_as_running(catalog: Catalog, job: UUID, now: datetime) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    with pytest.raises(UsageError):
        catalog.finish_execution(run, status=RunStatus.RUNNING, now=now)


def test_a_worker_given_up_that_reports_after_all_is_believed_once(catalog: Catalog, job: UUID, now: datetime) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    later = now + timedelta(hours=1)
    assert catalog.reconcile(later) == (run,)
    catalog.finish_execution(run, status=RunStatus.COMPLETED, now=later, outcome=BackupOutcome.of(head_of()))
    ended = catalog.execution(run)
    assert (ended.status, ended.error_message) == (RunStatus.COMPLETED, None)
    assert "reported_after_lease_lapsed_at" in ended.details
    with pytest.raises(CatalogError):
        catalog.finish_execution(run, status=RunStatus.FAILED, now=later)


def test_a_worker_given_up_that_reports_its_failure_replaces_the_guess(
    catalog: Catalog, job: UUID, now: datetime
) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    catalog.reconcile(now + timedelta(hours=1))
    catalog.finish_execution(
        run, status=RunStatus.FAILED, now=now + timedelta(hours=1), error=StorageFull("no space left")
    )
    assert "no space left" in (catalog.execution(run).error_message or "")


def test_reconciling_fails_whatever_is_silent_and_nothing_else(catalog: Catalog, job: UUID, now: datetime) -> None:
    flow = uuid4()
    run = catalog.begin_execution(job, now=now, lease=LEASE, flow_run_id=flow)
    file = record(catalog, job, run, now)
    verification = catalog.begin_verification(file, VerificationType.INTEGRITY, now=now, lease=LEASE)
    alive = catalog.begin_verification(file, VerificationType.CHECKSUM, now=now, lease=timedelta(days=1))
    recovery = catalog.begin_recovery("full", backup_file_id=file, now=now, lease=LEASE)
    assert catalog.reconcile(now + LEASE) == ()
    later = now + LEASE + timedelta(microseconds=1)
    assert set(catalog.reconcile(later)) == {run, verification, recovery}
    assert catalog.reconcile(later) == ()
    assert catalog.verification(alive).status is RunStatus.RUNNING
    for given_up in (catalog.execution(run), catalog.verification(verification), catalog.recovery(recovery)):
        assert given_up.status is RunStatus.FAILED
        assert "lease ran out" in (given_up.error_message or "")
    assert catalog.flow_run_of(run) == flow
    assert catalog.flow_run_of(recovery) is None
    with pytest.raises(RecordMissing):
        catalog.flow_run_of(uuid4())


def test_recoveries_and_verifications_are_renewed_like_executions(catalog: Catalog, job: UUID, now: datetime) -> None:
    recovery = catalog.begin_recovery("point_in_time", target_timestamp=now, now=now, lease=LEASE)
    catalog.renew(recovery, now + MINUTE, timedelta(hours=1))
    assert catalog.reconcile(now + timedelta(minutes=30)) == ()
    with pytest.raises(RecordMissing):
        catalog.renew(uuid4(), now, LEASE)
    with pytest.raises(UsageError):
        catalog.renew(recovery, now, timedelta(0))


def test_a_backup_is_recorded_once_however_often_it_is_reported(catalog: Catalog, job: UUID, now: datetime) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    file_id = record(catalog, job, run, now)
    assert record(catalog, job, run, now + MINUTE) == file_id
    (file,) = catalog.backup_files()
    assert (file.id, file.file_name, file.file_path) == (
        file_id,
        "20261123T020000Z-full",
        "sources/shop/backups/20261123T020000Z-full",
    )
    assert (file.file_size_bytes, file.compressed_size_bytes) == (3_000_000_000, 900_000_000)
    assert (file.checksum, file.encryption_key_id, file.storage_location) == ("ab" * 32, "k1", "vault")
    assert file.created_at == now
    assert catalog.find_backup_file(str(REPOSITORY), "shop", "20261123T020000Z-full") == file


def test_a_set_with_another_manifest_under_the_same_label_is_refused(
    catalog: Catalog, job: UUID, now: datetime
) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    record(catalog, job, run, now)
    with pytest.raises(CatalogError, match="manifest"):
        record(catalog, job, run, now, replace(head_of(), manifest_sha256="cd" * 32))
    assert catalog.backup_files()[0].checksum == "ab" * 32


def test_a_backup_of_an_execution_of_another_job_is_refused(
    catalog: Catalog, job: UUID, now: datetime, new_job: Callable[..., UUID]
) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    with pytest.raises(CatalogError, match="is not of job"):
        record(catalog, new_job(catalog, "other"), run, now)
    with pytest.raises(RecordMissing):
        record(catalog, job, uuid4(), now)


def test_expired_files_are_found_by_time_and_leave_the_list_when_removed(
    catalog: Catalog, job: UUID, now: datetime
) -> None:
    run = catalog.begin_execution(job, now=now, lease=LEASE)
    file = record(catalog, job, run, now)
    month = timedelta(days=30)
    assert catalog.backup_files(expiring_before=now + month - MINUTE) == ()
    assert [found.id for found in catalog.backup_files(expiring_before=now + month)] == [file]
    catalog.record_expiry(file, now=now + month)
    catalog.record_expiry(file, now=now + 2 * month)
    assert catalog.backup_files() == ()
    assert catalog.backup_files(include_expired=True)[0].expired_at == now + month


def test_the_newest_success_is_the_last_that_completed(catalog: Catalog, job: UUID, now: datetime) -> None:
    assert catalog.newest_success(job) is None
    ends = (RunStatus.COMPLETED, RunStatus.COMPLETED, RunStatus.PARTIAL, RunStatus.FAILED)
    runs = []
    for number, status in enumerate(ends):
        runs.append(catalog.begin_execution(job, now=now + number * MINUTE, lease=LEASE))
        catalog.finish_execution(runs[-1], status=status, now=now + number * MINUTE)
    newest = catalog.newest_success(job)
    assert newest is not None
    assert newest.id == runs[1]
    assert [run.id for run in catalog.executions(job)] == runs[::-1]


def test_a_time_in_another_zone_comes_back_as_the_same_moment_in_utc(catalog: Catalog, job: UUID) -> None:
    moment = datetime.fromisoformat("2026-11-23T03:00:00.5+01:00")
    run = catalog.execution(catalog.begin_execution(job, now=moment, lease=LEASE))
    assert run.execution_start == moment
    assert run.execution_start.tzinfo is UTC


def test_a_naive_time_is_refused(catalog: Catalog, job: UUID) -> None:
    naive = datetime(2026, 11, 23)  # noqa: DTZ001 - naive on purpose
    for use in (
        lambda: catalog.begin_execution(job, now=naive, lease=LEASE),
        lambda: catalog.reconcile(naive),
        lambda: catalog.begin_recovery("full", target_timestamp=naive, now=datetime.now(UTC), lease=LEASE),
    ):
        with pytest.raises(UsageError, match="no offset"):
            use()


def test_a_job_with_history_cannot_be_deleted_behind_the_catalogs_back(
    catalog: Catalog, job: UUID, now: datetime, execute: Callable[[str], None], url: str
) -> None:
    import sqlalchemy.exc

    catalog.begin_execution(job, now=now, lease=LEASE)
    statement = "DELETE FROM backup_jobs"
    with pytest.raises(CatalogError), catalog._database.writing() as session:
        session.connection().exec_driver_sql(statement)
    assert len(catalog.jobs()) == 1
    if url.startswith("postgresql"):
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            execute(statement)


def test_every_job_type_of_the_product_can_be_stored(catalog: Catalog, now: datetime) -> None:
    for kind in JobType:
        catalog.ensure_job(kind.value, kind, backup_targets={}, destination_config={}, now=now)
    assert {job.job_type for job in catalog.jobs()} == set(JobType)


def test_where_running_work_is_at_work_is_known_until_it_ends(catalog: Catalog, job: UUID, now: datetime) -> None:
    here, flow_run = "db1.example", uuid4()
    execution = catalog.begin_execution(job, now=now, lease=timedelta(minutes=1), flow_run_id=flow_run, host=here)
    assert catalog.execution(execution).host == here
    assert catalog.hosts_of_running() == {flow_run: here}
    catalog.finish_execution(execution, status=RunStatus.FAILED, now=now)
    assert catalog.hosts_of_running() == {}
