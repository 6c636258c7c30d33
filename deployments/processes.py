"""Processes of the stack: started with their output in files, ended for certain.

A child leads its own process group. It asks the kernel for SIGTERM when the thread that started it ends
(`setpriv --pdeathsig`, util-linux), so that a killed stack leaves nothing: start children from a thread that
lives as long as the stack. What a child starts and leaves behind is found by the mark in its environment.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Args:
        name: of the process, and of its log file.
        arguments: argument list; never holds a secret.
        environment: complete; nothing is inherited.
        directory: where it runs.
        account: run as this user when the stack belongs to root; the stack's own account when empty.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    account: str = ""


class Child:
    """A running process of the stack."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command = command
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                _arguments(command),
                env=dict(command.environment),
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM to the process itself, which ends its own children in its own order."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL to the whole process group, also after its leader ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _arguments(command: Command) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return list(command.arguments)
    account = ["--reuid", command.account, "--regid", command.account, "--init-groups"] if command.account else []
    return [setpriv, *account, "--pdeathsig", "TERM", "--", *command.arguments]


def marked(variable: str, value: str, *, processes: Path = Path("/proc")) -> Iterator[int]:
    """The processes, other than this one, that were started with `variable=value` in their environment."""
    wanted = f"{variable}={value}".encode()
    for entry in processes.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Gone meanwhile, a zombie, or another account's: none of them is ours to end.
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def end_marked(variable: str, value: str, *, scratch: Path, seconds: float, processes: Path = Path("/proc")) -> int:
    """End what was left behind: TERM, then KILL after `seconds`; returns how many there were.

    A PostgreSQL server is left alone unless its data lies below `scratch`: a restored server may well be the
    site's database by now.
    """

    def ours() -> list[int]:
        return [pid for pid in marked(variable, value, processes=processes) if not _is_precious(pid, scratch)]

    left = ours()
    for pid in left:
        logger.warning("process %d was left behind; ending it", pid)
    _signal(left, signal.SIGTERM)
    if not until(lambda: not ours(), seconds):
        _signal(ours(), signal.SIGKILL)
        until(lambda: not ours(), 5)
    return len(left)


def _is_precious(pid: int, scratch: Path) -> bool:
    """Whether this is a PostgreSQL server (its working directory is its data directory) outside `scratch`."""
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name
        directory = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return program == "postgres" and not directory.is_relative_to(scratch.resolve())


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process of this host has this id; a zombie, which only waits to be reaped, has not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def until(condition: Callable[[], bool], seconds: float, *, pause: float = 0.1) -> bool:
    """Look at `condition` until it holds or `seconds` are over; whether it held."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True
