"""Checks of a cluster: it answers, is the right one, grants what is needed, and its files can be read here."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import LiteralString

from seawall.archive.commands import CLIENT
from seawall.errors import ClusterError, ClusterMismatch, PrivilegeMissing
from seawall.health.result import Finding, good, skipped, warning
from seawall.model import ClusterIdentity, CopyMode, WalMode
from seawall.postgres.binaries import Account, find
from seawall.postgres.connect import connect, translated
from seawall.postgres.control import read_control
from seawall.settings import Settings, SourceSettings

OLDEST, NEWEST = 15, 18

# Settings are read from the view, which leaves out what the role may not see, where current_setting() would fail.
_FACTS: LiteralString = """
    SELECT (SELECT system_identifier FROM pg_control_system()), pg_is_in_recovery(), current_user::text,
           current_setting('wal_level'), current_setting('data_checksums') = 'on', current_setting('archive_mode'),
           (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
           (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
           r.rolsuper, r.rolreplication, pg_has_role('pg_monitor', 'USAGE'),
           has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE'),
           has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE'),
           has_function_privilege('pg_switch_wal()', 'EXECUTE'),
           (SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database
            WHERE has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE'))
    FROM pg_roles r WHERE r.rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says of itself and of the role that Seawall uses.

    Args:
        max_slot_keep_mb: how much WAL a slot may hold back, -1 without limit.
        data_directory: empty if the role may not see it.
        total_bytes: of all databases that the role may see.
    """

    version: int
    system_identifier: int
    in_recovery: bool
    user: str
    wal_level: str
    checksums: bool
    archive_mode: str
    max_slot_keep_mb: int
    data_directory: str
    superuser: bool
    replication: bool
    monitor: bool
    may_start: bool
    may_stop: bool
    may_switch: bool
    total_bytes: int

    @property
    def major(self) -> int:
        return self.version // 10000


def server_answers(source: SourceSettings) -> tuple[Facts, Finding]:
    """The server can be reached, is of a supported version, and says what later checks need.

    Raises:
        ServerUnreachable, PrivilegeMissing: as named.
        ClusterError: its version is too old.
    """
    with connect(source) as session, translated(source.name):
        version = session.info.server_version
        if version // 10000 < OLDEST:
            raise ClusterError(
                f"PostgreSQL {version // 10000} is too old", hint=f"Seawall protects versions {OLDEST} to {NEWEST}."
            )
        row = session.execute(_FACTS).fetchone()
    if row is None:
        raise ClusterError(f"source {source.name!r}: the server says nothing of the role it admitted")
    facts = Facts(
        version=version,
        system_identifier=int(row[0]) % (1 << 64),  # SQL has no unsigned numbers
        in_recovery=row[1],
        user=row[2],
        wal_level=row[3],
        checksums=row[4],
        archive_mode=row[5],
        max_slot_keep_mb=row[6],
        data_directory=row[7] or "",
        superuser=row[8],
        replication=row[9],
        monitor=row[10],
        may_start=row[11],
        may_stop=row[12],
        may_switch=row[13],
        total_bytes=row[14],
    )
    return facts, judge_version(facts)


def judge_version(facts: Facts) -> Finding:
    """Newer than what was tested is a warning; pure."""
    what = f"PostgreSQL {facts.major}, {'a standby' if facts.in_recovery else 'a primary'}, reached as {facts.user}"
    if facts.major > NEWEST:
        return warning(f"{what}; newer than {NEWEST}, which was tested", "Upgrade Seawall before you rely on it.")
    return good(what)


def is_same_cluster(facts: Facts, known: ClusterIdentity | None) -> Finding:
    """The repository's record of this source is of the cluster that answers; pure.

    Raises:
        ClusterMismatch: it is of another one.
    """
    found = f"system identifier {facts.system_identifier}"
    if known is None:
        return good(f"{found}; the repository has nothing of this source yet")
    if known.system_identifier != facts.system_identifier:
        raise ClusterMismatch(
            f"the repository knows this source with system identifier {known.system_identifier}, but the server has "
            f"{facts.system_identifier}"
        )
    if facts.major < known.major_version:
        raise ClusterMismatch(f"the repository knows PostgreSQL {known.major_version}, but the server is {facts.major}")
    return good(f"{found}, as the repository knows it")


def privileges(facts: Facts, source: SourceSettings) -> Finding:
    """The role holds what the source's modes need; pure.

    Raises:
        PrivilegeMissing: something is missing; the hint grants it.
    """
    if facts.superuser:
        return warning(
            f"{facts.user} is a superuser, which is more than a backup needs",
            "docs/how-to/prepare-postgres.md makes a role with just the grants.",
        )
    grants = missing_grants(facts, source)
    if grants:
        raise PrivilegeMissing(
            f"{facts.user} lacks {len(grants)} privilege(s)", hint="As a superuser: " + " ".join(grants)
        )
    return good(f"{facts.user} holds every privilege that modes {source.mode.value} and {source.wal.value} need")


def missing_grants(facts: Facts, source: SourceSettings) -> list[str]:
    """The statements that would give the role what it lacks; pure."""
    role = '"' + facts.user.replace('"', '""') + '"'
    direct = source.mode is CopyMode.DIRECT
    replicates = source.mode is CopyMode.STREAM or source.wal is WalMode.RECEIVE
    wanted = [
        (facts.monitor, f"GRANT pg_monitor TO {role};"),
        (facts.may_start or not direct, f"GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO {role};"),
        (facts.may_stop or not direct, f"GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO {role};"),
        (facts.may_switch, f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {role};"),
        (facts.replication or not replicates, f"ALTER ROLE {role} REPLICATION;"),
    ]
    return [statement for granted, statement in wanted if not granted]


def replication_admitted(source: SourceSettings) -> Finding:
    """pg_hba.conf admits a replication connection where one is needed.

    Raises:
        ServerUnreachable, PrivilegeMissing: it does not.
    """
    if source.mode is not CopyMode.STREAM and source.wal is not WalMode.RECEIVE:
        return skipped("neither backup nor WAL of this source goes over the replication protocol")
    connect(source, replication=True).close()
    return good("a replication connection is admitted")


def data_directory_readable(facts: Facts, source: SourceSettings) -> Finding:
    """A direct copy can read the cluster's files on this host, and they are that server's.

    Raises:
        PrivilegeMissing: this account may not read them, or the role may not ask where they are.
        ClusterMismatch: they belong to another cluster.
    """
    if source.mode is not CopyMode.DIRECT:
        return skipped("the files come over the replication protocol")
    directory = Path(source.data_directory or facts.data_directory)
    if not directory.is_absolute():
        raise PrivilegeMissing(
            f"{facts.user} may not see where the data directory lies", hint="Grant pg_monitor, or set data_directory."
        )
    for path in (directory, directory / "base", directory / "global" / "pg_control"):
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            reason = "is not there" if not path.exists() else "may not be read by this account"
            raise PrivilegeMissing(
                f"{path} {reason}",
                hint="Run Seawall on the server's host under its account or as root, or set mode to stream.",
            )
    found = read_control(directory).system_identifier
    if found != facts.system_identifier:
        raise ClusterMismatch(f"{directory} is of system identifier {found}, the server has {facts.system_identifier}")
    return good(f"{directory} is readable and belongs to this server")


def checksums(facts: Facts) -> Finding:
    """Page checksums are on; pure."""
    if facts.checksums:
        return good("page checksums are on")
    return warning(
        "page checksums are off: damage on the server's disk is backed up unseen",
        "Stop the server and run `pg_checksums --enable`.",
    )


def wal_level(facts: Facts) -> Finding:
    """WAL holds what recovery needs; pure.

    Raises:
        ClusterError: it does not.
    """
    if facts.wal_level == "minimal":
        raise ClusterError("wal_level is minimal", hint="Set wal_level to replica and restart the server.")
    return good(f"wal_level is {facts.wal_level}")


def clock_of(source: SourceSettings) -> datetime:
    """The server's clock.

    Raises:
        ServerUnreachable: as named.
        ClusterError: it has none.
    """
    with connect(source) as session, translated(source.name):
        row = session.execute("SELECT clock_timestamp()").fetchone()
    if row is None or not isinstance(row[0], datetime):
        raise ClusterError(f"source {source.name!r}: the server does not say what time it is")
    return row[0]


def account_can_execute(settings: Settings, source: SourceSettings, major: int) -> Finding:
    """The account of servers that Seawall starts can run what it needs to: PostgreSQL, Python, the WAL client.

    Raises:
        BinariesMissing: this version is not installed here.
        PrivilegeMissing: a directory on the way is closed.
    """
    account = Account.for_servers(settings.server.account)
    binaries = find(major, source.bin_directory)
    programs = [binaries.path("postgres"), Path(sys.executable)]
    reasons = [account.can_execute(program) for program in programs]
    reasons.append(account.can_enter(CLIENT.parent))
    if settings.server.work_directory.exists():
        reasons.append(account.can_enter(settings.server.work_directory))
    for reason in reasons:
        if reason is not None:
            raise PrivilegeMissing(reason, hint="Restored servers and WAL commands run under this account.")
    return good(f"{account.name} can run {binaries.path('postgres')} and {sys.executable}")
