"""`seawall repository`: write a repository's identity again where it is missing or damaged."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from seawall.cli.context import Context
from seawall.errors import SeawallError

if TYPE_CHECKING:
    from seawall.repair import RepairPlan
    from seawall.repository.identity import Identity
    from seawall.storage.base import Storage


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("action", choices=("repair",), help="repair: write what is missing or damaged of its identity")
    parser.add_argument("--id", default="", metavar="UUID", help="which repository it is, where nothing else says so")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")


def run(options: argparse.Namespace, context: Context) -> None:
    from seawall import repair
    from seawall.storage import open_storage

    with closing(open_storage(context.settings.repository)) as storage:
        plan = repair.plan(
            storage,
            _others(context),
            repository_id=options.id,
            remembered=lambda: _remembered(context, storage),
            now=context.now(),
        )
        written = () if options.dry_run else repair.run(plan, storage, actor=context.actor, now=context.now())
    value = {
        "repository": plan.identity.repository_id,
        "told_by": plan.told_by,
        "steps": [{"name": step.name, "replaces": step.replaces, "why": step.why} for step in plan.steps],
        "written": list(written),
        "dry_run": options.dry_run,
    }
    context.console.result(value, _lines(plan, written))


def _others(context: Context) -> dict[str, Identity]:
    """What other locations say; one that does not answer says nothing."""
    from seawall import locations
    from seawall.repository import identity
    from seawall.settings import PRIMARY

    told = {}
    for name in locations.in_order(context.settings):
        if name == PRIMARY:
            continue
        try:
            with closing(locations.opened(context.settings, name, context.observer)) as storage:
                told[name] = identity.found(storage)
        except SeawallError as error:
            context.console.note(f"location {name} is not asked: {error.message}")
    return told


def _remembered(context: Context, storage: Storage) -> dict[str, int]:
    """As of which repositories the catalog knows backups that lie in a storage, and how many."""
    from collections import Counter

    from seawall.repository import SourceArea

    found: Counter[str] = Counter()
    with context.catalog_if_any() as catalog:
        if catalog is None:
            return {}
        for name in storage.children("sources/"):
            here = {str(label) for label in SourceArea(storage, name).labels(with_expired=True)}
            files = catalog.backup_files(source=name)
            found.update(str(file.repository_id) for file in files if str(file.label) in here)
    return dict(found)


def _lines(plan: RepairPlan, written: tuple[str, ...]) -> list[str]:
    if not plan.steps:
        return [f"repository {plan.identity.repository_id}: its identity is whole"]
    lines = [f"repository {plan.identity.repository_id}, as {plan.told_by} says"]
    lines += [f"  {'replace' if step.replaces else 'write'} {step.name}: {step.why}" for step in plan.steps]
    return lines + [f"  written: {name}" for name in written]
