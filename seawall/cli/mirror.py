"""`seawall mirror`: bring the copies of backups in other locations up to date."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.reading import Reading, without_primary
from seawall.errors import Cancelled, Partial, SeawallError, UsageError
from seawall.settings import PRIMARY

if TYPE_CHECKING:
    from seawall.locks import LockReport
    from seawall.mirror import MirrorPlan
    from seawall.repository import Repository
    from seawall.upkeep import Mirrored


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: all that have mirrors)")
    parser.add_argument(
        "--location",
        action="append",
        default=[],
        metavar="NAME",
        help="only there; may be repeated; `primary` is filled from the others",
    )
    parser.add_argument("--begin", action="store_true", help="make an empty location a copy")
    parser.add_argument("--dry-run", action="store_true", help="show what is missing, and copy nothing")


def run(options: argparse.Namespace, context: Context) -> int:
    from seawall import upkeep
    from seawall.storage.immutability import shall_lock

    settings = context.settings
    source = _origin(options, context)
    repository, from_copies = source.repository, PRIMARY not in source.locations
    names = (
        [context.stored_source(options.source)]
        if options.source
        else [one.name for one in settings.sources.values() if one.mirrors]
    )
    if not names and not from_copies and shall_lock(settings.repository, repository.storage):
        names = sorted(settings.sources)
    if not names:
        raise UsageError("no source has mirrors", hint="Name locations in `mirrors` of [sources.NAME].")
    for location in options.location:
        settings.location(location)
    if options.dry_run:
        return _show(names, options.location, context, source)
    with context.catalog_if_any() as catalog, context.ring as ring:
        results = [
            upkeep.mirror_source(
                settings,
                repository,
                name,
                ring,
                catalog,
                only=options.location,
                begin=options.begin,
                from_copies=from_copies,
                actor=context.actor,
                now=context.now(),
                observe=context.observer,
            )
            for name in names
        ]
    value = {"sources": [value_of(result) for result in results]} | source.value
    lines = [line for result in results for line in lines_of(result)]
    failure = upkeep.mirror_failure(results) or source.failure
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _origin(options: argparse.Namespace, context: Context) -> Reading:
    """Where copies are taken: the primary; the other locations where that is gone, or is what shall be filled."""
    if PRIMARY not in options.location:
        return context.reading
    if options.location != [PRIMARY]:
        raise UsageError(
            "the primary location is filled from the others, and they from it",
            hint="First `seawall mirror --location primary`, then the others.",
        )
    found = without_primary(context)
    if found is None:
        raise UsageError(
            "no other location can be read, from which the primary could be filled",
            hint="Name one that holds a copy in [locations.NAME] (docs/how-to/locations.md).",
        )
    return found


def _show(names: list[str], only: list[str], context: Context, source: Reading) -> int:
    from seawall import upkeep

    found, lines, failures = [], [], {}
    for name in names:
        for location in only or upkeep.policy_of(context.settings, name).locations:
            try:
                plan = _missing(name, location, context, source.repository)
            except Cancelled:
                raise
            except SeawallError as error:
                # The others are looked at all the same, as a copy would be made there.
                failures[f"{name} to {location}"] = error
                continue
            count = len({one for group in plan.groups for one in group.names})
            found.append({"source": name, "location": location, "objects": count, "stored_bytes": plan.total_bytes})
            lines.append(f"{name} to {location}: {count} objects are missing, {size(plan.total_bytes)}")
    lines += [line for what, error in failures.items() for line in _failed(what, error)]
    told = {what: error.as_dict() for what, error in failures.items()}
    value = {"missing": found, "failures": told, "dry_run": True} | source.value
    failure = _not_all(failures) or source.failure
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _missing(name: str, location: str, context: Context, here: Repository) -> MirrorPlan:
    from contextlib import closing

    from seawall import locations, mirror, upkeep
    from seawall.repository.evidence import Evidence

    useless = upkeep.unwanted_in(context.settings, here, name, location, context.now())
    with closing(locations.opened(context.settings, location, context.observer)) as storage:
        return mirror.survey(
            here, name, storage, Evidence([here.storage]), unwanted=useless.sets, unwanted_wal=useless.segments
        )


def _not_all(failures: Mapping[str, SeawallError]) -> Partial | None:
    if not failures:
        return None
    said = "; ".join(f"{what}: {error.message}" for what, error in failures.items())
    return Partial(
        f"not every location could be looked at: {said}", hint="`seawall location check` says what is wrong."
    )


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


def _failed(what: str, error: SeawallError) -> list[str]:
    return [f"{what}: {error.message}", *([f"  hint: {error.hint}"] if error.hint else [])]


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
    lines += [line for name, error in result.failures.items() for line in _failed(f"{result.source} to {name}", error)]
    lines += [line for name, report in result.locks.items() if (line := _lock_line(result.source, name, report))]
    lines += [
        f"  {one.label} is not protected: it is in {', '.join(one.locations)} alone" for one in result.unprotected
    ]
    return lines
