"""The catalog: an index of what happened, that can be rebuilt from the repositories.

`Catalog` gathers its parts: jobs, executions and backup sets, leases, verifications and recoveries, sites, alerts and
audit. It takes and returns frozen values; sessions and rows stay inside. Every call is one transaction and is durable
when it returns. Threads may share a catalog; a process that forks opens its own.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from seawall.catalog import schema
from seawall.catalog.alerts import AlertRecords
from seawall.catalog.copies import CopyRecords
from seawall.catalog.database import Database, catalog_url, prepare_file
from seawall.catalog.executions import ExecutionRecords
from seawall.catalog.jobs import JobRecords
from seawall.catalog.journal import AuditRecords
from seawall.catalog.leases import LeaseRecords
from seawall.catalog.measurements import MeasurementRecords
from seawall.catalog.proofs import ProofRecords
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
        parsed = catalog_url(url)
        if parsed.get_backend_name() == "sqlite":
            prepare_file(Path(parsed.database or ""), create=create)
        catalog = cls(Database(parsed))
        try:
            found = schema.state(catalog._database)
            schema.refuse_newer(found)
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
        return schema.upgrade(self._database).newest

    def check(self) -> tuple[str, ...]:
        """How the schema differs from what the code was written for; empty when it does not.

        Raises:
            CatalogMissing, CatalogOutdated, CatalogTooNew: it is of another revision.
        """
        schema.require_newest(schema.state(self._database))
        return schema.differences(self._database)

    def close(self) -> None:
        """Give up all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
