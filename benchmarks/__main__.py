"""`python -m benchmarks`: Seawall, pgBackRest and pg_basebackup on one cluster, with ratios.

Same codec (lz4), AES-256 in both (GCM here, CBC there), two workers each. The page cache is warm for everybody:
each command runs once before it is counted, then the tools take turns, so that drift of the machine meets all.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cluster, measure
from benchmarks.measure import Figure
from benchmarks.tools import PgBackRest, PgBaseBackup, Seawall, Tool
from seawall.postgres.binaries import Account, find

VERBS = ("backup", "verify-hashes", "verify", "restore")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the cluster (default: 3)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each command (default: 3)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    # Everything lies on one file system; the server's account must reach it.
    work = Path(tempfile.mkdtemp(prefix="seawall-bench-", dir=options.work))
    work.chmod(0o755)
    try:
        figures = compare(work, options.gigabytes, options.runs)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def compare(work: Path, gigabytes: float, runs: int) -> dict[str, object]:
    account, binaries = Account.for_servers(), find(15)
    print(f"{platform.processor() or platform.machine()}, {gigabytes} GB, PostgreSQL {binaries.version}, {runs} runs")
    with cluster.running(work, binaries, account, gigabytes) as instance:
        tools: list[Tool] = [
            Seawall(work, instance, account),
            PgBackRest(work, instance, account),
            PgBaseBackup(work, instance, account),
        ]
        tools = [tool for tool in tools if tool.is_installed()]
        results: dict[str, dict[str, Figure]] = {tool.name: {} for tool in tools}
        sizes: dict[str, int] = {}
        for tool in tools:
            tool.prepare()
        try:
            for verb in VERBS:
                _take_turns(tools, verb, runs, results, sizes)
            wal = cluster.wal_figures(tools[0], instance)
        finally:
            for tool in tools:
                tool.end()
    _print(results, sizes, wal)
    return {
        "verbs": {name: {verb: vars_of(figure) for verb, figure in verbs.items()} for name, verbs in results.items()},
        "stored_bytes": sizes,
        "wal": wal,
    }


def vars_of(figure: Figure) -> dict[str, float]:
    return {"wall": figure.wall_seconds, "cpu": figure.cpu_seconds, "peak_bytes": figure.peak_bytes}


def _take_turns(
    tools: list[Tool], verb: str, runs: int, results: dict[str, dict[str, Figure]], sizes: dict[str, int]
) -> None:
    able = [tool for tool in tools if tool.command(verb) is not None]
    counted: dict[str, list[tuple[float, float, int]]] = {tool.name: [] for tool in able}
    for number in range(runs + 1):
        for tool in able:
            result = tool.run(verb)
            if number:
                counted[tool.name].append(result)
            if verb == "backup":
                sizes[tool.name] = tool.stored_bytes()
            print(f"  {verb} {tool.name}: {result[0]:.2f} s", file=sys.stderr)
    for tool in able:
        results[tool.name][verb] = measure.figure(counted[tool.name])


def _print(results: dict[str, dict[str, Figure]], sizes: dict[str, int], wal: dict[str, float]) -> None:
    base = results.get("pgBackRest", {})
    print(f"\n{'':<16}{'':<16}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'stored MB':>11}{'vs pgBackRest':>15}")
    for verb in VERBS:
        for name, verbs in results.items():
            if verb not in verbs:
                continue
            found = verbs[verb]
            ratio = f"{found.wall_seconds / base[verb].wall_seconds:.2f}" if verb in base else "-"
            stored = f"{sizes[name] / 1e6:.0f}" if verb == "backup" else ""
            print(
                f"{verb:<16}{name:<16}{found.wall_seconds:>9.2f}{found.cpu_seconds:>9.2f}"
                f"{found.peak_bytes / 1e6:>9.0f}{stored:>11}{ratio:>15}"
            )
    for what, value in wal.items():
        print(f"{what:<48}{value:>10.1f}")


if __name__ == "__main__":
    begin = time.monotonic()
    try:
        code = main()
    except (measure.CommandFailed, subprocess.SubprocessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        code = 1
    print(f"took {time.monotonic() - begin:.0f} s", file=sys.stderr)
    sys.exit(code)
