"""What resuming a killed backup saves: `python -m benchmarks.resume [--gigabytes N] [--rate BYTES]`.

In each round a full backup is taken as a whole; another is killed when it has stored a share of as many bundles; the
next one resumes it. Wall-clock and CPU seconds of the whole one and of the resuming one are printed, and what it
stored itself. Everything lies on this host; `--rate` bounds what is written to the repository, as a line would.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cluster, measure
from benchmarks.tools import Seawall
from seawall.postgres.binaries import Account, find

SHARES = (0.25, 0.5, 0.75)


class Resuming(Seawall):
    """Seawall, killed and run again."""

    @property
    def _backups(self) -> Path:
        return self._home / "repository/sources/bench/backups"

    def limit(self, rate: int) -> None:
        """Let no more than so many bytes a second into the repository."""
        file = self._home / "seawall.toml"
        text = file.read_text(encoding="utf-8")
        limited = f"[repository]\nbandwidth_bytes_per_second = {rate}"
        file.write_text(text.replace("[repository]", limited), encoding="utf-8")

    def bundles(self) -> int:
        """How many the newest backup has stored by itself."""
        newest = max(self._backups.iterdir(), default=None)
        return 0 if newest is None else len(list(newest.glob("bundles/[0-9]*")))

    def kill_after(self, count: int) -> None:
        """Begin a backup and kill it when it has stored so many bundles."""
        self.pause()
        before = set(self._backups.iterdir())
        process = subprocess.Popen([str(part) for part in self._seawall("backup", "bench")], cwd="/")
        while set(self._backups.iterdir()) == before or self.bundles() < count:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # What some minutes would do: the leases of the dead run out.
        for path in (self._home / "repository/leases/bench").iterdir():
            os.utime(path, (time.time() - 3600,) * 2)
        with sqlite3.connect(self._home / "catalog.db") as catalog:
            catalog.execute("UPDATE backup_executions SET lease_expires_at = execution_start")

    def own_bytes(self) -> int:
        return measure.stored_bytes(max(self._backups.iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the cluster (default: 1)")
    parser.add_argument("--rate", type=int, default=0, help="bytes per second into the repository (default: no limit)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="seawall-bench-", dir=options.work))
    work.chmod(0o755)
    try:
        compare(work, options.gigabytes, options.rate)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def compare(work: Path, gigabytes: float, rate: int) -> None:
    account = Account.for_servers()
    with cluster.running(work, find(15), account, gigabytes) as instance:
        seawall = Resuming(work, instance, account)
        seawall.prepare()
        if rate:
            seawall.limit(rate)
        try:
            seawall.run("backup")
            for share in SHARES:
                whole = seawall.run("backup")
                stored, count = seawall.own_bytes(), seawall.bundles()
                seawall.kill_after(round(share * count))
                there = seawall.own_bytes()
                seawall.pause()
                resumed = measure.run(seawall.command("backup"))
                _print(share, whole, resumed, stored=stored, there=there, again=seawall.own_bytes())
        finally:
            seawall.end()


def _print(
    share: float,
    whole: tuple[float, float, int],
    resumed: tuple[float, float, int],
    *,
    stored: int,
    there: int,
    again: int,
) -> None:
    print(f"killed after {share:.0%} of the bundles ({there / 1e6:,.0f} of {stored / 1e6:,.0f} MB were there):")
    for name, (wall, cpu, _), size in (("whole", whole, stored), ("resumed", resumed, again)):
        print(f"  {name:<8} {wall:6.2f} s, {cpu:6.2f} CPU s, {size / 1e6:8,.1f} MB stored", flush=True)


if __name__ == "__main__":
    sys.exit(main())
