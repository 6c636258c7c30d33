"""`seawall restore`: restore a cluster, to a point in time if asked."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.errors import TargetUnreachable, UsageError
from seawall.model import BackupLabel, RecoveryTarget, TargetAction, TargetKind
from seawall.wal import Lsn

if TYPE_CHECKING:
    from seawall.catalog import Logbook
    from seawall.catalog.recording import RecoveryRecord
    from seawall.events import Observer
    from seawall.postgres.recovery import Reached
    from seawall.restore import RestorePlan, RestoreReport


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", help="a source's name; it need not be configured here")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="the data directory to make")
    target_arguments(parser)
    parser.add_argument("--delta", action="store_true", help="repair DIR: keep what is right, remove what is not")
    parser.add_argument("--tablespace", action="append", default=[], metavar="OLD=NEW", help="where one goes")
    parser.add_argument(
        "--target-action",
        choices=[action.value for action in TargetAction],
        default=TargetAction.PROMOTE.value,
        help="at the target: promote (default); pause for a look, until somebody resumes; shut down unpromoted",
    )
    parser.add_argument(
        "--port", type=port, default=0, metavar="PORT", help="leave a server running there (default: stopped)"
    )
    parser.add_argument("--no-start", action="store_true", help="lay files down only; you start and recover")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="parallel writers (default: 2)")
    parser.add_argument("--bin-directory", type=Path, help="where postgres of the right version lies")
    parser.add_argument(
        "--no-heal", action="store_true", help="leave what is found damaged in a location as it is, read past it only"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def target_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say where recovery stops; shared with `restore-test`."""
    group = parser.add_argument_group("where to stop (default: the latest WAL)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--to", metavar="TIME", help="a time with its offset: 2026-11-23T14:05:00+01:00")
    one.add_argument("--to-lsn", metavar="LSN", help="a position in WAL, such as 16/B374D848")
    one.add_argument("--to-xid", metavar="XID", help="the transaction of that id")
    one.add_argument("--to-name", metavar="NAME", help="a named restore point")
    one.add_argument("--immediate", action="store_true", help="as soon as the backup is consistent")
    group.add_argument("--exclusive", action="store_true", help="stop just before the target, not after it")
    group.add_argument("--timeline", default="latest", help="a number, latest, or current")
    group.add_argument("--label", help="this backup and no other")


def port(text: str) -> int:
    """A TCP port; 0 for none.

    Raises:
        UsageError: it is none.
    """
    if not (text.isdigit() and int(text) < 1 << 16):
        raise UsageError(f"--port {text!r} is no port", hint="A port is a number from 1 to 65535.")
    return int(text)


def target_of(options: argparse.Namespace) -> RecoveryTarget:
    """The target that was asked for.

    Raises:
        TargetUnreachable: a value is malformed.
    """
    inclusive, timeline = not options.exclusive, options.timeline
    if options.to:
        return RecoveryTarget.at_time(options.to, inclusive=inclusive, timeline=timeline)
    if options.to_lsn:
        try:
            value = str(Lsn.parse(options.to_lsn))
        except ValueError as error:
            raise TargetUnreachable(str(error), hint="An LSN looks like 16/B374D848.") from error
        return RecoveryTarget(TargetKind.LSN, value, inclusive, timeline)
    if options.to_xid:
        if not options.to_xid.isdigit():
            raise TargetUnreachable(f"{options.to_xid!r} is no transaction id", hint="It is a whole number.")
        return RecoveryTarget(TargetKind.XID, options.to_xid, inclusive, timeline)
    if options.to_name:
        return RecoveryTarget(TargetKind.NAME, options.to_name, True, timeline)
    kind = TargetKind.IMMEDIATE if options.immediate else TargetKind.LATEST
    return RecoveryTarget(kind, "", True, timeline)


def run(options: argparse.Namespace, context: Context) -> None:
    from seawall import restore
    from seawall.catalog.facts import report_facts
    from seawall.catalog.recording import Result
    from seawall.cli.recorded import recorded
    from seawall.postgres.binaries import Account, find

    plan = restore.plan(
        context.copies,
        options.source,
        target_of(options),
        options.into.expanduser().absolute(),
        label=BackupLabel.parse(options.label) if options.label else None,
        delta=options.delta,
        tablespaces=_tablespaces(options.tablespace),
        action=TargetAction(options.target_action),
        now=context.now(),
        rto=timedelta(hours=context.settings.server.rto_hours),
        ring=lambda: context.ring,
    )
    if options.dry_run:
        context.console.result({"plan": plan_value(plan), "dry_run": True}, plan_lines(plan))
        return
    for line in plan_lines(plan):
        context.console.note(line)
    binaries = find(plan.head.cluster.major_version, options.bin_directory)
    account = Account.for_servers(context.settings.server.account)
    with recorded(context, "restore", options.source, lambda catalog: _row(catalog, context, plan)) as record:
        report = restore.run(
            plan,
            context.copies,
            ring=context.ring,
            binaries=binaries,
            account=account,
            actor=context.actor,
            now=context.now(),
            observe=record.observe,
            workers=options.workers,
            port=options.port,
            start=not options.no_start,
            socket_path=context.agent_socket(options.source),
        )
        record.result = Result(report_facts(report))
        mended = {} if options.no_heal else _mended(context, record.observe)
    value = {"plan": plan_value(plan), "report": report_value(report), "healed": mended, **record.value()}
    context.console.result(value, report_lines(report))


