"""One connection to the catalog's database by its plain driver, and the border for that driver's errors.

A writing transaction holds the right to write from its first statement: on SQLite it begins with BEGIN IMMEDIATE,
since a transaction that reads first and writes later fails at once when another writer was between. On PostgreSQL,
READ COMMITTED, row locks and unique indexes do the same work.

Statements name their parameters `:name` in both dialects.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from seawall.catalog import place as places
from seawall.catalog.place import Place
from seawall.catalog.revisions import VERSION_TABLE
from seawall.errors import CatalogError, CatalogUnreachable, UsageError

if TYPE_CHECKING:
    from psycopg import Connection as PostgresConnection

Rows = list[tuple[Any, ...]]
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


@dataclass(frozen=True, slots=True)
class Done:
    """What a statement gave back, and how many rows it changed."""

    rows: Rows
    changed: int


class Dialect(Protocol):
    """A database system and its driver."""

    lock: str
    """What is appended to a query whose rows shall stay as they are until the transaction ends."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def execute(self, statement: str, values: Mapping[str, object]) -> Done: ...

    def begin(self, *, writing: bool) -> None: ...

    def revision(self) -> str | None:
        """The revision of the schema, None where there is no catalog."""
        ...

    def translated(self, error: Exception) -> CatalogError | None:
        """What an error of the driver means; None for one that is not the driver's."""
        ...


class Connection:
    """A connection that threads share one after the other; opened when it is first needed."""

    def __init__(self, place: Place) -> None:
        self.dialect: Dialect = _Sqlite(place.file) if place.file is not None else _Postgres(place.url)
        self._turn = threading.Lock()
        self._open = False

    @contextmanager
    def transaction(self, *, writing: bool) -> Iterator[Dialect]:
        """One transaction: it commits at the end, or leaves nothing behind if the block raises.

        Raises:
            CatalogError: the database refused, CatalogUnreachable when it did not answer or stayed locked.
        """
        with self._turn, self._translated():
            self._begin(writing=writing)
            try:
                yield self.dialect
                self.dialect.execute("COMMIT", {})
            except BaseException:
                self._roll_back()
                raise

    def close(self) -> None:
        with self._turn:
            self._drop()

    def _begin(self, *, writing: bool) -> None:
        if self._open:
            try:
                return self.dialect.begin(writing=writing)
            except Exception as error:
                # A server that was restarted since the last transaction is asked again by a new connection.
                if not isinstance(self.dialect.translated(error), CatalogUnreachable):
                    raise
                self._drop()
        self.dialect.open()
        self._open = True
        return self.dialect.begin(writing=writing)

    def _roll_back(self) -> None:
        try:
            self.dialect.execute("ROLLBACK", {})
        except Exception:  # noqa: BLE001 - what went wrong before is what counts; a broken connection holds nothing
            self._drop()

    def _drop(self) -> None:
        self._open = False
        self.dialect.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            meant = self.dialect.translated(error)
            if meant is None:
                raise
            raise meant from error


class _Sqlite:
    lock = ""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        timeout = places.BUSY_TIMEOUT.total_seconds()
        # No isolation level: the driver's own transactions begin too late.
        self._connection = sqlite3.connect(self._file, timeout, isolation_level=None, check_same_thread=False)
        # WAL lets readers go on beside a writer; FULL keeps a commit through a power failure.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def begin(self, *, writing: bool) -> None:
        self.execute("BEGIN IMMEDIATE" if writing else "BEGIN", {})

    def execute(self, statement: str, values: Mapping[str, object]) -> Done:
        if self._connection is None:
            raise CatalogUnreachable("the catalog is closed")
        cursor = self._connection.execute(statement, {name: self._value(value) for name, value in values.items()})
        return Done(cursor.fetchall(), cursor.rowcount)

    def revision(self) -> str | None:
        there = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = :name"
        if not self.execute(there, {"name": VERSION_TABLE}).rows[0][0]:
            return None
        return _revision(self)

    def translated(self, error: Exception) -> CatalogError | None:
        return _meaning(error, sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.Error)

    @staticmethod
    def _value(value: object) -> object:
        """As SQLAlchemy stores it: the other half of the catalog reads the same rows."""
        match value:
            case UUID():
                return value.hex
            case datetime():
                return in_utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")
            case dict() | list():
                return json.dumps(value)
            case Enum():
                return value.value
        return value


class _Postgres:
    lock = " FOR UPDATE"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: PostgresConnection | None = None

    def open(self) -> None:
        import psycopg  # noqa: PLC0415 - a catalog in SQLite does without

        timeout = int(places.CONNECT_TIMEOUT.total_seconds())
        self._connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=timeout, application_name=places.APPLICATION
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def begin(self, *, writing: bool) -> None:
        self.execute("BEGIN" if writing else "BEGIN READ ONLY", {})

    def execute(self, statement: str, values: Mapping[str, object]) -> Done:
        if self._connection is None:
            raise CatalogUnreachable("the catalog is closed")
        text = _PARAMETER.sub(r"%(\1)s", statement).encode()
        cursor = self._connection.execute(text, {name: self._value(value) for name, value in values.items()})
        return Done(cursor.fetchall() if cursor.description else [], cursor.rowcount)

    def revision(self) -> str | None:
        if self.execute("SELECT to_regclass(:name)", {"name": VERSION_TABLE}).rows[0][0] is None:
            return None
        return _revision(self)

    def translated(self, error: Exception) -> CatalogError | None:
        import psycopg  # noqa: PLC0415 - as above

        if isinstance(error, psycopg.InterfaceError):
            return _unreachable(error)
        return _meaning(error, psycopg.OperationalError, psycopg.IntegrityError, psycopg.Error)

    @staticmethod
    def _value(value: object) -> object:
        from psycopg.types.json import Jsonb  # noqa: PLC0415 - as above

        match value:
            case datetime():
                return in_utc(value)
            case dict() | list():
                return Jsonb(value)
            case Enum():
                return value.value
        return value


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC.

    Raises:
        UsageError: it does not say which time it means.
    """
    if moment.utcoffset() is None:
        raise UsageError(f"the time {moment.isoformat()} has no offset from UTC")
    return moment.astimezone(UTC)


def _revision(dialect: Dialect) -> str | None:
    rows = dialect.execute(f"SELECT version_num FROM {VERSION_TABLE}", {}).rows  # noqa: S608 - a constant
    return str(rows[0][0]) if rows else None


def _meaning(
    error: Exception, unreachable: type[Exception], contradictory: type[Exception], any_of_them: type[Exception]
) -> CatalogError | None:
    if isinstance(error, unreachable):
        return _unreachable(error)
    if isinstance(error, contradictory):
        return CatalogError(f"the catalog refused contradictory data: {_first_line(error)}")
    if isinstance(error, any_of_them):
        return CatalogError(f"the catalog refused a statement: {_first_line(error)}")
    return None


def _unreachable(error: Exception) -> CatalogUnreachable:
    return CatalogUnreachable(f"the catalog did not answer: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
