"""What those who work write into the catalog, and the little that they read for it: in plain statements.

A verb of the command line opens a logbook and not the whole catalog: importing SQLAlchemy, SQLModel and pydantic costs
more processor time than many a verb (docs/adr/0016-a-logbook-of-plain-statements.md). `seawall.catalog.Catalog` is a
logbook too, so there is one writer of each row and flows and verbs use the same one. Tables and migrations are
those of `seawall.catalog.models`.

Every call is one transaction and is durable when it returns. Threads may share a logbook; a process that forks
opens its own.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from seawall.catalog.logbook.alerts import AlertEntries
from seawall.catalog.logbook.audit import AuditEntries
from seawall.catalog.logbook.executions import ExecutionEntries
from seawall.catalog.logbook.files import FileEntries
from seawall.catalog.logbook.jobs import JobEntries
from seawall.catalog.logbook.keepers import KeeperEntries
from seawall.catalog.logbook.leases import LeaseEntries
from seawall.catalog.logbook.locations import LocationEntries
from seawall.catalog.logbook.proofs import ProofEntries
from seawall.catalog.place import Place, prepare_file
from seawall.catalog.revisions import refuse_newer


class Logbook(
    JobEntries,
    ExecutionEntries,
    FileEntries,
    LeaseEntries,
    ProofEntries,
    LocationEntries,
    KeeperEntries,
    AlertEntries,
    AuditEntries,
):
    """An open logbook."""

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the logbook of the catalog at a URL.

        Args:
            url: `sqlite:////absolute/file` or `postgresql://user@host/database`, without a password.

        Raises:
            SettingsError: the URL is not one of a catalog.
            CatalogMissing: there is no catalog.
            CatalogTooNew: a newer Seawall migrated it.
            CatalogUnreachable: the server does not answer, or the file may not be used.
        """
        place = Place.parse(url)
        if place.file is not None:
            prepare_file(place.file, create=False)
        logbook = cls(place)
        try:
            refuse_newer(logbook.schema_state())
        except BaseException:
            logbook.close()
            raise
        return logbook

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
