"""Runs of jobs.

At most one execution of a job runs at a time; a partial unique index keeps that under any concurrency. A running
execution holds a lease that its worker renews. When the lease has run out, the worker counts as gone:
`reconcile` or the next `begin_execution` marks the execution failed. That is a guess from silence, so a worker that
was only slow and later reports an end is believed; `renew` tells it that it lost the lease. A process that was killed
on this very host is provably gone, and the next run need not wait for its lease.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from seawall.catalog.checks import aware
from seawall.catalog.documents import clean
from seawall.catalog.logbook.leases import checked_lease, ended, give_up_all, give_up_killed, has_ended, worked_by
from seawall.catalog.logbook.rows import Entries
from seawall.catalog.views import BackupOutcome, Execution, Job, RunStatus
from seawall.errors import LeaseHeld, SeawallError


class ExecutionEntries(Entries):
    def begin_execution(
        self,
        job_id: UUID,
        *,
        now: datetime,
        lease: timedelta,
        flow_run_id: UUID | None = None,
        host: str = "",
        process: str = "",
    ) -> UUID:
        """Record that a job begins to run, unless it runs already.

        Args:
            lease: how long it counts as alive without `renew`.
            flow_run_id: the Prefect flow run that does it.
            host: where it runs.
            process: which process does it there (`process.identity`).

        Raises:
            LeaseHeld: an execution of this job is running and its lease has not run out.
            RecordMissing: there is no such job.
        """
        row = _begun(job_id, aware(now), now + checked_lease(lease), flow_run_id, host=host, process=process)
        with self._writes() as rows:
            job = rows.found(Job, job_id, "job")
            give_up_all(rows, Execution, now, "AND job_id = :job", job=job_id)
            give_up_killed(rows, Execution, now, "AND job_id = :job", job=job_id)
            if not rows.insert(row):
                raise LeaseHeld(
                    f"the job {job.name!r} is already running",
                    hint="Wait for it to end, or for its lease to run out if its worker is gone.",
                )
            return row.id

    def finish_execution(
        self,
        execution_id: UUID,
        *,
        status: RunStatus,
        now: datetime,
        outcome: BackupOutcome | None = None,
        error: SeawallError | None = None,
    ) -> None:
        """Record how an execution ended; the same end twice is one end.

        Raises:
            CatalogError: it already ended otherwise.
            RecordMissing: there is no such execution.
            UsageError: `status` is not an end.
        """
        with self._writes() as rows:
            row = rows.found(Execution, execution_id, "execution", lock=True)
            if has_ended(row, status, f"execution {execution_id}"):
                return
            details = None if outcome is None else outcome.details
            changes = ended(row, status, now, details, error)
            rows.update(Execution, execution_id, **changes, **({} if outcome is None else _achieved(outcome)))


def _begun(
    job_id: UUID, now: datetime, expires_at: datetime, flow_run_id: UUID | None, *, host: str, process: str
) -> Execution:
    return Execution(
        id=uuid4(),
        job_id=job_id,
        execution_start=now,
        execution_end=None,
        status=RunStatus.RUNNING,
        backup_size_bytes=None,
        compressed_size_bytes=None,
        file_path=None,
        checksum=None,
        error_message=None,
        details=worked_by(process),
        created_at=now,
        flow_run_id=flow_run_id,
        lease_expires_at=expires_at,
        host=host or None,
    )


def _achieved(outcome: BackupOutcome) -> dict[str, object]:
    return {
        "backup_size_bytes": outcome.backup_size_bytes,
        "compressed_size_bytes": outcome.compressed_size_bytes,
        "file_path": clean(outcome.file_path) or None,
        "checksum": outcome.checksum or None,
    }
