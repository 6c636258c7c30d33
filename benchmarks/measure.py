"""Running a command as a whole process and taking the operating system's own account of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from seawall.postgres.binaries import Account


class CommandFailed(RuntimeError):
    """A measured command did not succeed, so there is no figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One command over several runs: medians in seconds, the largest peak memory of a single process."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    runs: int


def run(
    arguments: Sequence[str | Path],
    *,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds (children included), and peak memory in bytes of one run.

    Raises:
        CommandFailed: it ended with an error; its output is quoted.
    """
    begin = time.perf_counter()
    chosen = {} if account is None or account.is_current else {"user": account.uid, "group": account.gid}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**_surroundings(), **(environment or {})},
            **chosen,  # type: ignore[call-overload] # user and group are keywords of Popen
        )
        # wait4 tells of this process and those that it waited for, not of everything that ran before.
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            said = output.read()[-1500:].decode(errors="replace")
            raise CommandFailed(f"{arguments[0]} ended with {process.returncode}: {said}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _surroundings() -> dict[str, str]:
    """Our own environment, but an installed program has its bytecode, whatever this shell says."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def figure(results: Sequence[tuple[float, float, int]]) -> Figure:
    """The medians of several runs."""
    return Figure(
        median(wall for wall, _, _ in results),
        median(cpu for _, cpu, _ in results),
        max(peak for _, _, peak in results),
        len(results),
    )


def stored_bytes(directory: Path) -> int:
    """What all files below a directory hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
