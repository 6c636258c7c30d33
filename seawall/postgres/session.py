"""A low-level backup: the session between `pg_backup_start` and `pg_backup_stop`.

PostgreSQL ends the backup when this session is lost, so a keepalive thread talks to the server all the while and
`check` tells a copying caller at once. Leaving the context without `stop` abandons the backup and nothing else.
The session never waits for PostgreSQL's archiver: whoever takes the backup proves that the WAL is stored.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from seawall.errors import ClusterError, ClusterMismatch, ServerUnreachable, UsageError
from seawall.model import Cluster
from seawall.postgres.connect import Session, connect, translated
from seawall.settings import SourceSettings
from seawall.wal import Lsn

_log = logging.getLogger(__name__)
_START: LiteralString = "SELECT pg_backup_start(%s, %s)::text, pg_is_in_recovery(), clock_timestamp()"
_PRIMARY_TIMELINE: LiteralString = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
_STANDBY_TIMELINE: LiteralString = "SELECT timeline_id FROM pg_control_checkpoint()"
# The clock is read after the stop: rows are made one after the other, the function's row comes first.
_STOP: LiteralString = (
    "SELECT lsn::text, labelfile, spcmapfile, clock_timestamp() FROM pg_backup_stop(wait_for_archive => %s)"
)
_TIMELINE = re.compile(r"^START TIMELINE: (\d+)$", re.MULTILINE)
_MAX_LABEL = 1024  # MAXPGPATH, which do_pg_backup_start enforces


@dataclass(frozen=True, slots=True)
class StartInfo:
    """Where replay of the backup begins; `started_at` is the server's clock."""

    lsn: Lsn
    timeline: int
    started_at: datetime
    in_recovery: bool


@dataclass(frozen=True, slots=True)
class StopInfo:
    """Where the backup becomes consistent, and the two files to store byte for byte.

    `stopped_at` is the server's clock after the stop: a recovery target in time must be later. `tablespace_map` is
    empty where there are no tablespaces; then no such file is written.
    """

    lsn: Lsn
    timeline: int
    backup_label: str
    tablespace_map: str
    stopped_at: datetime


