"""The tools that are compared, each with the same codec, cipher class and number of workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks import measure
from seawall.postgres.binaries import Account
from seawall.postgres.instance import Instance


class Tool(Protocol):
    """One tool under measurement."""

    name: str

    def is_installed(self) -> bool: ...

    def prepare(self) -> None:
        """Make its repository and whatever else is not part of the measurement."""

    def command(self, verb: str) -> Sequence[str | Path] | None:
        """What is measured, or None where the tool has no such verb."""

    def run(self, verb: str) -> tuple[float, float, int]: ...

    def stored_bytes(self) -> int: ...

    def end(self) -> None: ...


class Seawall:
    """Seawall's own command line, direct mode, lz4, AES-256-GCM, two workers, WAL received on a slot."""

    name = "Seawall"
    slot = "seawall_bench"

    def __init__(self, work: Path, instance: Instance, account: Account) -> None:
        self.work, self.account, self._instance = work, account, instance
        self._home = work / "seawall"
        self._receiver: subprocess.Popen[bytes] | None = None

    def is_installed(self) -> bool:
        return True

    def prepare(self) -> None:
        conninfo = self._instance.conninfo
        measure.run(
            self._seawall("init", "--directory", self._home, "--source", "bench", "--conninfo", conninfo,
                          "--compression", "lz4", config=False)
        )  # fmt: skip
        self.start_receiver()

    def _seawall(self, *arguments: str | Path, config: bool = True) -> list[str | Path]:
        chosen = ["--config", self._home / "seawall.toml"] if config else []
        return [sys.executable, "-m", "seawall", *arguments, *chosen, "--quiet"]

    def start_receiver(self) -> None:
        command = self._seawall("wal", "receive", "bench", "--tail-seconds", "60")
        log = (self.work / "receiver.log").open("ab")
        self._receiver = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd="/")
        log.close()
        until = time.monotonic() + 30
        while time.monotonic() < until and not self._is_receiving():
            time.sleep(0.05)

    def _is_receiving(self) -> bool:
        with self._instance.connect() as session:
            row = session.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (self.slot,)
            ).fetchone()
        return bool(row and row[0])

    def stop_receiver(self) -> None:
        if self._receiver is not None:
            self._receiver.send_signal(signal.SIGTERM)
            self._receiver.wait(60)
            self._receiver = None

    @contextmanager
    def agent(self) -> Iterator[str]:
        """A running agent, and the archive_command that asks it."""
        line = subprocess.run(
            [str(part) for part in self._seawall("wal", "command", "bench")], capture_output=True, text=True, check=True
        ).stdout.strip()
        agent = subprocess.Popen([str(part) for part in self._seawall("wal", "agent", "bench")], cwd="/")
        try:
            time.sleep(2)
            yield line
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)

    def command(self, verb: str) -> Sequence[str | Path] | None:
        restored = self.work / "restored-seawall"
        return {
            "backup": self._seawall("backup", "bench"),
            "verify-hashes": self._seawall("verify", "bench", "--up-to", "hash-good"),
            "verify": self._seawall("verify", "bench", "--up-to", "decryptable"),
            "restore": self._seawall("restore", "bench", "--into", restored, "--no-start", "--immediate"),
        }[verb]

    def run(self, verb: str) -> tuple[float, float, int]:
        if verb == "restore":
            shutil.rmtree(self.work / "restored-seawall", ignore_errors=True)
        if verb == "backup":
            self.pause()
        return measure.run(self.command(verb) or ())

    def pause(self) -> None:
        """Labels have whole seconds, so two backups never begin in the same one."""
        time.sleep(1)

    def stored_bytes(self) -> int:
        newest = max((self._home / "repository/sources/bench/backups").iterdir())
        return measure.stored_bytes(newest)

    def end(self) -> None:
        self.stop_receiver()
        with self._instance.connect() as session:
            session.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (self.slot,),
            )


class PgBackRest:
    """pgBackRest as Debian has it: lz4, AES-256-CBC, two processes, its WAL check off (which is in its favour)."""

    name = "pgBackRest"
    more = ""

    def __init__(self, work: Path, instance: Instance, account: Account) -> None:
        self._work, self._instance, self._account = work / "pgbackrest", instance, account

    def is_installed(self) -> bool:
        return shutil.which("pgbackrest") is not None

    def prepare(self) -> None:
        for folder in (self._work, self._work / "repo", self._work / "log", self._work / "lock", self._work / "spool"):
            folder.mkdir()
            self._account.own(folder)
        (self._work / "pgbackrest.conf").write_text(
            "[global]\n"
            f"repo1-path={self._work}/repo\nlog-path={self._work}/log\nlock-path={self._work}/lock\n"
            f"spool-path={self._work}/spool\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchmark-only\n"
            "process-max=2\ncompress-type=lz4\ncompress-level=1\nstart-fast=y\narchive-check=n\n"
            "log-level-console=warn\nrepo1-retention-full=1\nrepo1-bundle=y\n"
            f"{self.more}"
            "[bench]\n"
            f"pg1-path={self._instance.data_directory}\npg1-port={self._instance.port}\npg1-user=postgres\n"
            f"pg1-socket-path={self._instance.data_directory.parent}\n",
            encoding="utf-8",
        )
        self._measured("stanza-create", "--no-online")

    def _measured(self, *arguments: str) -> tuple[float, float, int]:
        return measure.run(self._words(*arguments), account=self._account)

    def _words(self, *arguments: str) -> list[str | Path]:
        return ["pgbackrest", f"--config={self._work}/pgbackrest.conf", "--stanza=bench", *arguments]

    def command(self, verb: str) -> Sequence[str | Path] | None:
        return {
            "backup": self._words("--type=full", "backup"),
            # One command for both: it has no levels.
            "verify-hashes": self._words("verify"),
            "verify": self._words("verify"),
            "restore": self._words(f"--pg1-path={self._work}/restored", "--type=immediate", "restore"),
        }[verb]

    def run(self, verb: str) -> tuple[float, float, int]:
        if verb == "restore":
            target = self._work / "restored"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            self._account.own(target)
        return measure.run(self.command(verb) or (), account=self._account)

    def stored_bytes(self) -> int:
        backups = [path for path in (self._work / "repo/backup/bench").iterdir() if path.name.endswith("F")]
        return measure.stored_bytes(max(backups))

    def end(self) -> None:
        """Nothing runs."""


class PgBaseBackup:
    """PostgreSQL's own: one stream, lz4 by the server, no encryption."""

    name = "pg_basebackup"

    def __init__(self, work: Path, instance: Instance, account: Account) -> None:
        self._target, self._instance, self._account = work / "basebackup", instance, account

    def is_installed(self) -> bool:
        return True

    def prepare(self) -> None:
        self._target.mkdir()
        self._account.own(self._target)

    def command(self, verb: str) -> Sequence[str | Path] | None:
        if verb != "backup":
            return None
        tool = self._instance.binaries.path("pg_basebackup")
        words = [tool, "-D", self._target / "b", "-Ft", "--compress=server-lz4:1", "-X", "none", "-c", "fast"]
        return [*words, "-d", self._instance.conninfo]

    def run(self, verb: str) -> tuple[float, float, int]:
        shutil.rmtree(self._target / "b", ignore_errors=True)
        return measure.run(self.command(verb) or (), account=self._account, environment={"HOME": os.fspath("/")})

    def stored_bytes(self) -> int:
        return measure.stored_bytes(self._target / "b")

    def end(self) -> None:
        """Nothing runs."""
