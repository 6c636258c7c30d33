"""Settings of a recovery, and watching it reach its target or fail.

Recovery settings: PostgreSQL's documentation, 20.5.5 and 20.5.6 "Archive Recovery" and "Recovery Target". They go
to the end of postgresql.auto.conf between two marks, so that they win over every file and can be found again.

The server's silence is not success: `watch` compares what was reached with what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from seawall.events import Observer
from seawall.model import RecoveryTarget
from seawall.postgres.binaries import Account
from seawall.postgres.instance import Instance
from seawall.wal import Lsn


class TargetAction(StrEnum):
    """What the server does when the target is reached."""

    PROMOTE = "promote"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"


class Outcome(StrEnum):
    """How a recovery ended."""

    PROMOTED = "promoted"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where recovery stopped.

    `lsn` is the end of the last record replayed, `last_commit_at` the time of the last commit or abort replayed (None:
    none was), `timeline` the one now open, `stopped` what the log says about where it stopped.
    """

    outcome: Outcome
    lsn: Lsn
    last_commit_at: datetime | None
    timeline: int
    stopped: str
    seconds: float


def restore_command_line(arguments: Sequence[str | Path]) -> str:
    """A shell command for `restore_command` from single arguments.

    The arguments `%f`, `%p` and `%r` stay PostgreSQL's placeholders; every other percent sign is doubled, and every
    argument is quoted for the shell, so paths may have spaces.

    Raises:
        SettingsError: an argument has a line break or NUL in it.
    """
    raise NotImplementedError


def configure(
    data_directory: Path,
    target: RecoveryTarget,
    restore_command: str | Sequence[str | Path],
    *,
    archive_off: bool = True,
    action: TargetAction = TargetAction.PROMOTE,
    settings: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> None:
    """Make the next start of the server an archive recovery to `target`; the server must be down.

    Writes postgresql.auto.conf and recovery.signal, removes standby.signal and older recovery settings, and raises
    max_connections and the like to what pg_control says replay needs. Running it again replaces what it wrote.

    Args:
        data_directory: the restored files.
        target: where to stop.
        restore_command: a finished shell command with %f and %p, or arguments for `restore_command_line`.
        archive_off: with archive_mode off, so that a test never writes into the source's archive.
        action: what to do at the target; ignored for `latest`, which always promotes.
        settings: more settings for the same block.
        account: becomes the owner of the files written.

    Raises:
        RecoveryFailed: the files cannot be written.
        SettingsError: a value has a line break or NUL in it.
    """
    raise NotImplementedError


def deconfigure(data_directory: Path) -> None:
    """Take the block that `configure` wrote out again, once the server was promoted; it may run."""
    raise NotImplementedError


def complete_configuration(
    data_directory: Path, saved: Mapping[str, str], account: Account | None = None
) -> tuple[str, ...]:
    """Give a data directory the configuration files that it lacks because they lay elsewhere (as on Debian).

    Writes only what is missing: a postgresql.conf with the settings of `saved` that replay and sorting need and
    nothing that names paths or addresses of the old host; a pg_hba.conf that admits local sockets as peer; an empty
    pg_ident.conf. The saved originals go to `seawall-configuration/`, for the administrator to merge.

    Args:
        data_directory: the restored files.
        saved: text of the source's configuration files by absolute path, as `inspect.configuration` gave.
        account: becomes the owner of the files written.

    Returns:
        The names written, relative to the data directory.
    """
    raise NotImplementedError


def watch(
    instance: Instance,
    target: RecoveryTarget,
    *,
    action: TargetAction = TargetAction.PROMOTE,
    timeout: float = 4 * 3600.0,
    observe: Observer | None = None,
) -> Reached:
    """Follow a recovery that `instance.start(wait=False)` began until it ended.

    Args:
        instance: its superuser must be admitted (start it with `private=True`).
        target: for messages and for the comparison.
        action: as given to `configure`.
        timeout: seconds without any progress of replay until RecoveryFailed.
        observe: hears `Advanced("replay", …)`; cancelling stops the server.

    Raises:
        WalGap: WAL ended before the target or before consistency.
        RecoveryFailed: anything else that ended recovery; the log is quoted.
        Cancelled: the observer asked to stop.
    """
    raise NotImplementedError
