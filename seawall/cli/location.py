"""`seawall location`: places that hold copies; each is tried before it is saved."""

from __future__ import annotations

import argparse
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.cli.console import size
from seawall.cli.context import Context
from seawall.errors import ClusterMismatch, SettingsError, UsageError, VerificationFailed
from seawall.model import checked_name
from seawall.settings import PRIMARY, LocationRole, Settings, parse
from seawall.storage.local import folder_of

if TYPE_CHECKING:
    from seawall.locations import LocationReport
    from seawall.lockprobe import LockReport

_ROLES = [role.value for role in LocationRole if role is not LocationRole.PRIMARY]


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="try a new location, and add it to the settings file if it works")
    add.add_argument("name", help="1 to 63 characters of a-z, 0-9, - and _")
    add.add_argument("--url", required=True, help="where it is; never with a secret in it")
    add.add_argument(
        "--role",
        choices=_ROLES,
        default=LocationRole.OFFSITE.value,
        help=f"what it is for (default: {LocationRole.OFFSITE.value})",
    )
    add.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting that [repository] has"
    )
    check = commands.add_parser("check", help="write, read back and delete a probe in a location, or in all")
    check.add_argument("name", nargs="?", help="which (default: all)")
    check.add_argument("--measure", action="store_true", help="count now and wholly what lies there")
    probe = commands.add_parser(
        "probe", help="attack a locked object in a location, or in all, to prove that locks hold"
    )
    probe.add_argument("name", nargs="?", help="which (default: all)")
    commands.add_parser("list", help="show all locations, and what the catalog knows of them")
    cost = commands.add_parser("cost", help="estimate what locations cost in a month, by your own price table")
    cost.add_argument("name", nargs="?", help="which (default: all)")
    cost.add_argument("--months", type=int, default=12, help="how far to look ahead (default: 12)")
    commands.add_parser("prices", help="print an example of a price file, to fill in")
    rules = commands.add_parser("lifecycle", help="print the lifecycle rules that a location's bucket should have")
    rules.add_argument("name", help="which location")
    rules.add_argument("--against", type=Path, metavar="FILE", help="compare with what the vendor's own tool printed")
    rules.add_argument("--apply", action="store_true", help="give them to the bucket, and keep its other rules")
    rules.add_argument("--dry-run", action="store_true", help="with --apply: print what the bucket would get")
    remove = commands.add_parser("remove", help="take a location out of the settings file; what lies there stays")
    remove.add_argument("name", help="which; `seawall location list` shows them")


def run(options: argparse.Namespace, context: Context) -> int:
    return _VERBS[options.action](options, context)


def _add(options: argparse.Namespace, context: Context) -> int:
    from contextlib import closing

    from seawall import locations, mirror, watch
    from seawall.cli.recorded import told

    name, file = checked_name(options.name, what="location name"), _file(context)
    if name in context.settings.locations or name == PRIMARY:
        raise UsageError(f"there is a location {name!r} already", hint="`seawall location list` shows all.")
    text = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + "\n".join(_section(name, options)) + "\n"
    wanted = parse(tomllib.loads(text), origin=str(file))
    location = wanted.location(name)
    _refuse_absent(location.storage.url)
    report = locations.check(location, context.settings, context.observer)
    _refuse(report, context)
    locations.refuse_same(wanted, name, context.observer)
    # From now on it is known as a copy; without that, an unmounted disk could not be told from a new one.
    with closing(locations.opened(wanted, name, context.observer)) as storage:
        mirror.begin(context.repository, storage)
    # Only what works is saved.
    _save(file, text)
    record = told(context, f"location {name}", lambda _: _keep(context, report))
    note = f'let a source use it: mirrors = ["{name}"] in [sources.NAME] of {file}'
    said = (*report.findings, *watch.role_findings(wanted, name), *watch.lock_findings(wanted, name, report))
    report = replace(report, findings=said)
    context.console.result({"location": _value(report), **record}, [*_lines(report), note])
    return 0


