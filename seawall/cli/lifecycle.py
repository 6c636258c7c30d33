"""`seawall location lifecycle`: the rules that a bucket should have, and how they differ from those that it has."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seawall import lifecycle, locations
from seawall.audit import AuditLog
from seawall.cli.context import Context
from seawall.errors import UsageError
from seawall.lifecycle import Inspected, LifecyclePlan
from seawall.storage.base import Storage


def run(options: argparse.Namespace, context: Context) -> int:
    if options.dry_run and not options.apply:
        raise UsageError("--dry-run says what --apply would do; without it nothing is changed anyway")
    planned = lifecycle.wanted(context.settings, options.name)
    exported = None if options.against is None else _exported(options.against)
    with closing(locations.opened(context.settings, options.name, context.observer)) as storage:
        seen = lifecycle.inspect(planned, storage, exported)
        if options.apply and not options.dry_run:
            seen = _applied(options.name, planned, storage, context)
    whole = options.apply and seen.found is not None
    document = (
        lifecycle.merged(planned, seen.found or {}) if whole else lifecycle.document(planned.vendor, planned.rules)
    )
    for line in _said(seen):
        context.console.note(line)
    context.console.result(_value(options.name, seen, document), [json.dumps(document, indent=2)])
    return 0


def _applied(name: str, planned: LifecyclePlan, storage: Storage, context: Context) -> Inspected:
    audit = AuditLog(context.repository.storage)
    return lifecycle.apply(planned, storage, audit, name, actor=context.actor, now=context.now())


def _exported(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object")
    return found


def _said(seen: Inspected) -> list[str]:
    lines = [f"{rule.id}: {rule.reason}" for rule in seen.plan.rules]
    lines += [f"note: {note}" for note in seen.plan.notes]
    if seen.unknown:
        return [*lines, f"not compared: {seen.unknown}"]
    return lines + ([f"{one.severity}: {one.message}" for one in seen.differences] or ["the bucket has these rules"])


def _value(name: str, seen: Inspected, document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "location": name,
        "vendor": seen.plan.vendor.value,
        "rules": [asdict(rule) for rule in seen.plan.rules],
        "notes": list(seen.plan.notes),
        "document": document,
        "compared": not seen.unknown,
        "unknown": seen.unknown or None,
        "differences": [asdict(one) for one in seen.differences],
    }
