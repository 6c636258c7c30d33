# Interim bodies by the lead, so that others can run end to end; the owner of this package replaces this file.
"""One server that Seawall starts: to test a restore, to recover rows, or as the restored cluster itself.

A server runs as a child in a session of its own, so Ctrl-C on the caller's terminal does not reach it, and logs
to a file. It is ended by the pid in its own postmaster.pid after that process was proved to be the server of this
data directory: a pid alone may have been given to somebody else since.

Not guaranteed: that a server outlived by a killed caller ends by itself; `stop` on a new Instance ends it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from seawall.postgres.binaries import Account, Binaries
from seawall.errors import ServerFailed
from seawall.postgres.connect import Session, connect
from seawall.settings import SourceSettings


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Instance:
    def __init__(
        self,
        data_directory: Path,
        binaries: Binaries,
        account: Account,
        *,
        log: Path | None = None,
        user: str = "postgres",
    ) -> None:
        self.data_directory, self.binaries, self.account, self.user = data_directory, binaries, account, user
        self.log = log or data_directory.with_name(data_directory.name + ".log")
        self.port = 0
        self._sockets: Path | None = None
        self._private = False

    def initdb(self, options: Sequence[str] = (), *, checksums: bool = True) -> None:
        done = self.account.run(
            [
                self.binaries.path("initdb"),
                "-D",
                self.data_directory,
                "-A",
                "trust",
                "-U",
                self.user,
                "-E",
                "UTF8",
                "--no-sync",
                *(["-k"] if checksums else []),
                *options,
            ]
        )
        if done.returncode:
            raise ServerFailed(done.stdout + done.stderr)

    def start(
        self,
        port: int = 0,
        options: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        *,
        wait: bool = True,
        private: bool = False,
    ) -> None:
        self.port = port or free_port()
        self._sockets = Path(tempfile.mkdtemp(prefix="sw-"))
        self.account.own(self._sockets)
        self._sockets.chmod(0o700)
        self._private = private
        settings = {
            "unix_socket_directories": str(self._sockets),
            "port": str(self.port),
            "listen_addresses": "" if private else "127.0.0.1",
            "unix_socket_permissions": "0700",
            **(options or {}),
        }
        if private:
            hba = self._sockets / "hba.conf"
            hba.write_text("local all all trust\n")
            self.account.own(hba)
            settings["hba_file"] = str(hba)
        words = [self.binaries.path("postgres"), "-D", self.data_directory]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        output = self.log.open("wb")
        self._process = self.account.start(words, output=output)
        output.close()
        until = time.monotonic() + timeout
        while wait and not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise ServerFailed(self.log_tail())
            time.sleep(0.05)

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        pid = self.pid()
        if pid is not None:
            os.kill(pid, {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
            until = time.monotonic() + timeout
            while self.pid() is not None:
                with contextlib.suppress(AttributeError):
                    self._process.poll()
                if time.monotonic() > until:
                    raise ServerFailed("does not stop " + self.log_tail())
                time.sleep(0.05)
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def is_running(self) -> bool:
        return self.pid() is not None

    def is_ready(self) -> bool:
        try:
            self.connect().close()
        except Exception:
            return False
        return True

    def pid(self) -> int | None:
        with contextlib.suppress(AttributeError):
            self._process.poll()
        try:
            pid = int((self.data_directory / "postmaster.pid").read_text().split("\n")[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def conninfo(self) -> str:
        host = self._sockets if self._private else "127.0.0.1"
        return f"host={host} port={self.port} user={self.user} dbname=postgres"

    def source(self, name: str = "scratch") -> SourceSettings:
        return SourceSettings(name=name, conninfo=self.conninfo)

    def connect(self, dbname: str = "postgres") -> Session:
        return connect(self.source(), dbname=dbname)


class ScratchInstance(Instance):
    root: Path


@contextmanager
def scratch(
    parent: Path, binaries: Binaries, account: Account, *, user: str = "postgres", keep: bool = False
) -> Iterator[ScratchInstance]:
    root = Path(tempfile.mkdtemp(prefix="scratch-", dir=parent))
    root.chmod(0o755)
    account.own(root)
    made = ScratchInstance(root / "data", binaries, account, user=user)
    made.root = root
    try:
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(root, ignore_errors=True)
