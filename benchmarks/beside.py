"""`python -m benchmarks.beside`: what readers leave to other work on the same processors, by their number and priority.

As many busy processes as processors stand for a database at work. Beside them a process compresses in one thread, in
as many as there are processors, and in as many with a low priority (`nice`); once more each without the others. What
each side got is told in CPU seconds per second, which other work on the machine disturbs less than times on the wall.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from seawall import processors

_TICKS = os.sysconf("SC_CLK_TCK")
_LOAD = "while True: pass"
_READERS = """
import os, sys, threading, zlib
block = os.urandom(1 << 19) + bytes(1 << 19)
def work():
    while True:
        zlib.compress(block, 1)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=work).start()
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How readers run: how many, at which priority, and whether anything else wants the processors."""

    readers: int
    nice: int
    is_loaded: bool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="by turns; medians are told (default: 3)")
    options = parser.parse_args()
    many = processors.available()
    ways = [Way(*way, is_loaded) for is_loaded in (True, False) for way in ((many, 0), (1, 0), (many, 10))]
    found: dict[Way, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            found[way].append(_measured(way, many, options.seconds))
    print(f"{'readers':>8}{'nice':>6}{'busy processes':>16}{'readers got':>13}{'the others got':>16}")
    for way, shares in found.items():
        ours, theirs = (sorted(column)[len(column) // 2] for column in zip(*shares, strict=True))
        print(f"{way.readers:>8}{way.nice:>6}{many if way.is_loaded else 0:>16}{ours:>13.2f}{theirs:>16.2f}")
    return 0


def _measured(way: Way, many: int, seconds: float) -> tuple[float, float]:
    """CPU seconds per second that the readers got, and the others."""
    load = [[sys.executable, "-c", _LOAD]] * (many if way.is_loaded else 0)
    readers = ["nice", "-n", str(way.nice), sys.executable, "-c", _READERS, str(way.readers)]
    with _running([*load, readers]) as pids:
        time.sleep(1)
        before, begin = [_cpu_seconds(pid) for pid in pids], time.monotonic()
        time.sleep(seconds)
        spent = time.monotonic() - begin
        *others, ours = [(_cpu_seconds(pid) - was) / spent for pid, was in zip(pids, before, strict=True)]
    return ours, sum(others)


@contextmanager
def _running(commands: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    processes = [subprocess.Popen(command) for command in commands]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process (proc(5), `/proc/<pid>/stat`, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    sys.exit(main())
