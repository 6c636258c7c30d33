"""A low-level backup: the session between `pg_backup_start` and `pg_backup_stop`.

PostgreSQL ends the backup when this session is lost, so a keepalive thread talks to the server all the while and
`check` tells a copying caller at once. Leaving the context without `stop` abandons the backup and nothing else.
The session never waits for PostgreSQL's archiver: whoever takes the backup proves that the WAL is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

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
        raise NotImplementedError

    def __enter__(self) -> BackupSession:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def start(self) -> StartInfo:
        """Begin the backup; returns after the checkpoint.

        Raises:
            PrivilegeMissing: no EXECUTE on pg_backup_start.
            ServerUnreachable, ClusterError: the server could not.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Cheap; call it between files.

        Raises:
            ServerUnreachable: the session was lost, so the backup is void.
        """
        raise NotImplementedError

    def stop(self, wait: bool = False) -> StopInfo:
        """End the backup; on a primary also switches to a new segment, so that the last one can be archived.

        Args:
            wait: let PostgreSQL wait for its own archiver.

        Raises:
            ServerUnreachable: the session was lost; the backup is void.
            ClusterError: such as a standby that was promoted meanwhile.
        """
        raise NotImplementedError


def switch_wal(source: SourceSettings) -> Lsn:
    """Close the current WAL segment of a primary, so that an idle server still archives.

    Returns the end of the last record before the switch; does nothing when the segment is untouched.

    Raises:
        PrivilegeMissing: no EXECUTE on pg_switch_wal.
        ClusterError: it is a standby.
    """
    raise NotImplementedError
