"""`seawall mirror`: bring the copies of backups in other locations up to date."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.errors import UsageError

if TYPE_CHECKING:
    from seawall.locks import LockReport
    from seawall.upkeep import Mirrored


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: all that have mirrors)")
    parser.add_argument("--location", action="append", default=[], metavar="NAME", help="only there; may be repeated")
    parser.add_argument("--begin", action="store_true", help="make an empty location a copy")
    parser.add_argument("--dry-run", action="store_true", help="show what is missing, and copy nothing")


def run(options: argparse.Namespace, context: Context) -> int:
    from seawall import upkeep
    from seawall.storage.immutability import shall_lock

    settings = context.settings
    names = (
        [context.stored_source(options.source)]
        if options.source
        else [one.name for one in settings.sources.values() if one.mirrors]
    )
    if not names and shall_lock(settings.repository, context.repository.storage):
        names = sorted(settings.sources)
    if not names:
        raise UsageError("no source has mirrors", hint="Name locations in `mirrors` of [sources.NAME].")
    for location in options.location:
        settings.location(location)
    if options.dry_run:
        return _show(names, options.location, context)
    with context.catalog_if_any() as catalog, context.ring as ring:
        results = [
            upkeep.mirror_source(
                settings,
                context.repository,
                name,
                ring,
                catalog,
                only=options.location,
                begin=options.begin,
                now=context.now(),
                observe=context.observer,
            )
            for name in names
        ]
    value = {"sources": [value_of(result) for result in results]}
    lines = [line for result in results for line in lines_of(result)]
    failure = upkeep.mirror_failure(results)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _show(names: list[str], only: list[str], context: Context) -> int:
    from contextlib import closing

    from seawall import locations, mirror, upkeep
    from seawall.repository.evidence import Evidence

    found, lines = [], []
    for name in names:
        for location in only or upkeep.policy_of(context.settings, name).locations:
            with closing(locations.opened(context.settings, location, context.observer)) as storage:
                plan = mirror.survey(context.repository, name, storage, Evidence([context.repository.storage]))
            count = len({one for group in plan.groups for one in group.names})
            found.append({"source": name, "location": location, "objects": count, "stored_bytes": plan.total_bytes})
            lines.append(f"{name} to {location}: {count} objects are missing, {size(plan.total_bytes)}")
    context.console.result({"missing": found, "dry_run": True}, lines)
    return 0


def value_of(result: Mirrored) -> dict[str, Any]:
    """A source's copies as JSON output shows them."""
    return {
        "source": result.source,
        "locations": {
            name: {
                "objects": report.objects,
                "stored_bytes": report.stored_bytes,
                "took_seconds": report.took,
                "committed": list(report.committed),
                "left": dict(report.left),
            }
            for name, report in result.reports.items()
        },
        "failures": {name: error.as_dict() for name, error in result.failures.items()},
        "locks": {name: asdict(report) for name, report in result.locks.items()},
        "backups": [
            {
                "label": str(one.label),
                "locations": list(one.locations),
                "protected": one.protected,
                "late": list(one.late),
            }
            for one in result.protection
        ],
    }


def _lock_line(source: str, name: str, report: LockReport) -> str:
    if report.problem:
        return f"{source} in {name} is not wholly locked: {report.problem}"
    done = [f"{len(report.secured)} backups locked, at most until {report.until:%Y-%m-%d}"] if report.secured else []
    done += [f"{len(report.held)} under legal holds"] if report.held else []
    done += [f"{len(report.freed)} freed of legal holds"] if report.freed else []
    return f"{source} in {name}: {', '.join(done)}" if done else ""


def lines_of(result: Mirrored) -> list[str]:
    """The same for people."""
    lines = [
        f"{result.source} to {name}: {report.objects} objects, {size(report.stored_bytes)} in {span(report.took)}"
        + (f"; {len(report.left)} left" if report.left else "")
        for name, report in result.reports.items()
    ]
    lines += [f"{result.source} to {name}: {error.message}" for name, error in result.failures.items()]
    lines += [line for name, report in result.locks.items() if (line := _lock_line(result.source, name, report))]
    lines += [
        f"  {one.label} is not protected: it is in {', '.join(one.locations)} alone" for one in result.unprotected
    ]
    return lines
