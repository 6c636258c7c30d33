"""The connection to the catalog's database, SQLite or PostgreSQL, and the border for foreign errors.

A writing session holds the right to write from its first statement: on SQLite it begins with BEGIN IMMEDIATE, since a
transaction that reads first and writes later fails at once when another writer was between (no busy time-out
helps there). On PostgreSQL, READ COMMITTED and unique indexes do the same work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlmodel import Session

from seawall.catalog import place as places
from seawall.catalog.place import HINT, Place
from seawall.errors import CatalogError, CatalogUnreachable, SettingsError, UsageError

_WRITING = "seawall_writing"


class _Cursor(Protocol):
    def execute(self, statement: str, /) -> object: ...

    def close(self) -> object: ...


class _DriverConnection(Protocol):
    def cursor(self) -> _Cursor: ...


def engine_url(place: Place) -> URL:
    """The URL of a catalog as SQLAlchemy wants it.

    Raises:
        SettingsError: it is malformed.
    """
    try:
        url = make_url(place.url)
    except (ArgumentError, ValueError) as error:
        raise SettingsError("the catalog's URL is malformed", hint=HINT) from error
    return url.set(drivername="sqlite" if place.file is not None else "postgresql+psycopg")


class Database:
    """An open catalog database; threads share it, processes do not."""

    def __init__(self, place: Place) -> None:
        self.url = engine_url(place)
        self.is_sqlite = place.file is not None
        self._engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        self._writer = self._engine.execution_options(**{_WRITING: True})

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads.

        Raises:
            CatalogError: the database refused, CatalogUnreachable when it did not answer.
        """
        with translated(), Session(self._engine) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A session whose reads all see one moment; on SQLite every reading session is such a one."""
        with self.reading() as session:
            if not self.is_sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at the end, or leaves nothing behind if the block raises.

        Raises:
            CatalogError: the database refused, CatalogUnreachable when it did not answer or stayed locked.
        """
        with translated(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        """One transaction around a whole migration, alone among migrators.

        Foreign keys rest meanwhile: SQLite migrates by copying a table and dropping the old one, and a
        drop must not be taken for the deletion of its rows. They are checked before the commit.
        """
        with translated(), self._writer.connect() as connection:
            self._foreign_keys(connection, on=False)
            try:
                with connection.begin():
                    if not self.is_sqlite:
                        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('seawall catalog'))")
                    yield connection
                    self._check_references(connection)
            finally:
                self._foreign_keys(connection, on=True)

    def close(self) -> None:
        self._engine.dispose()

    def _foreign_keys(self, connection: sa.Connection, *, on: bool) -> None:
        """Only outside a transaction does SQLite heed this, hence the driver's connection, which begins none."""
        if self.is_sqlite and not connection.invalidated:
            _run(connection.connection.driver_connection, f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")

    def _check_references(self, connection: sa.Connection) -> None:
        if self.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
            raise CatalogError("the migration would leave rows that refer to nothing; it was rolled back")


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy raises into errors of the catalog; parameters of statements are never shown."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise CatalogUnreachable(f"the catalog did not answer: {_first_line(error)}") from error
    except IntegrityError as error:
        raise CatalogError(f"the catalog refused contradictory data: {_first_line(error)}") from error
    except DBAPIError as error:
        raise CatalogError(f"the catalog refused a statement: {_first_line(error)}") from error
    except StatementError as error:
        raise UsageError(f"the catalog cannot hold this value: {error.orig}") from error
    except SQLAlchemyError as error:
        raise CatalogError(f"the catalog cannot be used: {type(error).__name__}") from error


def _sqlite_engine(url: URL) -> sa.Engine:
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": places.BUSY_TIMEOUT.total_seconds()})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: _DriverConnection, _record: object) -> None:
    """WAL lets readers go on beside a writer; FULL keeps a commit through a power failure."""
    if isinstance(connection, sqlite3.Connection):
        # The driver's own implicit transactions begin too late and not before DDL; `_begin_sqlite` begins them.
        connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        _run(connection, f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _postgres_engine(url: URL) -> sa.Engine:
    arguments = {"connect_timeout": int(places.CONNECT_TIMEOUT.total_seconds()), "application_name": places.APPLICATION}
    return sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)


def _run(connection: object, statement: str) -> None:
    cursor = _driver(connection).cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def _driver(connection: object) -> _DriverConnection:
    if not hasattr(connection, "cursor"):
        raise CatalogError("the database driver has no cursors")
    return connection


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
