"""What all parts of the catalog share: guarded sessions and views of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from seawall.catalog.database import Database
from seawall.catalog.logbook.rows import Entries
from seawall.catalog.models import BackupJobRow, CatalogRow, StorageLocationRow, UserRow
from seawall.catalog.place import Place
from seawall.errors import RecordMissing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    View = TypeVar("View", bound=DataclassInstance)
Row = TypeVar("Row", bound=CatalogRow)
Named = TypeVar("Named", BackupJobRow, StorageLocationRow, UserRow)


class Records(Entries):
    """Sessions on a catalog that was found to have the newest schema."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._database = Database(place)

    def close(self) -> None:
        """Give up all connections."""
        self._database.close()
        super().close()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        self._require_newest_schema()
        with self._database.reading() as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        self._require_newest_schema()
        with self._database.writing() as session:
            yield session

    @contextmanager
    def _snapshot(self) -> Iterator[Session]:
        self._require_newest_schema()
        with self._database.snapshot() as session:
            yield session

    def session_for_rebuild(self) -> AbstractContextManager[Session]:
        """One writing transaction for `seawall.catalog.rebuilding`, which alone works on rows from outside."""
        return self._writing()


def view(cls: type[View], row: CatalogRow) -> View:
    """The frozen value of a row: `cls` has a field for each of the row's attributes that it shows."""
    return cls(**{f.name: getattr(row, f.name) for f in fields(cls)})


def found(session: Session, table: type[Row], key: UUID, what: str, *, lock: bool = False) -> Row:
    """The row of that id.

    Raises:
        RecordMissing: there is none.
    """
    row = session.get(table, key, with_for_update=lock)
    if row is None:
        raise RecordMissing(f"the catalog has no {what} {key}")
    return row


def named(session: Session, table: type[Named], name: str, *, lock: bool = False) -> Named | None:
    """The row of that name."""
    query = select(table).where(table.name == name)
    return session.exec(query.with_for_update() if lock else query).first()


def added(session: Session, table: type[Named], wanted: Named) -> Named | None:
    """Add `wanted` unless its name is taken; the locked row that has the name, or None if it was added."""
    existing = named(session, table, wanted.name, lock=True)
    if existing is not None:
        return existing
    try:
        with session.begin_nested():
            session.add(wanted)
    except IntegrityError:
        # Another process created it since the look above.
        existing = named(session, table, wanted.name, lock=True)
        if existing is None:
            raise
    return existing
