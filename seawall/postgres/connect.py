"""Connections to a cluster, with foreign errors translated at this border.

Passwords come from libpq's passfile or environment; one inside the connection string is refused, so no message
or log line of Seawall can ever contain it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from seawall.errors import ClusterError, PrivilegeMissing, ServerUnreachable, SettingsError
from seawall.settings import SourceSettings

Session: TypeAlias = psycopg.Connection[TupleRow]

# A backup session may idle for hours; a time-out that the administrator set for applications must not end it.
_OPTIONS = (
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c datestyle=ISO"
)
_REFUSED = re.compile(
    r"pg_hba\.conf|authentication failed|permission denied|must be superuser|no password supplied|"
    r"role .* (does not exist|is not permitted)|not currently permitted"
)


def connection_string(
    source: SourceSettings, *, dbname: str | None = None, replication: bool = False, application_name: str = "seawall"
) -> str:
    """The libpq connection string of a source, without any password.

    Args:
        source: its `conninfo` and `passfile` are used.
        dbname: another database than the one named there.
        replication: for the physical replication protocol.
        application_name: how the server names the session.

    Raises:
        SettingsError: `conninfo` is malformed or has a password in it.
    """
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(source.conninfo).items() if value is not None}
    except psycopg.ProgrammingError:  # its text quotes the string, which may hold what should not be there
        raise SettingsError(f"conninfo of source {source.name!r} is malformed") from None
    if "password" in given:
        raise SettingsError(
            f"conninfo of source {source.name!r} has a password in it",
            hint="Put it into a file of mode 0600 in libpq's passfile format, and name that with `passfile`.",
        )
    given.setdefault("dbname", "postgres")
    given.setdefault("connect_timeout", "10")
    given |= {"application_name": application_name, "keepalives": "1", "keepalives_idle": "30"}
    given |= {"keepalives_interval": "10", "keepalives_count": "3", "client_encoding": "UTF8"}
    given["options"] = f"{given.get('options', '')} {_OPTIONS}".strip()
    if source.passfile is not None:
        given["passfile"] = str(source.passfile)
    if dbname is not None:
        given["dbname"] = dbname
    if replication:
        given["replication"] = "true"
    return make_conninfo("", **given)


def connect(
    source: SourceSettings,
    *,
    dbname: str | None = None,
    replication: bool = False,
    autocommit: bool = True,
    application_name: str = "seawall",
) -> Session:
    """Connect to a source.

    Args:
        source: which one.
        dbname: another database than `conninfo` names (default: `postgres`).
        replication: speak the physical replication protocol; use the connection's `pgconn` then.
        autocommit: off only for work that must be one transaction.
        application_name: how pg_stat_activity and synchronous_standby_names see the session.

    Raises:
        ServerUnreachable: nobody answers, or the server is not ready.
        PrivilegeMissing: the server refuses this user.
        SettingsError: `conninfo` is malformed or has a password in it.
    """
    text = connection_string(source, dbname=dbname, replication=replication, application_name=application_name)
    with translated(source.name):
        return psycopg.connect(text, autocommit=autocommit, prepare_threshold=None)


@contextmanager
def translated(source_name: str) -> Iterator[None]:
    """Turn psycopg's errors within the block into Seawall's.

    Raises:
        ServerUnreachable, PrivilegeMissing, ClusterError: in place of psycopg.Error.
    """
    try:
        yield
    except psycopg.Error as error:
        raise error_for(source_name, str(error), error.sqlstate, isinstance(error, psycopg.OperationalError)) from error


def error_for(source_name: str, text: str, sqlstate: str | None, operational: bool = False) -> ClusterError:
    """The error that stands for what a server or libpq said.

    Args:
        source_name: for the message.
        text: the foreign message.
        sqlstate: five characters where the server sent them (documentation, appendix A).
        operational: whether psycopg calls it operational (connection lost or never made).
    """
    said = " ".join(text.split())
    message = f"source {source_name!r}: {said}"
    if sqlstate == "42501" or (sqlstate or "").startswith("28") or (sqlstate is None and _REFUSED.search(said)):
        return PrivilegeMissing(message)
    if operational or (sqlstate or "").startswith(("08", "57P")):
        return ServerUnreachable(message)
    return ClusterError(message, hint="The server's message says what it could not do.")
