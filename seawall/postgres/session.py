# Interim bodies by the lead, so that others can run end to end; the owner of this package replaces this file.
"""A low-level backup: the session between `pg_backup_start` and `pg_backup_stop`.

PostgreSQL ends the backup when this session is lost, so a keepalive thread talks to the server all the while and
`check` tells a copying caller at once. Leaving the context without `stop` abandons the backup and nothing else.
The session never waits for PostgreSQL's archiver: whoever takes the backup proves that the WAL is stored.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from seawall.errors import ClusterError, ServerUnreachable
from seawall.postgres.connect import connect, translated
from seawall.settings import SourceSettings
from seawall.wal import Lsn


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
    """

    def __init__(
        self, source: SourceSettings, label: str, fast: bool = True, *, keepalive_seconds: float = 15.0
    ) -> None:
        self._source, self._label, self._fast = source, label, fast
        self._every = keepalive_seconds
        self._stop = threading.Event()
        self._lost = ""
        self._lock = threading.Lock()
        self._primary = False

    def __enter__(self) -> BackupSession:
        self._session = connect(self._source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._session.close()

    def start(self) -> StartInfo:
        with translated(self._source.name):
            row = self._session.execute(
                "SELECT pg_backup_start(%s, %s)::text, pg_is_in_recovery(), clock_timestamp()", (self._label, self._fast)
            ).fetchone()
            if row is None:
                raise ClusterError("pg_backup_start gave nothing")
            lsn, in_recovery, at = row
            self._primary = not in_recovery
            timeline = self._timeline()
        threading.Thread(target=self._keep, name="backup-keepalive", daemon=True).start()
        return StartInfo(Lsn.parse(lsn), timeline, at, in_recovery)

    def _timeline(self) -> int:
        row = self._session.execute(
            "SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT min_recovery_end_timeline FROM pg_control_recovery())"
            " ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END"
        ).fetchone()
        return int(row[0]) if row else 0

    def _keep(self) -> None:
        while not self._stop.wait(self._every):
            try:
                with self._lock, translated(self._source.name):
                    self._session.execute("SELECT 1")
            except ClusterError as error:
                self._lost = error.message
                return

    def check(self) -> None:
        if self._lost or self._session.closed:
            raise ServerUnreachable(f"the backup session was lost, so the backup is void: {self._lost}")

    def stop(self, wait: bool = False) -> StopInfo:
        self.check()
        self._stop.set()
        with self._lock, translated(self._source.name):
            row = self._session.execute(
                "SELECT lsn::text, labelfile, spcmapfile, clock_timestamp() FROM pg_backup_stop(%s)", (wait,)
            ).fetchone()
            if row is None:
                raise ClusterError("pg_backup_stop gave nothing")
            timeline = self._timeline()
        return StopInfo(Lsn.parse(row[0]), timeline, row[1], row[2] or "", row[3])


def switch_wal(source: SourceSettings) -> Lsn:
    """Close the current WAL segment."""
    with connect(source) as session:
        row = session.execute("SELECT pg_switch_wal()::text").fetchone()
    return Lsn.parse(row[0]) if row else Lsn(0)
