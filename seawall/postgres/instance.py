"""One server that Seawall starts: to test a restore, to recover rows, or as the restored cluster itself.

A server runs as a child in a session of its own, so Ctrl-C on the caller's terminal does not reach it, and logs
to a file. It is ended by the pid in its own postmaster.pid after that process was proved to be the server of this
data directory: a pid alone may have been given to somebody else since. A private server also ends when the thread
that started it does, even by kill -9 (`setpriv --pdeathsig`, where util-linux has it).

Not guaranteed: that other servers outlived by a killed caller end by themselves; `stop` on a new Instance ends them.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from seawall.errors import PrivilegeMissing, ServerFailed, UsageError
from seawall.postgres.binaries import Account, Binaries
from seawall.postgres.connect import Session, connect
from seawall.postgres.scan import EXTERNAL_PID_FILE
from seawall.settings import SourceSettings

_log = logging.getLogger(__name__)
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SOCKET_PREFIX = "seawall-socket-"
_PUBLIC_SOCKETS = "/tmp"  # noqa: S108 - PostgreSQL's own default; the socket's rights are pg_hba.conf's
_MAX_SOCKET_DIRECTORY = 80  # sockaddr_un holds 107 bytes, the socket's own name needs about 20
_SWEPT_AFTER_SECONDS = 300
_LOG_BYTES = 1024 * 1024
_DATA_CHECKSUMS_BY_DEFAULT = 18
# What came with a restore may send the log elsewhere, in another language.
_ALWAYS = {
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
}
# A private copy must not act on the outside world: archive, wait for standbys, pull from publishers, need certificates.
_PRIVATE = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
    "ssl": "off",
    "archive_mode": "off",
    "synchronous_standby_names": "",
    "max_logical_replication_workers": "0",
    "hot_standby": "on",
}


@dataclass(frozen=True, slots=True)
class _PidFile:
    """postmaster.pid (`miscadmin.h`, LOCK_FILE_LINE_*)."""

    pid: int
    port: int
    sockets: str
    address: str
    status: str


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Instance:
    """A data directory and the server on it.

    Args:
        data_directory: existing, or about to be made by `initdb` or a restore.
        binaries: of the data directory's major version.
        account: runs the server and owns the directory.
        log: where the server's output goes; `<data directory>.log` beside it when omitted.
        user: the superuser to connect as.
    """

    def __init__(
        self,
        data_directory: Path,
        binaries: Binaries,
        account: Account,
        *,
        log: Path | None = None,
        user: str = "postgres",
    ) -> None:
        self.data_directory = data_directory
        self.binaries = binaries
        self.account = account
        self.log = log or data_directory.with_name(data_directory.name + ".log")
        self.user = user
        self.port = 0
        self._host = "127.0.0.1"
        self._log_from = 0
        self._process: subprocess.Popen[bytes] | None = None

    def initdb(self, options: Sequence[str] = (), *, checksums: bool = True) -> None:
        """Make a new cluster that trusts local connections.

        Args:
            options: more arguments of `initdb`, such as `--wal-segsize=1`.
            checksums: with page checksums.

        Raises:
            ServerFailed: initdb said no; its output is quoted.
            PrivilegeMissing: the account cannot reach programs or data directory.
        """
        self._reachable()
        # The account may be unable to make a directory here; one of its own it can fill.
        self.data_directory.mkdir(mode=0o700, exist_ok=True)
        self.account.own(self.data_directory)
        words: list[str | Path] = [self.binaries.path("initdb"), "-D", self.data_directory, "-U", self.user]
        words += ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        if checksums:
            words.append("--data-checksums")
        elif self.binaries.major >= _DATA_CHECKSUMS_BY_DEFAULT:
            words.append("--no-data-checksums")
        done = self.account.run([*words, *options])
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed: {(done.stderr or done.stdout).strip()}", hint="The message says why.")

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
                enter, and trust whoever comes through it whatever the cluster's pg_hba.conf says; archive nothing,
                wait for no standby, subscribe to nothing. Ends with the thread that started it.

        Raises:
            ServerFailed: it ended or was not ready in time, or one is running; the end of its log is quoted.
            PrivilegeMissing: the account cannot reach programs or data directory.
        """
        self._reachable()
        if self.is_running():
            raise ServerFailed(f"a server already runs on {self.data_directory}", hint="Stop it first.")
        self.port = port or free_port()
        settings = self._settings(private) | dict(options or {})
        words: list[str | Path] = [self.binaries.path("postgres"), "-D", self.data_directory]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        self._process = self._launch([*_ending_with_us(), *words] if private else words)
        if wait:
            self._await_ready(timeout)

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Stop the server, also one that another process started; nothing to do when none runs.

        Args:
            mode: smart, fast or immediate, as pg_ctl's.
            timeout: seconds until ServerFailed.

        Raises:
            ServerFailed: it did not end in time.
            UsageError: there is no such mode.
        """
        if mode not in _SIGNALS:
            raise UsageError(f"{mode!r} is no way to stop a server", hint="There are smart, fast and immediate.")
        found = self._pid_file()
        end = time.monotonic() + timeout
        self._await_pid_file(end)
        pid = self.pid()
        if pid is not None:
            _signal(pid, _SIGNALS[mode])
        while self._alive(pid):
            if time.monotonic() > end:
                raise ServerFailed(f"the server on {self.data_directory} does not stop\n{self.log_tail()}")
            time.sleep(0.02)
        self._process = None
        self._remove_sockets(found.sockets if found else self._host)
        if found is not None:
            _remove_stale_socket(found)

    def is_running(self) -> bool:
        """Whether a server of this data directory lives."""
        return self._alive(self.pid())

    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        found = self._pid_file()
        return found is not None and found.status == "ready" and self.pid() is not None

    def pid(self) -> int | None:
        """The pid of the server of this data directory, proved to be it; None when none runs."""
        found = self._pid_file()
        if found is None or not _lives(found.pid):
            return None
        return found.pid if _is_server_of(found.pid, self.data_directory) else None

    def log_text(self) -> str:
        """The server's output since this instance started it, at most the last MiB."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(min(self._log_from, end), end - _LOG_BYTES))
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log since the last start."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    @property
    def conninfo(self) -> str:
        """How libpq reaches it, without a password."""
        found = self._pid_file() if not self.port else None
        host, port = self._host, self.port
        if found is not None:
            host, port = ("127.0.0.1" if found.address else found.sockets), found.port
        # Paths and names may have spaces and quotes.
        return make_conninfo("", host=host, port=port, user=self.user, dbname="postgres")

    def source(self, name: str = "scratch") -> SourceSettings:
        """Settings under which every function of this package works on the server."""
        return SourceSettings(
            name=name,
            conninfo=self.conninfo,
            data_directory=self.data_directory,
            bin_directory=self.binaries.directory,
        )

    def connect(self, dbname: str = "postgres") -> Session:
        """A connection as the superuser, in autocommit.

        Raises:
            ServerUnreachable, PrivilegeMissing: as `connect.connect`.
        """
        return connect(self.source(), dbname=dbname)

    def _reachable(self) -> None:
        self.binaries.usable_by(self.account)
        reason = self.account.can_enter(self.data_directory.parent)
        if reason is not None:
            raise PrivilegeMissing(reason, hint="The message says what to change.")

    def _settings(self, private: bool) -> dict[str, str]:
        # A copied configuration may name the old host's pid file, which an original on this host still uses.
        pid_file = self.data_directory / EXTERNAL_PID_FILE
        settings = {"data_directory": str(self.data_directory), "port": str(self.port)} | _ALWAYS
        settings["external_pid_file"] = str(pid_file)
        if not private:
            self._host = "127.0.0.1"
            return settings | {"listen_addresses": "127.0.0.1", "unix_socket_directories": _PUBLIC_SOCKETS}
        place = self._private_place()
        self._host = str(place)
        settings |= {"unix_socket_directories": str(place), "hba_file": f"{place}/hba", "ident_file": f"{place}/ident"}
        return settings | _PRIVATE

    def _private_place(self) -> Path:
        parent = tempfile.gettempdir()
        if len(parent) > _MAX_SOCKET_DIRECTORY or self.account.can_enter(Path(parent)) is not None:
            parent = _PUBLIC_SOCKETS
        _sweep(Path(parent))
        place = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=parent))
        for name, text in (("hba", "local all all trust\nlocal replication all trust\n"), ("ident", "")):
            (place / name).write_text(text, encoding="ascii")
            self.account.own(place / name)
        self.account.own(place)
        return place

    def _launch(self, words: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PrivilegeMissing(f"the log {self.log} cannot be written: {error.strerror}", hint="") from error
        with os.fdopen(descriptor, "ab") as output:
            self._log_from = output.seek(0, os.SEEK_END)
            self.account.own(self.log)
            return self.account.start(words, output=output)

    def _await_ready(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not self._is_up():
            if not self._alive(self.pid()):
                self._remove_sockets(self._host)
                raise ServerFailed(f"the server on {self.data_directory} did not start\n{self.log_tail()}")
            if time.monotonic() > end:
                raise ServerFailed(
                    f"the server on {self.data_directory} was not ready after {timeout:.0f} s\n{self.log_tail()}"
                )
            time.sleep(0.02)

    def _is_up(self) -> bool:
        found = self._pid_file()
        # A leftover file of a crashed server may say `ready`: it counts only with the pid that was just started.
        started = found is not None and (self._process is None or found.pid == self._process.pid)
        return started and found is not None and found.status in ("ready", "standby")

    def _await_pid_file(self, end: float) -> None:
        """A server that was only just started has no pid file yet; stopping must not miss it."""
        while self._process is not None and self._process.poll() is None and self.pid() is None:
            if time.monotonic() > end:
                raise ServerFailed(f"the server on {self.data_directory} does not answer\n{self.log_tail()}")
            time.sleep(0.02)

    def _alive(self, pid: int | None) -> bool:
        child = self._process is not None and self._process.poll() is None
        return child or (pid is not None and _lives(pid))

    def _pid_file(self) -> _PidFile | None:
        try:
            lines = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise PrivilegeMissing(f"{self.data_directory} cannot be read by this account") from error
        lines += [""] * (8 - len(lines))
        if not lines[0].strip().isdigit():
            return None
        port = int(lines[3]) if lines[3].strip().isdigit() else 0
        return _PidFile(int(lines[0]), port, lines[4].strip(), lines[5].strip(), lines[7].strip())

    def _remove_sockets(self, directory: str) -> None:
        if Path(directory).name.startswith(_SOCKET_PREFIX):
            shutil.rmtree(directory, ignore_errors=True)


def _remove_stale_socket(found: _PidFile) -> None:
    """Remove the socket of a server that was killed and could not: one whose lock names just that process."""
    if not found.sockets:
        return
    socket_file = Path(found.sockets) / f".s.PGSQL.{found.port}"
    lock = socket_file.with_name(f"{socket_file.name}.lock")
    try:
        owner = lock.read_text(encoding="ascii").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return
    if owner == str(found.pid) and not _lives(found.pid):
        for stale in (socket_file, lock):
            with suppress(OSError):
                stale.unlink()


def _sweep(parent: Path) -> None:
    """Remove the socket directories of private servers whose callers were killed before they could."""
    for place in parent.glob(f"{_SOCKET_PREFIX}*"):
        try:
            # One that was just made has no server yet.
            fresh = time.time() - place.stat().st_mtime < _SWEPT_AFTER_SECONDS
            locks = [lock.read_text(encoding="ascii").split("\n")[0].strip() for lock in place.glob(".s.PGSQL.*.lock")]
        except OSError:  # another account's, or gone this moment
            continue
        if not fresh and not any(pid.isdigit() and _lives(int(pid)) for pid in locks):
            shutil.rmtree(place, ignore_errors=True)


def _ending_with_us() -> list[str]:
    program = shutil.which("setpriv")
    if program is None:
        _log.debug("no setpriv (util-linux): a private server outlives a killed caller")
        return []
    return [program, "--pdeathsig", "QUIT", "--"]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise PrivilegeMissing(
            f"process {pid} is another account's server", hint="Run as root or as that account."
        ) from error


def _lives(pid: int) -> bool:
    """Whether the process runs; one that ended and was not yet waited for does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def _is_server_of(pid: int, data_directory: Path) -> bool:
    """Whether the process works in this directory, as every postmaster does (`ChangeToDataDir`)."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data_directory.resolve()
    except PermissionError:
        # Another account's process: its program is still to be seen, and only that account could write the pid file.
        try:
            return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
    except OSError:
        return False


class ScratchInstance(Instance):
    """A throw-away server below a directory of its own, `root`; always private, never archives."""

    def __init__(self, root: Path, binaries: Binaries, account: Account, *, user: str = "postgres") -> None:
        super().__init__(root / "data", binaries, account, user=user)
        self.root = root

    def start(
        self,
        port: int = 0,
        options: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        *,
        wait: bool = True,
        private: bool = True,
    ) -> None:
        """As `Instance.start`, and private whatever was asked."""
        if not private:
            raise UsageError("a scratch instance is always private", hint="Use Instance for a server that others see.")
        super().start(port, options, timeout, wait=wait, private=True)


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
    binaries.usable_by(account)
    reason = account.can_enter(parent)
    if reason is not None:
        raise PrivilegeMissing(reason, hint="The message says what to change.")
    root = Path(tempfile.mkdtemp(prefix="scratch-", dir=parent))
    account.own(root)
    instance = ScratchInstance(root, binaries, account, user=user)
    try:
        yield instance
    finally:
        # Nothing in it is wanted any more, so there is no reason to wait for a checkpoint.
        instance.stop("immediate")
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
