"""Backup jobs by their names, and switching them on and off; `seawall.catalog.logbook.jobs` defines them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from seawall.catalog.checks import aware
from seawall.catalog.models import BackupJobRow
from seawall.catalog.records import Records, found, named, view
from seawall.catalog.views import Job
from seawall.errors import RecordMissing


class JobRecords(Records):
    def job_named(self, name: str) -> Job:
        """The job of that name.

        Raises:
            RecordMissing: there is none.
        """
        with self._reading() as session:
            row = named(session, BackupJobRow, name)
            if row is None:
                raise RecordMissing(f"the catalog has no job {name!r}")
            return view(Job, row)

    def set_job_active(self, job_id: UUID, active: bool, *, now: datetime) -> None:
        """Switch a job's schedule on or off.

        Raises:
            RecordMissing: there is no such job.
        """
        with self._writing() as session:
            row = found(session, BackupJobRow, job_id, "job", lock=True)
            if row.is_active is not active:
                row.is_active, row.updated_at = active, aware(now)
                session.add(row)
