"""What a killed process had at work is over in the catalog as soon as somebody can prove that it is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from seawall.catalog import Catalog, JobType, RunStatus, VerificationType
from seawall.catalog.recording import (
    End,
    ExecutionRecord,
    Lease,
    VerificationRecord,
    alert_unreported,
    raise_alerts,
)
from seawall.errors import SeawallError, UsageError
from tests.catalog.test_executions import record

LEASE = timedelta(hours=1)
WORK = """
import sys
from datetime import datetime, timedelta
from uuid import UUID
from seawall.catalog import Logbook, RecoveryType, VerificationType
from seawall.catalog.recording import Lease, RecoveryRecord, VerificationRecord
url, file, now, run = sys.argv[1:]
lease = Lease(timedelta(hours=1), "here", UUID(run) if run else None)
with Logbook.open(url) as catalog:
    for row in (
        VerificationRecord(UUID(file), VerificationType.INTEGRITY),
        RecoveryRecord(RecoveryType.FULL, UUID(file), None, {"destination": "/restore"}),
    ):
        print(row.begin(catalog, now=datetime.fromisoformat(now), lease=lease)[0], flush=True)
    input()
"""
Begun = tuple[UUID, UUID]


@pytest.fixture
def file(catalog: Catalog, new_job: Callable[..., UUID], now: datetime) -> UUID:
    job = new_job(catalog)
    return record(catalog, job, catalog.begin_execution(job, now=now, lease=LEASE), now)


@contextmanager
def at_work(url: str, file: UUID, now: datetime, run: UUID | None = None) -> Iterator[Begun]:
    """A verification and a recovery that a process has begun; it is killed at the end."""
    arguments = [url, str(file), now.isoformat(), "" if run is None else str(run)]
    with subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield UUID(process.stdout.readline().strip()), UUID(process.stdout.readline().strip())
        finally:
            process.kill()


def ends(catalog: Catalog, begun: Begun) -> list[tuple[RunStatus, str]]:
    rows = (catalog.verification(begun[0]), catalog.recovery(begun[1]))
    return [(one.status, (one.error_message or "").partition(" ")[0]) for one in rows]


RUNNING = [(RunStatus.RUNNING, "")] * 2
GONE = [(RunStatus.FAILED, "[worker-gone]")] * 2


def test_what_was_verified_and_restored_by_hand_is_over_when_its_process_is_killed(
    catalog: Catalog, url: str, file: UUID, now: datetime
) -> None:
    with at_work(url, file, now) as begun:
        assert catalog.reconcile_killed(now) == ()
        assert ends(catalog, begun) == RUNNING
    assert set(catalog.reconcile_killed(now)) == set(begun)
    assert ends(catalog, begun) == GONE
    assert catalog.recovery(begun[1]).recovery_details["destination"] == "/restore"
    assert catalog.backup_file(file).verified_at is None


def test_the_next_verification_or_restore_ends_the_killed_one_where_no_keeper_runs(
    catalog: Catalog, url: str, file: UUID, now: datetime
) -> None:
    with at_work(url, file, now) as begun:
        pass
    alive = VerificationRecord(file, VerificationType.CHECKSUM).begin(catalog, now=now, lease=Lease(LEASE, "here"))
    assert ends(catalog, begun) == [GONE[0], RUNNING[1]]
    catalog.begin_recovery("full", backup_file_id=file, now=now, lease=LEASE)
    assert ends(catalog, begun) == GONE
    assert catalog.verification(alive[0]).status is RunStatus.RUNNING


def test_what_a_killed_flow_run_had_at_work_waits_for_the_keeper_and_ends_as_a_whole(
    catalog: Catalog, url: str, file: UUID, new_job: Callable[..., UUID], now: datetime
) -> None:
    run = uuid4()
    execution = ExecutionRecord(new_job(catalog, "verify")).begin(
        catalog, now=now, lease=Lease(LEASE, "here", run, process="")
    )
    with at_work(url, file, now, run) as begun:
        assert catalog.runs_of_killed() == ()
    assert catalog.reconcile_killed(now) == ()
    catalog.begin_verification(file, VerificationType.CHECKSUM, now=now, lease=LEASE)
    assert ends(catalog, begun) == RUNNING
    assert catalog.runs_of_killed() == (run,)
    error = SeawallError("the run ended without a report")
    assert set(catalog.end_run(run, status=RunStatus.FAILED, now=now, error=error)) == {*execution, *begun}
    assert {status for status, _ in ends(catalog, begun)} == {RunStatus.FAILED}
    assert catalog.execution(execution[0]).status is RunStatus.FAILED
    assert catalog.runs_of_killed() == catalog.end_run(run, status=RunStatus.FAILED, now=now) == ()
    with pytest.raises(UsageError):
        catalog.end_run(run, status=RunStatus.COMPLETED, now=now)


def test_a_backup_that_ended_without_a_report_is_an_alert_until_one_of_its_source_succeeds(
    catalog: Catalog, new_job: Callable[..., UUID], now: datetime
) -> None:
    job, site = new_job(catalog), {"backup_targets": {}, "destination_config": {}}
    other = catalog.ensure_job("retention-cleanup", JobType.RETENTION, **site, now=now)
    source = str(catalog.job(job).backup_targets["source"])
    for one in (job, other):
        catalog.begin_execution(one, now=now, lease=LEASE)
    late = now + 2 * LEASE
    lapsed = catalog.reconcile(late)
    assert len(lapsed) == 2
    assert len(alert_unreported(catalog, [*lapsed, uuid4()], "its lease ran out", now=late)) == 1
    (alert,) = catalog.alerts()
    assert (alert.alert_type, alert.subject, alert.alert_data["job"]) == ("backup-failed", source, str(job))
    assert alert.message == f"the backup of {source} ended without a report: its lease ran out"
    raise_alerts(catalog, "backup", source, End(RunStatus.COMPLETED), (), now=late)
    assert catalog.alerts() == ()
