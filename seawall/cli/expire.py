"""`seawall expire`: let backups go by policy, in two audited steps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from seawall import retention, traces
from seawall.cli import simulation
from seawall.cli.console import size
from seawall.cli.context import Context
from seawall.errors import CatalogError, CatalogMissing, SettingsError, UsageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel
from seawall.repository import SourceArea
from seawall.retention import Collected, RetentionPlan, RetentionPolicy
from seawall.settings import PRIMARY, SourceSettings

if TYPE_CHECKING:
    from seawall.catalog import Logbook
    from seawall.catalog.recording import ExecutionRecord


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: all configured)")
    parser.add_argument("--dry-run", action="store_true", help="show what would go and why, and change nothing")
    parser.add_argument(
        "--days", type=int, metavar="N", help="instead of the source's retention_days, for window and dailies"
    )
    parser.add_argument(
        "--at-rest", action="store_true", help="also if no new backup came for long: the source is not used any more"
    )
    parser.add_argument("--location", metavar="NAME", help="clean the copies there, by the rules for that location")
    parser.add_argument("--undo", metavar="LABEL", help="take a mark back while the backup is still there")
    simulation.arguments(parser)


def run(options: argparse.Namespace, context: Context) -> None:
    if options.undo:
        _undo(options, context)
        return
    if options.simulate is not None:
        source = context.stored_source(options.source)
        simulation.show(options, context, source, _policy(context, source, options.days))
        return
    names = [context.stored_source(options.source)] if options.source is not None else sorted(context.settings.sources)
    clean = _expire if options.location in (None, PRIMARY) else _expire_copy
    outcomes = [clean(context, name, options) for name in names]
    lines = [line for outcome in outcomes for line in outcome["lines"]]
    for outcome in outcomes:
        del outcome["lines"]
    context.console.result({"dry_run": options.dry_run, "sources": outcomes}, lines)


def _undo(options: argparse.Namespace, context: Context) -> None:
    source = context.stored_source(options.source)
    label = BackupLabel.parse(options.undo)
    is_marked = context.repository.source(source).is_expired(label)
    if not is_marked and not traces.forgotten_mark(context.repository, source, label):
        raise UsageError(
            f"{source} {label} is not marked for removal", hint="`seawall list --expired` shows the marks."
        )
    if options.dry_run:
        context.console.result(
            {"source": source, "would_restore": str(label), "dry_run": True}, [f"would list {label}"]
        )
        return
    retention.unexpire(context.deletable, source, label, actor=context.actor, now=context.now())
    record = _withdrawn(context, source, label)
    context.console.result({"source": source, "restored": str(label), **record}, [f"{source} {label} is listed again"])


def _withdrawn(context: Context, source: str, label: BackupLabel) -> dict[str, Any]:
    """Record in the catalog that a backup stays after all; what JSON output says of that."""
    from seawall.catalog.recording import record_withdrawn
    from seawall.cli.recorded import told

    return told(
        context,
        f"the return of {label}",
        lambda catalog: record_withdrawn(
            catalog, context.repository, source, label, actor=context.actor, now=context.now()
        ),
    )


def _expire(context: Context, name: str, options: argparse.Namespace) -> dict[str, Any]:
    area, now, policy = context.repository.source(name), context.now(), _policy(context, name, options.days)
    plan = retention.plan_for(
        area,
        policy,
        now=now,
        unsound=_doubts(context, area, context.repository.id, PRIMARY),
        at_rest=options.at_rest,
        awaited=lambda heads: retention.awaited(context.settings, name, heads, now=now, observe=context.observer),
    )
    if options.dry_run:
        collected = _collect(context, name, policy, context.observer, dry_run=True)
        return _outcome(name, plan, collected, marked=0, dry_run=True)
    return _done(context, name, plan, policy)


def _collect(
    context: Context, name: str, policy: RetentionPolicy, observe: Observer, *, dry_run: bool = False
) -> Collected:
    return retention.collect(
        context.deletable,
        name,
        actor=context.actor,
        now=context.now(),
        observe=observe,
        dry_run=dry_run,
        policy=policy,
        unsound=_doubts(context, context.repository.source(name), context.repository.id, PRIMARY),
    )


def _doubts(context: Context, area: SourceArea, repository_id: str, location: str) -> Mapping[BackupLabel, str]:
    """The sets that were found wrong when they were read back; a catalog that cannot be asked knows of none."""
    from seawall.catalog import Logbook
    from seawall.catalog.doubts import doubted

    try:
        with Logbook.open(context.settings.catalog.url) as catalog:
            return doubted(catalog, area, repository_id, location)
    except CatalogMissing:
        return {}
    except CatalogError as error:
        text = f"nobody knows what verifications of {area.name} found: {error.message}"
        context.observer.hear(Noticed("medium", "catalog-silent", text))
        return {}


def _expire_copy(context: Context, name: str, options: argparse.Namespace) -> dict[str, Any]:
    done = retention.clean_copy(
        context.settings,
        context.repository,
        name,
        options.location,
        actor=context.actor,
        now=context.now(),
        observe=context.observer,
        dry_run=options.dry_run,
        doubts=partial(_doubts, context),
    )
    return _outcome(name, done.plan, done.collected, marked=done.marked, dry_run=options.dry_run)


def _done(context: Context, name: str, plan: RetentionPlan, policy: RetentionPolicy) -> dict[str, Any]:
    """Mark and remove, and record it as a run of the site's job."""
    from seawall.catalog.facts import retention_facts
    from seawall.catalog.recording import ExecutionRecord, Result, record_collected, retention_job
    from seawall.cli.recorded import recorded

    def row(catalog: Logbook) -> ExecutionRecord:
        return ExecutionRecord(retention_job(catalog, context.settings, now=context.now()).id)

    actor, now = context.actor, context.now()
    with recorded(context, "retention-cleanup", name, row) as record:
        marked = retention.expire(context.deletable, plan, actor=actor, now=now)
        collected = _collect(context, name, policy, record.observe)
        record.result = Result(retention_facts(plan, collected, marked))
        record.tell(
            lambda catalog, _: record_collected(
                catalog, context.repository, name, collected.sets, actor=actor, now=context.now()
            )
        )
    return _outcome(name, plan, collected, marked=marked, dry_run=False) | record.value()


