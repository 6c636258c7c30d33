"""Which revisions of the schema there are, and whether a catalog has the newest one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from seawall.errors import CatalogMissing, CatalogOutdated, CatalogTooNew

VERSION_TABLE = "catalog_version"
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """`current` is None for a database without a catalog."""

    current: str | None
    newest: str
    known: frozenset[str]

    @property
    def is_newest(self) -> bool:
        return self.current == self.newest

    @property
    def is_too_new(self) -> bool:
        return self.current is not None and self.current not in self.known


def state_of(current: str | None) -> SchemaState:
    """How a catalog of the revision `current` stands to this version of Seawall."""
    known = known_revisions()
    return SchemaState(current, known[-1], frozenset(known))


@cache
def known_revisions() -> tuple[str, ...]:
    """All revisions, the oldest first.

    A migration's file begins with its revision's number, so nobody who only records needs Alembic to know them.
    """
    return tuple(sorted(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py")))


def require_newest(found: SchemaState) -> None:
    """Raise unless the schema is the one that the code was written for.

    Raises:
        CatalogMissing: the database has no catalog.
        CatalogOutdated: migrations are pending.
        CatalogTooNew: a newer Seawall migrated it.
    """
    refuse_newer(found)
    if found.current is None:
        raise CatalogMissing("the database has no catalog in it yet")
    if not found.is_newest:
        raise CatalogOutdated(f"the catalog is of revision {found.current}, this version needs {found.newest}")


def refuse_newer(found: SchemaState) -> None:
    """Raise if a newer Seawall wrote this catalog.

    Raises:
        CatalogTooNew: its revision is none of those that this version knows.
    """
    if found.is_too_new:
        raise CatalogTooNew(f"the catalog is of revision {found.current}, this version knows none above {found.newest}")
