"""`python -m benchmarks.throttle`: how near to its limit a backup is read, and how it follows a change while it runs.

Each case takes a full backup of a real server and looks at how many plain bytes passed from second to second. The rate
is that between a tenth and nine tenths of what passed; for a change, the two halves are looked at apart.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import cluster
from benchmarks.tools import Seawall
from seawall import backup, throttle
from seawall.events import Advanced, Event, Observer
from seawall.postgres.binaries import Account, find
from seawall.repository import Repository, sealing_of
from seawall.settings import load
from seawall.storage import open_storage

MB = 1_000_000
_WINDOW = "\n[[sources.bench.limits]]\nbytes_per_second = {}\n"
_STORAGE = "\n[[repository.limits]]\nbytes_per_second = {}\n"

Samples = list[tuple[float, int, int]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throttle", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the cluster (default: 0.5)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="seawall-throttle-", dir=options.work))
    work.chmod(0o755)
    account = Account.for_servers()
    try:
        with cluster.running(work, find(15), account, options.gigabytes) as instance:
            tool = Seawall(work, instance, account)
            tool.prepare()
            try:
                _cases(work / "seawall" / "seawall.toml")
            finally:
                tool.end()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _cases(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    stream = text.replace('mode = "direct"', 'mode = "stream"')
    print(f"{'':<44}{'set':>8}{'measured':>10}{'off':>8}   MB/s")
    for name, content, column in (
        ("direct, a window of the source", text + _WINDOW.format(40 * MB), 1),
        ("stream, a window of the source", stream + _WINDOW.format(40 * MB), 1),
        ("direct, a window of the repository (stored)", text + _STORAGE.format(10 * MB), 2),
    ):
        set_rate = 10 * MB if column == 2 else 40 * MB
        samples = _taken(file, content)
        _line(name, set_rate, _rate(samples, column, 0.1, 0.9))
    samples = _taken(file, text + _WINDOW.format(20 * MB), changed=(10.0, text + _WINDOW.format(60 * MB)))
    before = [sample for sample in samples if sample[0] < 10]
    after = [sample for sample in samples if sample[0] > 12]
    _line("direct, before the settings were changed", 20 * MB, _rate(before, 1, 0.1, 1.0))
    _line("direct, from two seconds after", 60 * MB, _rate(after, 1, 0.0, 0.9))


def _taken(file: Path, content: str, *, changed: tuple[float, str] | None = None) -> Samples:
    """Seconds, plain and stored bytes so far, at each step of one backup under these settings."""
    file.write_text(content, encoding="utf-8")
    settings = load(file, {})
    begin, samples, pending = time.monotonic(), Samples(), [changed] if changed else []
    totals = [0, 0]

    def hear(event: Event) -> None:
        if isinstance(event, Advanced) and event.step == "copy":
            totals[0] += event.plain_bytes
            totals[1] += event.stored_bytes
            if not samples:
                hear_from[0] = time.monotonic()
            seconds = time.monotonic() - hear_from[0]
            samples.append((seconds, *totals))
            if pending and seconds >= pending[0][0]:
                file.write_text(pending.pop()[1], encoding="utf-8")

    hear_from = [begin]
    storage = open_storage(settings.repository, bucket=throttle.location_bucket(settings))
    backup.take(
        settings.source("bench"),
        Repository.open(storage),
        sealing_of(settings.sealing),
        pace=throttle.source_bucket(settings, "bench"),
        now=datetime.now(UTC),
        observe=Observer(hear=hear),
    )
    storage.close()
    return samples


def _rate(samples: Samples, column: int, begin: float, end: float) -> float:
    """Bytes per second between two shares of all that passed in these samples."""
    first, last = samples[0][column], samples[-1][column]

    def at(share: float) -> tuple[float, int, int]:
        return next(sample for sample in samples if sample[column] >= first + share * (last - first))

    one, other = at(begin), at(end)
    return (other[column] - one[column]) / (other[0] - one[0])


def _line(name: str, wanted: float, measured: float) -> None:
    print(f"{name:<44}{wanted / MB:>8.1f}{measured / MB:>10.1f}{measured / wanted - 1:>+8.1%}")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