def _keep(context: Context, report: LocationReport) -> None:
    """Keep what was found; measurements are more than a logbook takes."""
    from seawall import watch
    from seawall.catalog import Catalog

    with Catalog.open(context.settings.catalog.url) as catalog:
        watch.record_health(catalog, report, context.now())


def _refuse(report: LocationReport, context: Context) -> None:
    """Stop at a location that does not work, or that holds something else.

    Raises:
        SeawallError: what was wrong with it; nothing is saved.
    """
    if report.error is not None:
        raise report.error
    if report.repository_id not in ("", context.repository.id):
        raise ClusterMismatch(
            f"{report.url} is repository {report.repository_id}, not a copy of {context.repository.id}",
            hint="Give this repository a place of its own there.",
        )


def _refuse_absent(url: str) -> None:
    """A directory that does not exist is more likely a typing error, or a disk that is not mounted."""
    folder = folder_of(url)
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"there is no directory {folder}", hint="Make it, or mount what belongs there.")


def _section(name: str, options: argparse.Namespace) -> list[str]:
    url = options.url if ":" in options.url else str(Path(options.url).expanduser().absolute())
    lines = [f"[locations.{name}]", f"role = {_text(options.role)}", f"url = {_text(url)}"]
    for pair in options.set:
        key, mark, value = pair.partition("=")
        if not mark or not key.isidentifier() or key in ("url", "role", "limits"):
            raise UsageError(f"--set {pair!r} is not KEY=VALUE with a setting of [repository]")
        lines.append(f"{key} = {value if value.isdigit() else _text(value)}")
    return lines


def _text(value: str) -> str:
    """A TOML basic string (TOML 1.0, section "String")."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise SettingsError(f"{value!r} has a control character")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check(options: argparse.Namespace, context: Context) -> int:
    from seawall import watch

    names = [options.name] if options.name else []
    with context.catalog_if_any() as catalog:
        reports = watch.check_locations(
            context.settings,
            catalog,
            names,
            measuring=watch.NOW_WHOLE if options.measure else watch.DAILY,
            now=context.now(),
            observe=context.observer,
        )
    value, lines = (
        {"locations": [_value(report) for report in reports]},
        [line for report in reports for line in _lines(report)],
    )
    failure = next((report.error for report in reports if report.error is not None), None) or _critical(reports)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _critical(reports: Sequence[LocationReport]) -> VerificationFailed | None:
    """The error that stands for findings which cost backups if nobody acts."""
    found = [f"{one.name}: {each.message}" for one in reports for each in one.findings if each.severity == "critical"]
    return VerificationFailed("; ".join(found), hint="Change it now; see docs/how-to/locations.md.") if found else None


def _probe(options: argparse.Namespace, context: Context) -> int:
    from seawall import lockprobe, watch

    names = [options.name] if options.name else []
    with context.catalog_if_any() as catalog:
        reports = watch.probe_locks(context.settings, catalog, names, now=context.now(), observe=context.observer)
    value = {"locations": [_lock_value(report) for report in reports]}
    lines = [f"{report.name}: {report.state.value}; {report.sentence}" for report in reports]
    failure = lockprobe.failure(reports)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _lock_value(report: LockReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "role": report.role.value,
        "url": report.url,
        "state": report.state.value,
        "sentence": report.sentence,
        "breaches": list(report.breaches),
        "canary": report.canary or None,
        "until": report.until,
        "error": report.error.as_dict() if report.error else None,
    }


def _list(_options: argparse.Namespace, context: Context) -> int:
    from seawall.cli import standing

    return standing.show(context)


def _cost(options: argparse.Namespace, context: Context) -> int:
    from seawall.cli import standing

    return standing.cost(context, options.name, options.months)


def _prices(_options: argparse.Namespace, context: Context) -> int:
    from seawall import prices

    context.console.result({"example": prices.example()}, [prices.example().rstrip()])
    return 0


def _lifecycle(options: argparse.Namespace, context: Context) -> int:
    from seawall.cli import lifecycle

    return lifecycle.run(options, context)


def _remove(options: argparse.Namespace, context: Context) -> int:
    from seawall.cli.recorded import told

    settings, file = context.settings, _file(context)
    settings.location(options.name)
    if options.name == PRIMARY:
        raise UsageError("the primary location is the repository itself and stays")
    users = [one.name for one in settings.sources.values() if options.name in one.mirrors]
    if users:
        raise UsageError(
            f"location {options.name} is a mirror of {', '.join(users)}",
            hint=f"Take it out of `mirrors` there first, in {file}.",
        )
    text = _without(file.read_text(encoding="utf-8"), options.name)
    _refuse_other_change(settings, parse(tomllib.loads(text), origin=str(file)), options.name)
    _save(file, text)
    record = told(context, f"the removal of {options.name}", lambda c: c.retire_storage_location(options.name))
    lines = [f"location {options.name} is removed from {file}; what lies there stays there"]
    context.console.result({"removed": options.name, **record}, lines)
    return 0


def _without(text: str, name: str) -> str:
    """The settings without the sections of one location, and everything else as it stands."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        header = line.strip()
        if header.startswith("["):
            section = header.strip("[] \n").partition("#")[0].strip("[] ")
            inside = section in (f"locations.{name}", f"locations.{name}.limits")
        if not inside:
            kept.append(line)
    return "".join(kept)


