"""`python -m benchmarks.scale`: peak memory and time of backup, verification and restore over very many files.

A real server's data directory gets as many further relation files as asked for, of one page each, so that the manifest
has that many entries. What is measured is Seawall's own command line, each verb as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import cluster, measure
from benchmarks.tools import Seawall
from seawall.postgres.binaries import Account, find

VERBS = ("backup", "verify", "restore")
# Numbers that the server itself will not give out before the run is over.
_FIRST_RELATION = 3_000_000_000
_FILES_IN_A_DATABASE = 250_000
_PAGE = bytes(8192)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--files", type=int, default=200_000, help="how many further relation files (default: 200,000)")
    parser.add_argument("--bytes", type=int, default=8192, help="bytes in each (default: one page)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="seawall-scale-", dir=options.work))
    work.chmod(0o755)
    try:
        figures = measured(work, options.files, options.bytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{'':<14}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}")
    for verb, (wall, cpu, peak) in figures.items():
        print(f"{verb:<14}{wall:>9.1f}{cpu:>9.1f}{peak / 1e6:>9.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def measured(work: Path, files: int, size: int) -> dict[str, tuple[float, float, int]]:
    """Wall seconds, CPU seconds and peak bytes of each verb."""
    account, binaries = Account.for_servers(), find(15)
    with cluster.running(work, binaries, account, 0.01) as instance:
        print(f"making {files:,} files of {size:,} bytes", file=sys.stderr)
        populate(instance.data_directory, files, size, account)
        tool = Seawall(work, instance, account)
        tool.prepare()
        try:
            return {verb: _run(tool, verb) for verb in VERBS}
        finally:
            tool.end()


def _run(tool: Seawall, verb: str) -> tuple[float, float, int]:
    result = tool.run(verb)
    print(f"  {verb}: {result[0]:.1f} s, {result[2] / 1e6:.0f} MB", file=sys.stderr)
    return result


def populate(data: Path, files: int, size: int, account: Account) -> None:
    """Relation files that no catalog knows; the server leaves them alone, a backup must not."""
    content = (_PAGE * (size // len(_PAGE) + 1))[:size]
    for number in range(files):
        if number % _FILES_IN_A_DATABASE == 0:
            database = data / "base" / str(_FIRST_RELATION + number)
            database.mkdir(mode=0o700)
            account.own(database)
        descriptor = os.open(database / str(_FIRST_RELATION + number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, content)
        if not account.is_current:
            os.fchown(descriptor, account.uid, account.gid)
        os.close(descriptor)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.CommandFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
