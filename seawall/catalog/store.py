"""The catalog: an index of what happened, that can be rebuilt from the repositories.

`Catalog` gathers its parts: the logbook that those who work write to, and what is asked and administered through
SQLModel: jobs, executions and backup sets, leases, verifications and recoveries, sites, alerts and audit. It takes and
returns frozen values; sessions and rows stay inside. Every call is one transaction and is durable when it returns.
Threads may share a catalog; a process that forks opens its own.
"""

from __future__ import annotations

from typing import Self

from seawall.catalog.alerts import AlertRecords
from seawall.catalog.copies import CopyRecords
from seawall.catalog.executions import ExecutionRecords
from seawall.catalog.jobs import JobRecords
from seawall.catalog.journal import AuditRecords
from seawall.catalog.leases import LeaseRecords
from seawall.catalog.logbook import Logbook
from seawall.catalog.measurements import MeasurementRecords
from seawall.catalog.place import Place, prepare_file
from seawall.catalog.proofs import ProofRecords
from seawall.catalog.revisions import refuse_newer, require_newest
from seawall.catalog.sites import SiteRecords


class Catalog(
    JobRecords,
    ExecutionRecords,
    LeaseRecords,
    ProofRecords,
    CopyRecords,
    MeasurementRecords,
    SiteRecords,
    AlertRecords,
    AuditRecords,
    Logbook,
):
    """An open catalog."""

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """Open the catalog at an SQLAlchemy URL.

        Args:
            url: `sqlite:////absolute/file` or `postgresql://user@host/database`, without a password.
            create: make the file (SQLite) and the schema if there is none; an older schema is left to `upgrade`.

        Raises:
            SettingsError: the URL is not one of a catalog.
            CatalogMissing: there is no catalog (or no directory for it).
            CatalogTooNew: a newer Seawall migrated it.
            CatalogUnreachable: the server does not answer, or the file may not be used.
        """
        place = Place.parse(url)
        if place.file is not None:
            prepare_file(place.file, create=create)
        catalog = cls(place)
        try:
            found = catalog.schema_state()
            refuse_newer(found)
            if create and found.current is None:
                catalog.upgrade()
        except BaseException:
            catalog.close()
            raise
        return catalog

    def upgrade(self) -> str:
        """Bring the schema to the newest revision, in one transaction; its name.

        Raises:
            CatalogTooNew: a newer Seawall migrated it.
        """
        from seawall.catalog import schema  # noqa: PLC0415 - it brings Alembic, which only this and `check` need

        return schema.upgrade(self._database).newest

    def check(self) -> tuple[str, ...]:
        """How the schema differs from what the code was written for; empty when it does not.

        Raises:
            CatalogMissing, CatalogOutdated, CatalogTooNew: it is of another revision.
        """
        from seawall.catalog import schema  # noqa: PLC0415 - as above

        require_newest(self.schema_state())
        return schema.differences(self._database)