def _refuse_other_change(before: Settings, after: Settings, name: str) -> None:
    others = {key: value for key, value in before.locations.items() if key != name}
    if dict(after.locations) != others or after.sources != before.sources:
        raise SettingsError(
            f"[locations.{name}] is written in a way that this command does not edit; remove it by hand"
        )


def _file(context: Context) -> Path:
    file = context.settings.file
    if file is None:
        raise SettingsError("there is no settings file to write to")
    return file


def _save(file: Path, text: str) -> None:
    """Whole or not at all, with the owner's permissions."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    shutil.copymode(file, draft)
    draft.replace(file)


def _value(report: LocationReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "role": report.role.value,
        "url": report.url,
        "good": report.good,
        "problem": report.problem,
        "repository": report.repository_id or None,
        "write_seconds": round(report.write_seconds, 4),
        "read_seconds": round(report.read_seconds, 4),
        "delete_seconds": round(report.delete_seconds, 4),
        "locks": report.locks,
        "capabilities": None if report.capabilities is None else asdict(report.capabilities),
        "can_delete": None if report.error else not report.kept,
        "free_bytes": report.free_bytes,
        "used_bytes": None if report.usage is None else report.usage.used_bytes,
        "measured_at": None if report.usage is None else report.usage.measured_at,
        "findings": [asdict(finding) for finding in report.findings],
    }


def _lines(report: LocationReport) -> list[str]:
    return [_line(report), *(f"  {finding.severity}: {finding.message}" for finding in report.findings)]


def _line(report: LocationReport) -> str:
    if not report.good:
        return f"{report.name}: {report.problem}"
    times = f"write {1000 * report.write_seconds:.0f} ms, read {1000 * report.read_seconds:.0f} ms"
    free = "" if report.free_bytes is None else f", {size(report.free_bytes)} free"
    used = "" if report.usage is None else f", {size(report.usage.used_bytes)} used"
    what = f"repository {report.repository_id}" if report.repository_id else "empty so far"
    missing = (
        [] if report.capabilities is None else [one for one in report.capabilities.without if one != "object lock"]
    )
    locks = "locks objects" if report.locks else "locks nothing"
    locks += f"; without {', '.join(missing)}" if missing else ""
    kept = f"; cannot delete, as wanted where another account cleans up ({report.kept})" if report.kept else ""
    return f"{report.name}: good; {report.role.value}; {times}{used}{free}; {locks}{kept}; {what}"


_VERBS = {
    "add": _add,
    "check": _check,
    "cost": _cost,
    "lifecycle": _lifecycle,
    "list": _list,
    "prices": _prices,
    "probe": _probe,
    "remove": _remove,
}