def _mended(context: Context, observe: Observer) -> dict[str, list[str]]:
    """What was damaged and is whole again, by location; the notices tell it to people."""
    from seawall.mending import mend

    done = mend(
        context.settings, context.copies.storage, context.ring, actor=context.actor, now=context.now(), observe=observe
    )
    return {location: [one.name for one in report.healed] for location, report in done.items()}


def _row(catalog: Logbook, context: Context, plan: RestorePlan) -> RecoveryRecord:
    from seawall.catalog.recording import RecoveryRecord

    return RecoveryRecord.of(plan, catalog.find_backup_file(context.copies.id, plan.source, plan.head.label))


def _tablespaces(pairs: list[str]) -> dict[str, Path]:
    found = {}
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator or not old.startswith("/") or not new.startswith("/"):
            raise UsageError(f"--tablespace {pair!r} is not OLD=NEW with absolute paths")
        found[old] = Path(new)
    return found


def plan_value(plan: RestorePlan) -> dict[str, Any]:
    return {
        "source": plan.source,
        "label": str(plan.head.label),
        "why": plan.why,
        "target": {"kind": plan.target.kind.value, "value": plan.target.value, "inclusive": plan.target.inclusive},
        "target_action": plan.action.value,
        "timeline": plan.history.timeline,
        "destination": str(plan.destination),
        "delta": plan.delta,
        "plain_bytes": plan.head.plain_bytes,
        "wal": {"first": plan.wal_first, "last_stored": plan.wal_last, "segments": plan.wal_count},
        "tablespaces": [{"oid": oid, "from": old, "to": str(new)} for oid, old, new in plan.tablespaces],
        "estimated_seconds": plan.estimated_seconds,
        "rto_seconds": plan.rto,
        "meets_rto": plan.meets_rto,
        "warnings": list(plan.warnings),
    }


def plan_lines(plan: RestorePlan) -> list[str]:
    where = f"{plan.target.kind.value} {plan.target.value}".strip()
    then = "" if plan.action is TargetAction.PROMOTE else f", then {plan.action.value}"
    lines = [
        f"{plan.source} {plan.head.label} ({plan.why}) to {where} on timeline {plan.history.timeline}{then}",
        f"  {size(plan.head.plain_bytes)} of files into {plan.destination}",
        f"  {plan.wal_count} WAL segments from {plan.wal_first} on; about {span(plan.estimated_seconds)} in all",
    ]
    lines += [f"  tablespace {old} goes to {new}" for _, old, new in plan.tablespaces]
    return lines + [f"  warning: {warning}" for warning in plan.warnings]


def report_value(report: RestoreReport) -> dict[str, Any]:
    reached = report.reached
    return {
        "destination": report.destination,
        "files": report.files,
        "written_bytes": report.written_bytes,
        "reused_bytes": report.reused_bytes,
        "seconds": dict(report.seconds),
        "bytes_per_second": round(report.bytes_per_second),
        "reached": None
        if reached is None
        else {
            "lsn": str(reached.lsn),
            "last_commit_at": reached.last_commit_at,
            "timeline": reached.timeline,
            "outcome": reached.outcome.value,
        },
        "port": report.port,
    }


def report_lines(report: RestoreReport) -> list[str]:
    reused = f", {size(report.reused_bytes)} were right already" if report.reused_bytes else ""
    lines = [
        f"{report.files} files, {size(report.written_bytes)} written at {size(report.bytes_per_second)}/s{reused}",
    ]
    if report.reached is None:
        return [*lines, "recovery is set up; start `seawall wal agent`, then the server"]
    lines.append(
        f"recovered to {report.reached.lsn}, {_last_commit(report.reached)}, "
        f"timeline {report.reached.timeline}; {span(report.seconds['total'])} in all"
    )
    return [*lines, _left(report)]


def _last_commit(reached: Reached) -> str:
    if reached.last_commit_at is not None:
        return f"last commit {reached.last_commit_at.isoformat()}"
    # A server that shut down at its target can no longer be asked; its log says where it stopped.
    return (reached.stopped or "at the target") if reached.outcome.value == "shutdown" else "no commit replayed"


def _left(report: RestoreReport) -> str:
    if report.port:
        return f"the server runs on port {report.port}"
    if report.reached is not None and report.reached.outcome.value == "shutdown":
        return f"shut down at the target, not promoted: {report.destination} (docs/how-to/restore.md says how to go on)"
    return f"stopped and ready: {report.destination}"
