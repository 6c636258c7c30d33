"""`seawall expire --simulate`: what the policy of a source leaves in the storage over years."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import fmean

from seawall.cli.console import size
from seawall.cli.context import Context
from seawall.errors import UsageError
from seawall.model import BackupKind, Head
from seawall.repository import SourceArea
from seawall.retention.policy import RetentionPolicy
from seawall.retention.simulate import Schedule, Simulation, simulate

# So many of the newest backups of a kind say how large the next one is.
_RECENT = 10
_MOST_HOURS = 8784


def arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("simulation")
    group.add_argument("--simulate", type=int, metavar="YEARS", help="play the policy forward and change nothing")
    group.add_argument("--full-hours", type=int, default=24, metavar="N", help="a full backup every N hours")
    group.add_argument("--incremental-hours", type=int, default=0, metavar="N", help="an incremental every N hours")
    group.add_argument("--growth", type=float, default=0.0, metavar="PERCENT", help="by which all grows in a year")


def show(options: argparse.Namespace, context: Context, source: str, policy: RetentionPolicy) -> None:
    """Simulate one source's policy with the sizes of its own backups, and print each year's end."""
    now = context.now().replace(minute=0, second=0, microsecond=0)
    schedule = schedule_of(options, context.repository.source(source), now)
    course = simulate(policy, schedule, years=options.simulate, start=now)
    value = {
        "source": source,
        "years": [
            {"at": year.at, "backups": year.backups, "fulls": year.fulls, "stored_bytes": year.stored_bytes}
            for year in course.years
        ],
        "peak_bytes": course.peak_bytes,
        "peak_at": course.peak_at,
    }
    context.console.result({"simulation": value}, _lines(context, schedule, course))


def schedule_of(options: argparse.Namespace, area: SourceArea, now: datetime) -> Schedule:
    """What was asked for, with sizes as the repository has them; a kind that it has none of counts as nothing."""
    if max(options.full_hours, options.incremental_hours) > _MOST_HOURS:
        raise UsageError(f"--full-hours and --incremental-hours are at most {_MOST_HOURS}, a year")
    heads, _ = area.readable_heads()
    spans = [now - head.stopped_at for head in heads[:1]]
    days = max((span / timedelta(days=1) for span in spans), default=0.0)
    return Schedule(
        full_every=timedelta(hours=options.full_hours),
        incremental_every=timedelta(hours=options.incremental_hours),
        full_bytes=_usual(heads, BackupKind.FULL),
        incremental_bytes=_usual(heads, BackupKind.INCREMENTAL),
        # In less than a day nothing can be said of a day.
        wal_bytes_per_day=round(area.wal.stored_bytes() / days) if days >= 1 else 0,
        growth_per_year=1 + options.growth / 100,
    )


def _usual(heads: Sequence[Head], kind: BackupKind) -> int:
    sizes = [head.stored_bytes for head in heads if head.kind is kind][-_RECENT:]
    return round(fmean(sizes)) if sizes else 0


def _lines(context: Context, schedule: Schedule, course: Simulation) -> list[str]:
    rows = [
        (f"{year.at:%Y-%m-%d}", str(year.backups), str(year.fulls), size(year.stored_bytes)) for year in course.years
    ]
    each = [size(n) for n in (schedule.full_bytes, schedule.incremental_bytes, schedule.wal_bytes_per_day)]
    return [
        "full backups of {}, incrementals of {}, {} of WAL a day".format(*each),
        *context.console.table(("YEAR UNTIL", "BACKUPS", "FULL", "STORED"), rows),
        f"at most {size(course.peak_bytes)}, on {course.peak_at:%Y-%m-%d}",
    ]
