"""Running a command as a whole process and taking the operating system's own account of it."""

from __future__ import annotations

import os
import resource
import subprocess
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    chosen = {} if account is None or account.is_current else {"user": account.uid, "group": account.gid}
    done = subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **(environment or {})},
        **chosen,  # type: ignore[arg-type] # user and group are keywords of Popen
    )
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise CommandFailed(f"{arguments[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The kernel keeps the largest peak of all children so far: exact for the largest, an upper bound for others.
    return wall, cpu, after.ru_maxrss * 1024


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
