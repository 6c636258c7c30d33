"""`seawall hold`: keep a backup whatever the policy says, or stop doing so."""

from __future__ import annotations

import argparse
from datetime import datetime

from seawall.audit import AuditLog
from seawall.cli.context import Context
from seawall.cli.reading import answer
from seawall.errors import BackupMissing, UsageError
from seawall.model import BackupLabel
from seawall.repository.area import new_hold_id


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument(
        "action",
        choices=("place", "release", "list"),
        help="place: keep --label, for a --reason; release: let the hold --id go; list: show what is held",
    )
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("--label", help="the backup to hold")
    parser.add_argument("--reason", help="why; it is shown wherever the backup is")
    parser.add_argument("--until", metavar="TIME", help="an end, with its offset; without it the hold has none")
    parser.add_argument(
        "--through-now", action="store_true", help="keep the WAL from the backup up to now too, not only its own"
    )
    parser.add_argument("--id", help="the hold to release")


def run(options: argparse.Namespace, context: Context) -> int:
    if options.action == "list":
        return _list(options, context)
    {"place": _place, "release": _release}[options.action](options, context)
    return 0


def _place(options: argparse.Namespace, context: Context) -> None:
    if not options.label or not (options.reason or "").strip():
        raise UsageError("a hold needs --label and --reason", hint="Somebody will ask why this backup is still there.")
    source, label, now = context.stored_source(options.source), BackupLabel.parse(options.label), context.now()
    area, until = context.repository.source(source), _moment(options.until)
    if until is not None and until <= now:
        raise UsageError(
            f"a hold until {until.isoformat()} is over already, and would keep nothing",
            hint=f"It is {now.isoformat()}.",
        )
    if label not in area.labels(with_expired=True):
        raise BackupMissing(f"{source} has no backup {label}")
    # Later timelines have larger names, so the largest name is the newest segment of the newest timeline.
    through = max(area.wal.names(), default="") if options.through_now else ""
    hold_id = new_hold_id(now)
    # The audit names the hold, so that one which is lost later is missed.
    details = {"id": hold_id, "reason": options.reason, "until": options.until or "no end", "through": through}
    AuditLog(context.repository.storage).append(context.actor, "hold", f"{source} {label}", details, now=now)
    hold = area.place_hold(
        label, reason=options.reason, owner=context.actor, now=now, until=until, through=through, hold_id=hold_id
    )
    context.console.result({"hold": hold.id, "label": str(label)}, [f"{label} is held; the hold's id is {hold.id}"])


def _release(options: argparse.Namespace, context: Context) -> None:
    if not options.id:
        raise UsageError("name the hold with --id", hint="`seawall hold list` shows the ids.")
    source, now = context.stored_source(options.source), context.now()
    is_there = options.id in {hold.id for hold in context.repository.source(source).holds(now)}
    if not is_there and not _is_lost(context, source, options.id, now):
        raise UsageError(f"{source} has no hold {options.id!r}", hint="`seawall hold list` shows the ids.")
    AuditLog(context.repository.storage).append(
        context.actor, "release-hold", f"{source} {options.id}", {"reason": options.reason or ""}, now=now
    )
    if is_there:
        context.repository.source(source).release_hold(options.id, owner=context.actor, now=now)
    context.console.result({"released": options.id}, [f"hold {options.id} is released"])


def _is_lost(context: Context, source: str, hold_id: str, now: datetime) -> bool:
    """Whether only the audit still tells of it; then only the audit can end it."""
    from seawall import traces

    return traces.forgotten_hold(context.repository, source, hold_id, now)


def _list(options: argparse.Namespace, context: Context) -> int:
    source, now = context.stored_source(options.source), context.now()
    holds = context.reading.repository.source(source).holds(now)
    rows = [
        (h.id, str(h.label), h.owner, h.until.isoformat() if h.until else "no end", h.through or "its end", h.reason)
        for h in holds
    ]
    columns = ("ID", "LABEL", "OWNER", "UNTIL", "WAL THROUGH", "REASON")
    lines = context.console.table(columns, rows) if rows else ["no holds"]
    value = [
        {
            "id": h.id,
            "label": str(h.label),
            "owner": h.owner,
            "reason": h.reason,
            "placed_at": h.placed_at,
            "until": h.until,
            "through": h.through,
        }
        for h in holds
    ]
    return answer(context, {"holds": value}, lines)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no time", hint="Write it as 2026-11-23T14:05:00+01:00.") from error
    if moment.tzinfo is None:
        raise UsageError(f"the time {text!r} has no offset from UTC", hint="Add one: Z for UTC, or such as +01:00.")
    return moment
