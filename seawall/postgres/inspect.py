"""What a live cluster says of itself: identity, layout, databases, extensions, configuration files.

Read-only. Needs CONNECT on each database and membership in pg_monitor; where the server denies a detail that a
backup can do without, a warning in the log names it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from seawall.errors import ClusterError, SettingsError
from seawall.model import Cluster, Tablespace
from seawall.postgres.binaries import find
from seawall.postgres.connect import Session, connect, connection_string, error_for, translated
from seawall.postgres.control import read_control
from seawall.postgres.programs import output_of
from seawall.settings import SourceSettings
from seawall.wal import Lsn

_log = logging.getLogger(__name__)

_IDENTITY: LiteralString = """
    SELECT s.system_identifier, current_setting('server_version_num')::int, i.bytes_per_wal_segment,
           i.database_block_size, current_setting('data_checksums') = 'on', pg_is_in_recovery(),
           coalesce(current_setting('summarize_wal', true), 'off') = 'on'
    FROM pg_control_system() s, pg_control_init() i
"""
# A standby's pg_control may lag behind the timeline that it already follows; the receiver and the recovery end know.
_TIMELINE: LiteralString = """
    SELECT CASE WHEN pg_is_in_recovery() THEN greatest(
               (SELECT timeline_id FROM pg_control_checkpoint()),
               (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
               (SELECT received_tli FROM pg_stat_wal_receiver))
           ELSE ('x' || substr(pg_walfile_name(CASE WHEN pg_is_in_recovery() THEN '0/1' ELSE pg_current_wal_lsn() END),
                               1, 8))::bit(32)::int END
"""
_POSITION: LiteralString = """
    SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text
"""
_TABLESPACES: LiteralString = """
    SELECT oid::int8, pg_tablespace_location(oid) FROM pg_tablespace
    WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid
"""
_DATABASES: LiteralString = """
    SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
                    THEN pg_database_size(oid) ELSE 0 END, datallowconn FROM pg_database ORDER BY datname
"""
_EXTENSIONS: LiteralString = "SELECT extname, extversion FROM pg_extension ORDER BY extname"
_MAIN_FILES: LiteralString = """
    SELECT current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file')
"""
_INCLUDED: dict[str, LiteralString] = {
    "pg_file_settings": "SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL",
    "pg_hba_file_rules": "SELECT DISTINCT file_name FROM pg_hba_file_rules WHERE file_name IS NOT NULL",
    "pg_ident_file_mappings": "SELECT DISTINCT file_name FROM pg_ident_file_mappings WHERE file_name IS NOT NULL",
}
_VERSION_WITH_FILE_NAMES = 160000


def inspect(source: SourceSettings) -> Cluster:
    """Look at a live cluster.

    Args:
        source: which one; its `data_directory`, if set, stands for what the server says of its own.

    Raises:
        ServerUnreachable, PrivilegeMissing, ClusterError: the server did not answer what is needed.
    """
    with connect(source) as session, translated(source.name):
        identity = _one(session, _IDENTITY)
        timeline = int(_one(session, _TIMELINE)[0])
        position = _one(session, _POSITION)[0]
        directory = str(source.data_directory or _one(session, "SELECT current_setting('data_directory')")[0])
        tablespaces = tuple(Tablespace(int(r[0]), str(r[1])) for r in session.execute(_TABLESPACES).fetchall())
        databases = session.execute(_DATABASES).fetchall()
        files = _configuration_files(session, int(identity[1]))
    return Cluster(
        system_identifier=int(identity[0]) % (1 << 64),  # SQL has no unsigned numbers
        server_version=int(identity[1]),
        timeline=timeline,
        segment_bytes=int(identity[2]),
        block_bytes=int(identity[3]),
        checksums=bool(identity[4]),
        in_recovery=bool(identity[5]),
        data_directory=directory,
        tablespaces=tablespaces,
        databases={str(name): int(size) for name, size, _ in databases},
        extensions=_extensions(source, [str(name) for name, _, allowed in databases if allowed]),
        configuration_files=files,
        total_bytes=sum(int(size) for _, size, _ in databases),
        wal_position=None if position is None else Lsn.parse(str(position)),
        summarizes_wal=bool(identity[6]),
    )


def configuration(source: SourceSettings, cluster: Cluster) -> Mapping[str, str]:
    """The text of each configuration file that lies outside the data directory, by absolute path.

    Read through the server (pg_read_server_files and EXECUTE on pg_read_file), else on this host if the cluster's
    data directory is here: another host may have a file of that name as well. A file that neither way yields is
    left out with a warning.

    Raises:
        ServerUnreachable: the server does not answer.
    """
    outside = [f for f in cluster.configuration_files if not _is_below(f, cluster.data_directory)]
    texts: dict[str, str] = {}
    if not outside:
        return texts
    here = _is_here(cluster)
    with connect(source) as session:
        for path in outside:
            text = _read_through_server(session, path)
            text = _read_here(path) if text is None and here else text
            if text is None:
                _log.warning("configuration file %s of source %r cannot be read; it is not saved", path, source.name)
            else:
                texts[path] = text
    return texts


def globals_of(source: SourceSettings, *, passwords: bool = False, unwanted: Callable[[], bool] = lambda: False) -> str:
    """Roles, memberships, tablespaces and settings of roles as SQL, from `pg_dumpall --globals-only`.

    Args:
        source: which cluster; its major version's pg_dumpall must be installed.
        passwords: with the roles' password hashes, which only a superuser can read. They are secrets.
        unwanted: looked at while it runs; once it is true, pg_dumpall is ended.

    Raises:
        BinariesMissing: no pg_dumpall of this version.
        Cancelled: it is not wanted any more.
        PrivilegeMissing, ServerUnreachable, ClusterError: pg_dumpall failed.
    """
    with connect(source) as session:
        major = session.info.server_version // 10000
    program = find(major, source.bin_directory).path("pg_dumpall")
    arguments = [str(program), "--globals-only", "--no-password", "-d", connection_string(source)]
    if not passwords:
        arguments.append("--no-role-passwords")
    done = output_of(arguments, seconds=300, unwanted=unwanted)
    if done.returncode != 0:
        raise error_for(source.name, done.stderr, None)
    return done.stdout


def _one(session: Session, statement: LiteralString) -> TupleRow:
    row = session.execute(statement).fetchone()
    if row is None or row[0] is None:
        raise ClusterError(f"the server answered nothing to {' '.join(statement.split())!r}")
    return row


def _configuration_files(session: Session, version: int) -> tuple[str, ...]:
    try:
        main = [str(name) for name in _one(session, _MAIN_FILES) if name]
    except psycopg.errors.InsufficientPrivilege:
        _log.warning("the role may not see where configuration files lie; grant it pg_monitor")
        return ()
    return tuple(dict.fromkeys([*main, *_included(session, version)]))


def _included(session: Session, version: int) -> list[str]:
    names: list[str] = []
    closed: list[str] = []
    for view in _INCLUDED if version >= _VERSION_WITH_FILE_NAMES else ("pg_file_settings",):
        try:
            names += sorted(str(row[0]) for row in session.execute(_INCLUDED[view]))
        except psycopg.errors.InsufficientPrivilege:
            closed.append(view)
    if closed:
        _log.warning(
            "included configuration files are not listed: the role may not read %s; docs/how-to/prepare-postgres.md "
            "has the grants",
            ", ".join(closed),
        )
    return names


def _extensions(source: SourceSettings, databases: list[str]) -> tuple[tuple[str, str, str], ...]:
    found: list[tuple[str, str, str]] = []
    for database in databases:
        try:
            with connect(source, dbname=database) as session, translated(source.name):
                found += [(database, str(name), str(version)) for name, version in session.execute(_EXTENSIONS)]
        except SettingsError:
            raise
        except ClusterError as error:  # dropped a moment ago, or closed to this role: the backup has it all the same
            _log.warning("extensions of database %r are not recorded: %s", database, error.message)
    return tuple(found)


def _is_here(cluster: Cluster) -> bool:
    """Whether the cluster's own data directory lies on this host and can be read."""
    try:
        return read_control(Path(cluster.data_directory)).system_identifier == cluster.system_identifier
    except (ClusterError, OSError):
        return False


def _is_below(path: str, directory: str) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(directory))


def _read_through_server(session: Session, path: str) -> str | None:
    try:
        row = session.execute("SELECT pg_read_file(%s)", (path,)).fetchone()
    except psycopg.OperationalError as error:
        raise error_for("", str(error), error.sqlstate, operational=True) from error
    except psycopg.Error as error:
        _log.debug("the server does not read %s for us: %s", path, error.diag.message_primary)
        return None
    return None if row is None or row[0] is None else str(row[0])


def _read_here(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _log.debug("%s cannot be read here: %s", path, error)
        return None
