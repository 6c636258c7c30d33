"""One server that Seawall starts: to test a restore, to recover rows, or as the restored cluster itself.

A server runs as a child in a session of its own, so Ctrl-C on the caller's terminal does not reach it, and logs
to a file. It is ended by the pid in its own postmaster.pid after that process was proved to be the server of this
data directory: a pid alone may have been given to somebody else since.

Not guaranteed: that a server outlived by a killed caller ends by itself; `stop` on a new Instance ends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.connect import Session
from seawall.settings import SourceSettings


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    raise NotImplementedError


class Instance:
    """A data directory and the server on it.

    Args:
        data_directory: existing, or about to be made by `initdb` or a restore.
        binaries: of the data directory's major version.
        account: runs the server and owns the directory.
        log: where the server's output goes; `<data directory>.log` beside it when omitted.
        user: the superuser to connect as.
    """

    data_directory: Path
    binaries: Binaries
    account: Account
    log: Path
    user: str
    port: int

    def __init__(
        self,
        data_directory: Path,
        binaries: Binaries,
        account: Account,
        *,
        log: Path | None = None,
        user: str = "postgres",
    ) -> None:
        raise NotImplementedError

    def initdb(self, options: Sequence[str] = (), *, checksums: bool = True) -> None:
        """Make a new cluster that trusts local connections.

        Args:
            options: more arguments of `initdb`, such as `--wal-segsize=1`.
            checksums: with page checksums.

        Raises:
            ServerFailed: initdb said no; its output is quoted.
        """
        raise NotImplementedError

    def start(
        self,
        port: int = 0,
        options: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        *,
        wait: bool = True,
        private: bool = False,
    ) -> None:
        """Start the server.

        Args:
            port: TCP port on 127.0.0.1 (and the socket's number); a free one when 0.
            options: settings by name, stronger than those in files.
            timeout: seconds to wait until it accepts connections (hot standbys included).
            wait: false returns at once, for `recovery.watch`.
            private: listen on no TCP port, only on a socket in a directory that just this account (and root) can
                enter, and trust whoever comes through it whatever the cluster's pg_hba.conf says.

        Raises:
            ServerFailed: it ended or was not ready in time; the end of its log is quoted.
            PrivilegeMissing: the account cannot reach programs or data directory.
        """
        raise NotImplementedError

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Stop the server, also one that another process started; nothing to do when none runs.

        Args:
            mode: smart, fast or immediate, as pg_ctl's.
            timeout: seconds until ServerFailed.
        """
        raise NotImplementedError

    def is_running(self) -> bool:
        """Whether a server of this data directory lives."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """The pid of the server of this data directory, proved to be it; None when none runs."""
        raise NotImplementedError

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log since the last start."""
        raise NotImplementedError

    @property
    def conninfo(self) -> str:
        """How libpq reaches it, without a password."""
        raise NotImplementedError

    def source(self, name: str = "scratch") -> SourceSettings:
        """Settings under which every function of this package works on the server."""
        raise NotImplementedError

    def connect(self, dbname: str = "postgres") -> Session:
        """A connection as the superuser, in autocommit."""
        raise NotImplementedError


class ScratchInstance(Instance):
    """A throw-away server below a directory of its own, `root`; always private, never archives."""

    root: Path


@contextmanager
def scratch(
    parent: Path, binaries: Binaries, account: Account, *, user: str = "postgres", keep: bool = False
) -> Iterator[ScratchInstance]:
    """A throw-away instance in a new directory below `parent`; stopped and removed at the end.

    `instance.data_directory` does not exist yet: run `initdb` or restore into it. Put remapped tablespaces below
    `instance.root`, so that they are removed as well.

    Args:
        parent: must be enterable for the account.
        binaries, account, user: as for `Instance`.
        keep: leave the files (not the server) for somebody to look at.

    Raises:
        PrivilegeMissing: the account cannot enter `parent`; the message names the directory in the way.
    """
    raise NotImplementedError
    yield
