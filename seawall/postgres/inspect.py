# Interim bodies by the lead, so that others can run end to end; the owner of this package replaces this file.
"""What a live cluster says of itself: identity, layout, databases, extensions, configuration files.

Read-only. Needs CONNECT on each database and membership in pg_monitor; where the server denies a detail that a
backup can do without, a warning in the log names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from seawall.errors import ClusterError
from seawall.model import Cluster, Tablespace
from seawall.postgres.connect import Session, connect, translated
from seawall.settings import SourceSettings


def inspect(source: SourceSettings) -> Cluster:
    """Look at a live cluster.

    Raises:
        ServerUnreachable, PrivilegeMissing, ClusterError: the server did not answer what is needed.
    """
    with connect(source) as session, translated(source.name):
        row = session.execute(
            "SELECT (SELECT system_identifier FROM pg_control_system()), current_setting('server_version_num')::int,"
            " (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT setting::bigint FROM pg_settings WHERE name ="
            " 'wal_segment_size'), current_setting('block_size')::int, current_setting('data_checksums') = 'on',"
            " pg_is_in_recovery(), current_setting('data_directory')"
        ).fetchone()
        if row is None:
            raise ClusterError("the server gave nothing")
        databases = {n: int(z) for n, z in session.execute(
            "SELECT datname, pg_database_size(oid) FROM pg_database WHERE has_database_privilege(oid, 'CONNECT')"
            " OR pg_has_role('pg_read_all_stats', 'MEMBER')").fetchall()}  # fmt: skip
        spaces = tuple(Tablespace(int(o), p) for o, p in session.execute(
            "SELECT oid::int8, pg_tablespace_location(oid) FROM pg_tablespace"
            " WHERE spcname NOT IN ('pg_default', 'pg_global')").fetchall())  # fmt: skip
        files = tuple(p for (p,) in session.execute(
            "SELECT DISTINCT sourcefile FROM pg_file_settings UNION SELECT setting FROM pg_settings WHERE name IN"
            " ('config_file', 'hba_file', 'ident_file')").fetchall() if p)  # fmt: skip
    return Cluster(int(row[0]), int(row[1]), int(row[2]), int(row[3]), int(row[4]), bool(row[5]), bool(row[6]), row[7],
                   spaces, databases, (), files, sum(databases.values()))  # fmt: skip


def configuration(source: SourceSettings, cluster: Cluster) -> Mapping[str, str]:
    """The text of each configuration file that lies outside the data directory, by absolute path."""
    outside = [p for p in cluster.configuration_files if not Path(p).is_relative_to(cluster.data_directory)]
    return {path: Path(path).read_text() for path in outside}


def globals_of(source: SourceSettings, *, passwords: bool = False) -> str:
    """Roles as SQL."""
    return ""
