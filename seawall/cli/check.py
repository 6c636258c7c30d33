"""`seawall check`: prove archiving, permissions, space, clock and keys, and explain each failure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seawall.cli.context import Context

if TYPE_CHECKING:
    from seawall.health import CheckResult


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: all configured)")
    parser.add_argument(
        "--no-switch", action="store_true", help="do not close the open WAL segment to prove that archiving works"
    )


def run(options: argparse.Namespace, context: Context) -> int:
    from seawall import health

    settings = context.settings
    sources = [settings.source(options.source)] if options.source is not None else list(settings.sources.values())
    with context.ring as ring:
        results = health.check(
            settings,
            sources,
            ring,
            now=context.now,
            observe=context.observer,
            switch=not options.no_switch,
            hear=lambda result: context.console.say(*_lines(result)),
        )
    value, last = {"checks": [_value(result) for result in results]}, _sum(results)
    failure = health.first_failure(results)
    if failure is None:
        context.console.result(value, [last])
        return 0
    context.console.failed(failure, value, [last])
    return failure.exit_code


def _lines(result: CheckResult) -> list[str]:
    where = f"{result.source} {result.name}" if result.source else result.name
    lines = [f"{result.status.value:<8} {where:<28} {result.sentence}"]
    return lines + ([f"{'':<8} {'':<28} hint: {result.hint}"] if result.hint else [])


def _sum(results: Sequence[CheckResult]) -> str:
    counts: dict[str, int] = {}
    for result in results:
        counts[result.status.value] = counts.get(result.status.value, 0) + 1
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _value(result: CheckResult) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": result.name,
        "source": result.source or None,
        "status": result.status.value,
        "sentence": result.sentence,
        "hint": result.hint,
        "seconds": round(result.seconds, 3),
    }
    return value | ({"code": result.error.code} if result.error is not None else {})
