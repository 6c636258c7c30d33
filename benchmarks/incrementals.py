"""`python -m benchmarks.incrementals`: incremental backups of Seawall and pgBackRest on one cluster, in the same run.

Each round changes 4,000 rows all over the tables and checkpoints; then the tools take turns with their incremental.
So both see the same changes, and both build a chain of the same length. What follows measures an incremental where
nothing changed, and the restore of the whole chain against the restore of the full backup that it rests on.

pgBackRest is measured twice: as Debian has it, which stores every file that changed whole, and with its block
incrementals (`repo-block`, which pgBackRest 2.45 has as a beta).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import cluster, measure
from benchmarks.measure import Figure
from benchmarks.tools import PgBackRest, Seawall
from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance

ROUNDS = 5
ROWS = 4000
_TABLES = (("entries", "amount = amount + 1"), ("documents", "id = -id"), ("pictures", "id = -id"))

Result = tuple[float, float, int]


class SeawallChain(Seawall):
    """Seawall with `--kind`."""

    def take(self, kind: str) -> Result:
        word = {"full": "full", "incr": "incremental"}[kind]
        self.pause()
        return measure.run(self._seawall("backup", "bench", "--kind", word))

    def labels(self) -> list[str]:
        return sorted(path.name for path in (self._home / "repository/sources/bench/backups").iterdir())

    def restore(self, label: str) -> Result:
        target = self.work / "restored-seawall"
        shutil.rmtree(target, ignore_errors=True)
        return measure.run(
            self._seawall("restore", "bench", "--into", target, "--no-start", "--immediate", "--label", label)
        )

    def size(self, label: str) -> int:
        return measure.stored_bytes(self._home / "repository/sources/bench/backups" / label)


class PgBackRestChain(PgBackRest):
    """pgBackRest with `--type`; `block` turns its block incrementals on."""

    def __init__(self, work: Path, instance: Instance, account: Account, *, block: bool) -> None:
        super().__init__(work, instance, account)
        self.name = "pgBackRest block" if block else "pgBackRest"
        self._work = work / ("pgbackrest-block" if block else "pgbackrest")
        self._block = block

    def prepare(self) -> None:
        self.more = "beta=y\nrepo1-block=y\n" if self._block else ""
        super().prepare()

    def take(self, kind: str) -> Result:
        return self._measured(f"--type={kind}", "backup")

    def labels(self) -> list[str]:
        found = (self._work / "repo/backup/bench").iterdir()
        return sorted(path.name for path in found if path.name[0].isdigit())

    def restore(self, label: str) -> Result:
        target = self._work / "restored"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700)
        self._account.own(target)
        return self._measured(f"--pg1-path={target}", "--type=immediate", f"--set={label}", "restore")

    def size(self, label: str) -> int:
        return measure.stored_bytes(self._work / "repo/backup/bench" / label)


Chain = SeawallChain | PgBackRestChain


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incrementals", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the cluster (default: 3)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="seawall-bench-", dir=options.work))
    work.chmod(0o755)
    try:
        figures = compare(work, options.gigabytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def compare(work: Path, gigabytes: float) -> dict[str, object]:
    account, binaries = Account.for_servers(), find(15)
    with cluster.running(work, binaries, account, gigabytes) as instance:
        tools: list[Chain] = [SeawallChain(work, instance, account)]
        rivals = [PgBackRestChain(work, instance, account, block=block) for block in (False, True)]
        tools += [tool for tool in rivals if tool.is_installed()]
        for tool in tools:
            tool.prepare()
        try:
            results, sizes = _chains(tools, instance)
        finally:
            for tool in tools:
                tool.end()
    _print(
        {name: {verb: measure.figure(runs) for verb, runs in found.items()} for name, found in results.items()}, sizes
    )
    return {"seconds": {name: dict(found) for name, found in results.items()}, "stored_bytes": sizes}


def _chains(
    tools: Sequence[Chain], instance: Instance
) -> tuple[dict[str, dict[str, list[Result]]], dict[str, dict[str, float]]]:
    results: dict[str, dict[str, list[Result]]] = {tool.name: defaultdict(list) for tool in tools}
    sizes: dict[str, dict[str, float]] = {tool.name: {} for tool in tools}

    def measured(tool: Chain, verb: str, result: Result) -> None:
        results[tool.name][verb].append(result)
        print(f"  {verb} {tool.name}: {result[0]:.2f} s", file=sys.stderr)

    for tool in tools:
        measured(tool, "full", tool.take("full"))
    for number in range(ROUNDS):
        change_rows(instance, number)
        for tool in tools:
            measured(tool, "rows", tool.take("incr"))
    for tool in tools:
        full, *chain = tool.labels()
        sizes[tool.name] = {"full": tool.size(full), "rows": sum(map(tool.size, chain)) / len(chain)}
        _restores(tool, full, chain[-1], measured)
    for _ in range(3):
        for tool in tools:
            measured(tool, "nothing", tool.take("incr"))
    for tool in tools:
        sizes[tool.name]["nothing"] = tool.size(tool.labels()[-1])
    return results, sizes


def _restores(tool: Chain, full: str, last: str, measured: Callable[[Chain, str, Result], None]) -> None:
    for number in range(4):
        for verb, label in (("restore full", full), ("restore chain", last)):
            result = tool.restore(label)
            # The first of each warms up.
            if number:
                measured(tool, verb, result)


def change_rows(instance: Instance, number: int) -> None:
    """Change rows that lie evenly all over the tables, other ones in each round."""
    with instance.connect() as session:
        for table, change in _TABLES:
            row = session.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
            step = max(1, int(row[0]) // (ROWS // len(_TABLES))) if row else 1
            numbered = f"SELECT ctid, row_number() OVER () AS n FROM {table}"
            chosen = f"SELECT ctid FROM ({numbered}) AS t WHERE n % {step} = {number}"
            session.execute(f"UPDATE {table} SET {change} WHERE ctid = ANY (ARRAY({chosen}))".encode())
        session.execute("CHECKPOINT")


def _print(results: dict[str, dict[str, Figure]], sizes: dict[str, dict[str, float]]) -> None:
    print(f"\n{'':<16}{'':<18}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'stored MB':>11}{'time':>8}{'stored':>8}")
    for verb in ("full", "nothing", "rows", "restore full", "restore chain"):
        for name, found in results.items():
            figure, base = found[verb], results.get("pgBackRest", {}).get(verb)
            size, base_size = sizes[name].get(verb), sizes.get("pgBackRest", {}).get(verb)
            print(
                f"{verb:<16}{name:<18}{figure.wall_seconds:>9.2f}{figure.cpu_seconds:>9.2f}"
                f"{figure.peak_bytes / 1e6:>9.0f}"
                f"{'' if size is None else f'{size / 1e6:.2f}':>11}"
                f"{f'{figure.wall_seconds / base.wall_seconds:.2f}' if base else '':>8}"
                f"{f'{size / base_size:.2f}' if size and base_size else '':>8}"
            )
    for name, found in results.items():
        ratio = found["restore chain"].wall_seconds / found["restore full"].wall_seconds
        print(f"{name}: a chain of {ROUNDS + 1} restores in {ratio:.2f} of the time of its full backup")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
