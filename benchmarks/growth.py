"""`python -m benchmarks.growth`: what an incremental costs as the cluster grows and the change stays the same.

For each size one cluster, one full backup, then rounds in which the same number of rows changes; Seawall and pgBackRest
take turns. What is printed is Markdown, a table and charts, as `docs/benchmarks.md` has them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import cluster, incrementals, measure
from benchmarks.incrementals import Chain, PgBackRestChain, SeawallChain
from seawall.postgres.binaries import Account, find

SIZES = (1.0, 3.0, 10.0)
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """One tool on a cluster of one size: medians over the rounds, without the full backup."""

    tool: str
    gigabytes: float
    full_seconds: float
    wall_seconds: float
    cpu_seconds: float
    stored_bytes: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=SIZES, help="sizes of the clusters (1 3 10)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    points: list[Point] = []
    for gigabytes in options.gigabytes:
        work = Path(tempfile.mkdtemp(prefix="seawall-growth-", dir=options.work))
        work.chmod(0o755)
        try:
            points += measured(work, gigabytes)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(markdown(points))
    if options.json:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n", encoding="utf-8")
    return 0


def measured(work: Path, gigabytes: float) -> list[Point]:
    """Both tools on one cluster, which is gone afterwards."""
    account, binaries = Account.for_servers(), find(15)
    with cluster.running(work, binaries, account, gigabytes) as instance:
        tools: list[Chain] = [SeawallChain(work, instance, account)]
        rival = PgBackRestChain(work, instance, account, block=False)
        tools += [rival] if rival.is_installed() else []
        for tool in tools:
            tool.prepare()
        try:
            full = {tool.name: tool.take("full") for tool in tools}
            rounds: dict[str, list[incrementals.Result]] = {tool.name: [] for tool in tools}
            for number in range(ROUNDS):
                incrementals.change_rows(instance, number)
                for tool in tools:
                    rounds[tool.name].append(tool.take("incr"))
                    print(f"  {gigabytes:g} GB {tool.name}: {rounds[tool.name][-1][0]:.2f} s", file=sys.stderr)
            return [_point(tool, gigabytes, full[tool.name], rounds[tool.name]) for tool in tools]
        finally:
            for tool in tools:
                tool.end()


def _point(tool: Chain, gigabytes: float, full: incrementals.Result, rounds: Sequence[incrementals.Result]) -> Point:
    figure = measure.figure(rounds)
    _, *chain = tool.labels()
    stored = sum(map(tool.size, chain)) / len(chain)
    return Point(tool.name, gigabytes, full[0], figure.wall_seconds, figure.cpu_seconds, stored)


_CHARTS: dict[str, Callable[[Point], float]] = {
    "wall seconds": lambda point: point.wall_seconds,
    "CPU seconds": lambda point: point.cpu_seconds,
    "MB stored": lambda point: point.stored_bytes / 1e6,
}


def markdown(points: Sequence[Point]) -> str:
    """The table, and a chart each of time, processor time and stored bytes."""
    rows = [
        f"| {point.gigabytes:g} GB | {point.tool} | {point.full_seconds:.2f} | {point.wall_seconds:.2f} "
        f"| {point.cpu_seconds:.2f} | {point.stored_bytes / 1e6:,.1f} |"
        for point in sorted(points, key=lambda point: (point.gigabytes, point.tool != "Seawall"))
    ]
    head = ("| cluster | tool | full, wall s | wall s | CPU s | stored MB |", "|---|---|---|---|---|---|")
    sizes = sorted({point.gigabytes for point in points})
    charts = [
        _chart(title, sizes, {tool: [of(point) for point in points if point.tool == tool] for tool in _tools(points)})
        for title, of in _CHARTS.items()
    ]
    return "\n".join((*head, *rows, "", *charts))


def _tools(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.tool for point in points))


def _chart(title: str, sizes: Sequence[float], lines: dict[str, list[float]]) -> str:
    """A Mermaid chart with a line for each tool, in the order that the title names them."""
    most = max(max(values) for values in lines.values())
    named = " and ".join(lines)
    drawn = [f"    line [{', '.join(f'{value:.2f}' for value in values)}]" for values in lines.values()]
    return "\n".join(
        (
            "```mermaid",
            "xychart-beta",
            f'    title "{title} of an incremental: {named}, in this order"',
            f'    x-axis "cluster, GB" [{", ".join(f"{size:g}" for size in sizes)}]',
            f'    y-axis "{title}" 0 --> {most * 1.1:.2f}',
            *drawn,
            "```",
            "",
        )
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
