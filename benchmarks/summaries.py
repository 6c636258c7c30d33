"""`python -m benchmarks.summaries`: incrementals with and without PostgreSQL's WAL summaries, by files and by stream.

One cluster of PostgreSQL 18 and one chain of backups. First the server summarizes its WAL, so that incrementals read
what it says changed; then it does not, and every byte is compared. Before each incremental 4,000 rows change all over
the tables, or nothing does; both kinds take turns between the two modes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import cluster, measure
from benchmarks.incrementals import change_rows
from benchmarks.measure import Figure
from benchmarks.tools import Seawall
from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance

ROUNDS = 3


class SeawallModes(Seawall):
    """One source, backed up in either mode."""

    def take(self, mode: str, kind: str) -> tuple[float, float, int]:
        self.pause()
        text = (self._home / "seawall.toml").read_text(encoding="utf-8").replace('mode = "direct"', f'mode = "{mode}"')
        config = self._home / f"{mode}.toml"
        config.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "seawall", "backup", "bench", "--kind", kind, "--config", config, "--quiet"]
        return measure.run(command)

    def newest_bytes(self) -> int:
        return measure.stored_bytes(max((self._home / "repository/sources/bench/backups").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summaries", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the cluster (default: 3)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="seawall-bench-", dir=options.work))
    work.chmod(0o755)
    try:
        compare(work, options.gigabytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def compare(work: Path, gigabytes: float) -> None:
    account = Account.for_servers()
    with cluster.running(work, find(18), account, gigabytes) as instance:
        seawall = SeawallModes(work, instance, account)
        _summarize(instance, "on")
        seawall.prepare()
        try:
            seawall.take("direct", "full")
            for summaries in ("on", "off"):
                _summarize(instance, summaries)
                _print(summaries, *_rounds(seawall, instance, 0 if summaries == "on" else 100))
        finally:
            seawall.end()


def _rounds(seawall: SeawallModes, instance: Instance, first: int) -> tuple[dict[str, Figure], dict[str, float]]:
    results: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    number = first
    for _ in range(ROUNDS):
        for what in ("rows", "nothing"):
            for mode in ("stream", "direct"):
                if what == "rows":
                    change_rows(instance, number)
                    number += 1
                results[f"{what} {mode}"].append(seawall.take(mode, "incremental"))
                sizes[f"{what} {mode}"].append(seawall.newest_bytes())
    figures = {name: measure.figure(runs) for name, runs in results.items()}
    return figures, {name: sum(found) / len(found) for name, found in sizes.items()}


def _summarize(instance: Instance, value: str) -> None:
    with instance.connect() as session:
        session.execute(f"ALTER SYSTEM SET summarize_wal = {value}".encode())
        session.execute("SELECT pg_reload_conf()")


def _print(summaries: str, figures: dict[str, Figure], sizes: dict[str, float]) -> None:
    print(f"\nsummarize_wal = {summaries:<16}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'stored MB':>11}")
    for name, figure in sorted(figures.items()):
        print(
            f"{name:<32}{figure.wall_seconds:>9.2f}{figure.cpu_seconds:>9.2f}{figure.peak_bytes / 1e6:>9.0f}"
            f"{sizes[name] / 1e6:>11.2f}"
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
