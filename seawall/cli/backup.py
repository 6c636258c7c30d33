"""`seawall backup`: take a backup of a source."""

from __future__ import annotations

import argparse
from typing import Any

from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.listing import summary
from seawall.errors import SeawallError
from seawall.model import BackupKind, Head, Proof
from seawall.settings import SourceSettings


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: the only one)")
    parser.add_argument("--kind", choices=[kind.value for kind in BackupKind], default=BackupKind.FULL.value)
    parser.add_argument("--dry-run", action="store_true", help="show what would be taken, and write nothing")
    parser.add_argument("--verify", action="store_true", help="read it back afterwards")


def run(options: argparse.Namespace, context: Context) -> int:
    source, kind = context.source(options.source), BackupKind(options.kind)
    if options.dry_run:
        _show_plan(context, source, kind)
        return 0
    from seawall import backup

    head = backup.take(
        source, context.repository, context.sealing, kind=kind, now=context.now(), observe=context.observer
    )
    value, lines = {"backup": summary(head)}, [_line(head)]
    if options.verify:
        return _verify(context, head, value, lines)
    context.console.result(value, lines)
    return 0


def _line(head: Head) -> str:
    took = head.ended_at - head.began_at
    rate = head.plain_bytes / max(took.total_seconds(), 0.001)
    line = f"{head.source} {head.label}: {size(head.plain_bytes)} in {head.file_count} files, stored as "
    return line + f"{size(head.stored_bytes)}, {span(took)}, {size(rate)}/s, {head.health.value}"


def _verify(context: Context, head: Head, value: dict[str, Any], lines: list[str]) -> int:
    """The backup exists whatever comes of this, so what was taken is printed also when its proof fails."""
    from seawall.cli import verify

    try:
        verdicts = [verify.prove(context, head.source, head.label, Proof.WAL_CONTINUOUS)]
    except SeawallError as error:
        context.console.failed(error, value, lines)
        return error.exit_code
    value, lines = (
        value | {"verdicts": verify.verdict_values(verdicts)},
        lines + verify.verdict_lines(head.source, verdicts),
    )
    failure = verify.failure_of(head.source, verdicts)
    if failure is None:
        context.console.result(value, lines)
        return 0
    context.console.failed(failure, value, lines)
    return failure.exit_code


def _show_plan(context: Context, source: SourceSettings, kind: BackupKind) -> None:
    from seawall import backup
    from seawall.postgres.inspect import inspect

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
