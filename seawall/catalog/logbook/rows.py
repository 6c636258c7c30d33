"""Rows of the catalog's tables as the frozen values of `seawall.catalog.views`, and back.

Each value has a field for each column that it shows; which column has another name is said here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

from seawall.catalog.logbook.connection import Connection, Dialect, Rows
from seawall.catalog.place import Place
from seawall.catalog.revisions import SchemaState, require_newest, state_of
from seawall.catalog.views import (
    Alert,
    AuditEntry,
    BackupFile,
    Execution,
    Job,
    Recovery,
    StorageLocation,
    Verification,
)
from seawall.errors import CatalogError, RecordMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import DataclassInstance

    View = TypeVar("View", bound=DataclassInstance)

TABLES: Mapping[type, str] = {
    Job: "backup_jobs",
    Execution: "backup_executions",
    BackupFile: "backup_files",
    Recovery: "recovery_operations",
    Verification: "backup_verifications",
    StorageLocation: "storage_locations",
    Alert: "backup_alerts",
    AuditEntry: "audit",
}
# SQLAlchemy keeps the word `metadata` for itself.
_COLUMNS: Mapping[tuple[type, str], str] = {(Execution, "details"): "metadata"}
Decoder = Callable[[Any], object]


class Transaction:
    """What can be done inside one transaction; names of tables and columns are the code's own, values are bound."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    @property
    def lock(self) -> str:
        """What is appended to a query whose rows shall stay as they are until the transaction ends."""
        return self._dialect.lock

    def execute(self, statement: str, **values: object) -> Rows:
        return self._dialect.execute(statement, values).rows

    def all(self, cls: type[View], rest: str = "", *, lock: bool = False, **values: object) -> tuple[View, ...]:
        """The rows of a table that `rest` asks for, such as `WHERE name = :name`."""
        names = ", ".join(column for column, _ in _decoders(cls).values())
        query = f"SELECT {names} FROM {TABLES[cls]} {rest}{self.lock if lock else ''}"  # noqa: S608 - names of our own
        return tuple(_view(cls, row) for row in self.execute(query, **values))

    def first(self, cls: type[View], rest: str, *, lock: bool = False, **values: object) -> View | None:
        rows = self.all(cls, rest, lock=lock, **values)
        return rows[0] if rows else None

    def get(self, cls: type[View], key: UUID, *, lock: bool = False) -> View | None:
        return self.first(cls, "WHERE id = :id", lock=lock, id=key)

    def found(self, cls: type[View], key: UUID, what: str, *, lock: bool = False) -> View:
        """The row of that id.

        Raises:
            RecordMissing: there is none.
        """
        row = self.get(cls, key, lock=lock)
        if row is None:
            raise RecordMissing(f"the catalog has no {what} {key}")
        return row

    def insert(self, row: DataclassInstance) -> bool:
        """Add a row unless a unique index says that it, or one in its place, is there; whether it was added."""
        cls = type(row)
        values = {field.name: getattr(row, field.name) for field in fields(row)}
        columns = ", ".join(column for column, _ in _decoders(cls).values())
        names = ", ".join(f":{name}" for name in values)
        statement = f"INSERT INTO {TABLES[cls]} ({columns}) VALUES ({names}) ON CONFLICT DO NOTHING"  # noqa: S608 - as above
        return self._dialect.execute(statement, values).changed == 1

    def update(self, cls: type, key: UUID, **changes: object) -> None:
        """Set fields of the row of that id."""
        columns = _decoders(cls)
        if not changes:
            return
        pairs = ", ".join(f"{columns[name][0]} = :{name}" for name in changes)
        self.execute(f"UPDATE {TABLES[cls]} SET {pairs} WHERE id = :key", key=key, **changes)  # noqa: S608 - as above

    def changed(self, statement: str, **values: object) -> int:
        """How many rows a statement changed."""
        return self._dialect.execute(statement, values).changed


class Entries:
    """Transactions on a catalog that was found to have the newest schema."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._connection = Connection(place)
        self._is_newest = False

    def schema_state(self) -> SchemaState:
        """The revision of the catalog's schema and those that this version of Seawall knows."""
        with self._connection.transaction(writing=False) as dialect:
            return state_of(dialect.revision())

    def close(self) -> None:
        """Give up all connections."""
        self._connection.close()

    def _reads(self) -> AbstractContextManager[Transaction]:
        return self._transaction(writing=False)

    def _writes(self) -> AbstractContextManager[Transaction]:
        return self._transaction(writing=True)

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[Transaction]:
        self._require_newest_schema()
        with self._connection.transaction(writing=writing) as dialect:
            yield Transaction(dialect)

    def _require_newest_schema(self) -> None:
        """Once is enough: an upgrade below a running process is the administrator's to avoid."""
        if not self._is_newest:
            require_newest(self.schema_state())
            self._is_newest = True


def inserted(row: DataclassInstance, done: bool) -> None:
    """Raise unless `row`, which nothing may be in the way of, was added.

    Raises:
        CatalogError: it was not.
    """
    if not done:
        raise CatalogError(f"the catalog has another row in place of one of {TABLES[type(row)]}")


def _view(cls: type[View], row: Sequence[object]) -> View:
    decoders = _decoders(cls)
    pairs = zip(decoders.items(), row, strict=True)
    return cls(**{name: None if value is None else decode(value) for (name, (_, decode)), value in pairs})


@cache
def _decoders(cls: type) -> dict[str, tuple[str, Decoder]]:
    """For each field its column, and what makes the field of what either driver reads."""
    hints = get_type_hints(cls)
    return {name: (_COLUMNS.get((cls, name), name), _decoder(hint)) for name, hint in hints.items()}


def _decoder(hint: Any) -> Decoder:
    given = [kind for kind in get_args(hint) if kind is not type(None)] if type(None) in get_args(hint) else [hint]
    kind = given[0]
    if get_origin(kind) in (Mapping, Sequence):
        return _document
    if kind is UUID:
        return _uuid
    if kind is datetime:
        return moment
    if isinstance(kind, type) and issubclass(kind, Enum | bool):
        return kind
    return _same


def _same(value: object) -> object:
    return value


def _document(value: Any) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _uuid(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def moment(value: Any) -> datetime:
    """A time as either driver reads it, in UTC."""
    read = datetime.fromisoformat(value) if isinstance(value, str) else value
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