def _outcome(name: str, plan: RetentionPlan, collected: Collected, *, marked: int, dry_run: bool) -> dict[str, Any]:
    return {
        "source": name,
        "keep": [{"label": str(d.label), "reasons": list(d.reasons)} for d in plan.keep],
        "expire": [{"label": str(d.label), "reasons": list(d.reasons)} for d in plan.expire],
        "wal": [{"first": w.first, "last": w.last, "segments": w.count} for w in plan.wal],
        "marked": marked,
        "collected": list(collected.sets),
        "freed_bytes": collected.freed_bytes,
        "left": dict(collected.left),
        "lines": _lines(name, plan, collected, dry_run=dry_run),
    }


def _policy(context: Context, name: str, days: int | None) -> RetentionPolicy:
    """The source's policy, perhaps with other days; only of a source that is configured nobody has to name them."""
    if name in context.settings.sources:
        policy = retention.policy_for(context.settings, name)
    elif days is not None:
        policy = retention.policy_of(context.settings, SourceSettings(name, retention_days=days))
    else:
        raise SettingsError(f"source {name!r} is not configured", hint="Name the days with --days, or configure it.")
    return policy if days is None else policy.with_days(days)


def _lines(name: str, plan: RetentionPlan, collected: Collected, *, dry_run: bool) -> list[str]:
    would = "would " if dry_run else ""
    lines = [f"{name}:"]
    lines += [f"  keep    {d.label}  {'; '.join(d.reasons)}" for d in plan.keep]
    lines += [f"  {would}expire  {d.label}  {'; '.join(d.reasons)}" for d in plan.expire]
    lines += [f"  {would}expire  WAL {w.first} to {w.last}, {w.count} segments" for w in plan.wal]
    lines += [f"  {would}remove  {label}" for label in collected.sets]
    lines += [f"  left    {what}: {why}" for what, why in collected.left.items()]
    lines.append(
        f"  {size(collected.freed_bytes)} {would}be freed now"
        if dry_run
        else f"  {size(collected.freed_bytes)} freed now; what was marked goes after 24 hours"
    )
    return lines