class BackupSession:
    """One backup of one cluster, on a primary or a standby.

    Args:
        source: which cluster.
        label: shown in backup_label; any text without line breaks.
        fast: checkpoint at once (true) or spread it over the usual time.
        keepalive_seconds: how often the session is proved alive.

    Raises:
        UsageError: the label has a line break or is too long.
    """

    def __init__(
        self, source: SourceSettings, label: str, fast: bool = True, *, keepalive_seconds: float = 15.0
    ) -> None:
        self._source = source
        self._label = checked_backup_label(label)
        self._fast = fast
        self._keepalive_seconds = keepalive_seconds
        self._session: Session | None = None
        self._started: StartInfo | None = None
        self._lost = ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BackupSession:
        self._session = connect(self._source, application_name="seawall backup")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_keepalive()
        if self._session is not None:
            # Closing is what abandons a backup that was not stopped; a session already broken is closed as well.
            with contextlib.suppress(psycopg.Error):
                self._session.close()
            self._session = None

    def start(self) -> StartInfo:
        """Begin the backup; returns after the checkpoint.

        Raises:
            PrivilegeMissing: no EXECUTE on pg_backup_start.
            ServerUnreachable, ClusterError: the server could not.
        """
        row = self._row(_START, (self._label, self._fast))
        in_recovery = bool(row[1])
        # A standby starts from its last restartpoint, which pg_control knows; a primary names its own WAL files.
        line = self._row(_STANDBY_TIMELINE if in_recovery else _PRIMARY_TIMELINE, ())
        self._started = StartInfo(Lsn.parse(str(row[0])), int(str(line[0])), _moment(row[2]), in_recovery)
        self._thread = threading.Thread(target=self._keep_alive, name="backup keepalive", daemon=True)
        self._thread.start()
        return self._started

    def check(self) -> None:
        """Cheap; call it between files.

        Raises:
            ServerUnreachable: the session was lost, so the backup is void.
        """
        if self._lost:
            raise ServerUnreachable(
                f"source {self._source.name!r}: the backup's session was lost: {self._lost}",
                hint="PostgreSQL gave this backup up; take it again. Nothing was listed.",
            )

    def stop(self, wait: bool = False) -> StopInfo:
        """End the backup; a primary switches to a new segment by itself, so that the last one can be archived.

        A standby cannot: where its primary is idle, `switch_wal_at_primary`.

        Args:
            wait: let PostgreSQL wait for its own archiver.

        Raises:
            ServerUnreachable: the session was lost; the backup is void.
            ClusterError: such as a standby that was promoted meanwhile.
        """
        started = self._started
        if started is None:
            raise UsageError("this backup was not started")
        self._end_keepalive()
        self.check()
        row = self._row(_STOP, (wait,))
        label = str(row[1])
        match = _TIMELINE.search(label)
        if match is None or int(match[1]) != started.timeline:
            raise ClusterError(
                f"source {self._source.name!r}: the backup began on timeline {started.timeline}, "
                f"but its label says {match[1] if match else 'none'}",
                hint="The server was promoted meanwhile; take the backup again.",
            )
        self._started = None
        return StopInfo(Lsn.parse(str(row[0])), started.timeline, label, str(row[2] or ""), _moment(row[3]))

    def _row(self, statement: LiteralString, parameters: tuple[object, ...]) -> TupleRow:
        if self._session is None:
            raise UsageError("this backup's session is not open")
        with translated(self._source.name):
            row = self._session.execute(statement, parameters).fetchone()
        if row is None:
            raise ClusterError(f"source {self._source.name!r} answered nothing to {statement!r}")
        return row

    def _keep_alive(self) -> None:
        while not self._done.wait(self._keepalive_seconds):
            try:
                self._row("SELECT 1", ())
            except ClusterError as error:
                self._lost = error.message
                _log.error("%s", error.message)
                return

    def _end_keepalive(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def switch_wal(source: SourceSettings) -> Lsn:
    """Close the current WAL segment of a primary, so that an idle server still archives.

    Returns the end of the last record before the switch; does nothing when the segment is untouched.

    Raises:
        PrivilegeMissing: no EXECUTE on pg_switch_wal.
        ClusterError: it is a standby.
    """
    with connect(source) as session, translated(source.name):
        row = session.execute("SELECT pg_switch_wal()::text").fetchone()
    return Lsn.parse(str(row[0])) if row else Lsn(0)


def switch_wal_at_primary(source: SourceSettings, standby: Cluster) -> Lsn:
    """`switch_wal` on the primary of a source that is a standby.

    Raises:
        ClusterMismatch: what `primary_conninfo` names is not the standby's own cluster.
        ServerUnreachable, PrivilegeMissing, ClusterError: it could not.
    """
    primary = replace(source, conninfo=source.primary_conninfo)
    with connect(primary) as session, translated(source.name):
        row = session.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
    if row is None or int(row[0]) % (1 << 64) != standby.system_identifier:
        raise ClusterMismatch(
            f"`primary_conninfo` of source {source.name!r} names cluster {row and row[0]}, "
            f"the standby is of {standby.system_identifier}"
        )
    return switch_wal(primary)


def checked_backup_label(label: str) -> str:
    """`label` itself, if backup_label can carry it (xlogbackup.c writes it as one line).

    Raises:
        UsageError: it has a line break or NUL, or more than 1023 bytes.
    """
    if len(label.encode()) >= _MAX_LABEL or any(c in label for c in "\n\r\0"):
        raise UsageError(f"{label[:80]!r} cannot be a backup's label", hint="One line of at most 1023 bytes.")
    return label


def _moment(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise ClusterError(f"the server's clock says {value!r}")
    return value.astimezone(UTC)
