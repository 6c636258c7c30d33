"""`seawall wal`: receive, ship and prove write-ahead log."""

from __future__ import annotations

import argparse
from pathlib import Path

from seawall.cli.console import size
from seawall.cli.context import Context
from seawall.cli.reading import answer
from seawall.errors import ClusterError, WalGap
from seawall.settings import SourceSettings


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument(
        "action",
        choices=("receive", "agent", "switch", "status", "command"),
        help="receive: stream on a slot; agent: serve archive_command and restore_command; switch: close the open "
        "segment and see it stored; status: prove continuity; command: print archive_command",
    )
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("--no-create-slot", action="store_true", help="receive: do not make the slot")
    parser.add_argument("--accept-gap", action="store_true", help="receive: go on behind WAL that is lost")
    parser.add_argument("--tail-seconds", type=float, default=5.0, help="receive: how old the open segment may get")


def run(options: argparse.Namespace, context: Context) -> int:
    if options.action == "status":
        return _status(options, context)
    {"receive": _receive, "agent": _agent, "switch": _switch, "command": _command}[options.action](options, context)
    return 0


def _receive(options: argparse.Namespace, context: Context) -> None:
    from seawall.archive.receiver import Receiver

    source = context.source(options.source)
    receiver = Receiver(
        source,
        context.repository.source(source.name),
        context.sealing,
        context.settings.spool(source.name),
        observe=context.observer,
        tail_seconds=options.tail_seconds,
        create_slot=not options.no_create_slot,
        accept_gap=options.accept_gap,
    )
    context.console.note(f"receiving WAL of {source.name} on slot {source.slot_name}; Ctrl-C ends it")
    receiver.run()
    context.console.result({"source": source.name, "stopped": True}, ["stopped; everything received is durable"])


def _agent(options: argparse.Namespace, context: Context) -> None:
    from seawall.archive.agent import Agent

    source = context.source(options.source)
    directory = _data_directory(source, context)
    socket_path = context.agent_socket(source.name)
    socket_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    agent = Agent(
        context.repository.source(source.name),
        context.sealing,
        context.ring,
        context.settings.spool(source.name),
        socket_path,
        observe=context.observer,
        data_directory=directory,
    )
    context.console.note(f"serving WAL commands of {source.name} at {socket_path}; Ctrl-C ends it")
    agent.run_forever()
    context.console.result({"source": source.name, "stopped": True}, ["stopped"])


def _data_directory(source: SourceSettings, context: Context) -> Path | None:
    """The cluster's directory, where it is at hand: an agent that serves a restore may have outlived the server."""
    from seawall.postgres.inspect import inspect

    if source.data_directory is not None:
        return source.data_directory
    try:
        found = Path(inspect(source).data_directory)
    except ClusterError as error:
        context.console.note(f"the server does not answer, so nothing is looked ahead: {error.message}")
        return None
    return found if found.is_dir() else None


def _command(options: argparse.Namespace, context: Context) -> None:
    from seawall.archive.commands import archive_command

    source = context.source(options.source)
    line = archive_command(context.agent_socket(source.name))
    context.console.result({"archive_command": line}, [line])


def _switch(options: argparse.Namespace, context: Context) -> None:
    from seawall.archive.arrival import wait_for
    from seawall.archive.continuity import switch_wal
    from seawall.postgres.connect import connect, translated

    source = context.source(options.source)
    with connect(source) as session, translated(source.name):
        segment = switch_wal(session)
    wait_for(source, context.repository.source(source.name), [segment], observe=context.observer)
    context.console.result({"segment": segment.name}, [f"{segment.name} is stored"])


def _status(options: argparse.Namespace, context: Context) -> int:
    from seawall.archive.continuity import windows
    from seawall.retention import policy_for, promised

    area = context.reading.repository.source(context.stored_source(options.source))
    heads, _ = area.readable_heads()
    found = windows(area.wal, heads)
    if area.name in context.settings.sources:
        found = promised(found, heads, policy_for(context.settings, area.name).window, context.now())
    value = [
        {
            "label": window.label,
            "timeline": window.timeline,
            "since": str(window.since),
            "until": str(window.until),
            "gap": window.gap.name if window.gap else None,
        }
        for window in found
    ]
    lines = [
        f"{w.label}  timeline {w.timeline}  from {w.since} to {w.until}" + (f"  GAP at {w.gap.name}" if w.gap else "")
        for w in found
    ]
    lines.append(f"{size(area.wal.stored_bytes())} of WAL stored")
    gaps = [window for window in found if window.gap is not None]
    missing = "; ".join(f"{w.gap.name} is missing after backup {w.label}" for w in gaps if w.gap)
    return answer(context, {"windows": value}, lines, WalGap(missing) if gaps else None)
