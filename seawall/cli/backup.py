"""`seawall backup`: take a backup of a source."""

from __future__ import annotations

import argparse

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.listing import summary
from seawall.model import BackupKind


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("--kind", choices=[kind.value for kind in BackupKind], default=BackupKind.FULL.value)
    parser.add_argument("--dry-run", action="store_true", help="show what would be taken, and write nothing")
    parser.add_argument("--verify", action="store_true", help="read it back afterwards")


def run(options: argparse.Namespace, context: Context) -> None:
    from seawall import backup

    source, kind = context.source(options.source), BackupKind(options.kind)
    if options.dry_run:
        _show_plan(context, options.source, kind)
        return
    head = backup.take(
        source, context.repository, context.sealing, kind=kind, now=context.now(), observe=context.observer
    )
    took = head.ended_at - head.began_at
    rate = head.plain_bytes / max(took.total_seconds(), 0.001)
    line = f"{head.source} {head.label}: {size(head.plain_bytes)} in {head.file_count} files, stored as "
    line += f"{size(head.stored_bytes)}, {span(took)}, {size(rate)}/s, {head.health.value}"
    context.console.result({"backup": summary(head)}, [line])
    if options.verify:
        from seawall.cli import verify

        verify.verify_one(context, head.source, head.label)


def _show_plan(context: Context, name: str | None, kind: BackupKind) -> None:
    from seawall import backup
    from seawall.postgres.inspect import inspect

    source = context.source(name)
    cluster = inspect(source)
    chosen = backup.plan(source, context.repository.source(source.name), cluster, kind, now=context.now())
    value = {
        "source": chosen.source,
        "label": str(chosen.label),
        "kind": chosen.kind.value,
        "reason": chosen.reason,
        "mode": chosen.mode.value,
        "workers": chosen.workers,
        "estimated_bytes": cluster.total_bytes,
        "free_bytes": context.repository.storage.free_bytes(),
    }
    lines = [f"would take {chosen.label} of {chosen.source}: about {size(cluster.total_bytes)}, {chosen.mode.value}"]
    context.console.result({"plan": value, "dry_run": True}, lines + ([chosen.reason] if chosen.reason else []))
