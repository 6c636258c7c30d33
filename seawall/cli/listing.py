"""`seawall list` and `seawall info`: what is there, and what can be restored from it."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

from seawall.anomaly import judged, suspicions
from seawall.cli.console import size, span
from seawall.cli.context import Context
from seawall.cli.reading import answer
from seawall.errors import SeawallError
from seawall.model import BackupLabel, Head
from seawall.repository import SourceArea
from seawall.wal import Segment, contiguous_until

_NO_MANIFEST = "its manifest is missing while its copy is there: it was never committed, or the manifest was lost"


def arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("source", nargs="?", help="a source's name (default: all, or the only one)")
    if verb == "info":
        parser.add_argument("label", nargs="?", help="one backup's label")
    else:
        parser.add_argument("--expired", action="store_true", help="also backups that are marked for removal")


def run(options: argparse.Namespace, context: Context) -> int:
    if options.verb == "list":
        return _list(options, context)
    if options.label:
        return _backup(context, context.stored_source(options.source), BackupLabel.parse(options.label))
    return _sources(context, options.source)


def _list(options: argparse.Namespace, context: Context) -> int:
    repository = context.reading.repository
    names = (context.stored_source(options.source),) if options.source is not None else repository.sources()
    areas = [repository.source(name) for name in names]
    found, troubled = [], []
    suspect: set[tuple[str, str]] = set()
    for area in areas:
        heads, unreadable = area.readable_heads(with_expired=options.expired)
        found += [(area, head) for head in heads]
        suspect |= {(area.name, label) for label, marks in suspicions(heads).items() if marks}
        troubled += [(area.name, label, f"its head cannot be read: {why.message}") for label, why in unreadable.items()]
        troubled += [(area.name, head.label, _NO_MANIFEST) for head in area.unfinished()]
    rows = [
        (
            head.source,
            str(head.label),
            head.kind.value,
            _state(area, head, (area.name, str(head.label)) in suspect),
            f"{head.stopped_at:%Y-%m-%d %H:%M:%S}Z",
            span(head.ended_at - head.began_at),
            size(head.plain_bytes),
            size(head.stored_bytes),
        )
        for area, head in found
    ]
    columns = ("SOURCE", "LABEL", "KIND", "STATE", "RESTORABLE FROM", "TOOK", "DATA", "STORED")
    lines = context.console.table(columns, rows) if rows else ["no backups yet; `seawall backup` takes one"]
    lines += [f"{source} {label}: {why}" for source, label, why in troubled]
    value = {
        "backups": [summary(head) | {"suspect": (area.name, str(head.label)) in suspect} for area, head in found],
        "troubled": [{"source": source, "label": str(label), "why": why} for source, label, why in troubled],
    }
    return answer(context, value, lines)


def _state(area: SourceArea, head: Head, suspect: bool) -> str:
    state = "expired" if area.is_expired(head.label) else head.health.value
    return f"{state}, suspect" if suspect else state


def summary(head: Head) -> dict[str, Any]:
    """A backup set as JSON output shows it."""
    return {
        "source": head.source,
        "label": str(head.label),
        "kind": head.kind.value,
        "prior": head.prior,
        "health": head.health.value,
        "mode": head.mode.value,
        "began_at": head.began_at,
        "stopped_at": head.stopped_at,
        "ended_at": head.ended_at,
        "system_identifier": str(head.cluster.system_identifier),
        "server_version": head.server_version,
        "timeline": head.timeline,
        "start_lsn": str(head.start_lsn),
        "stop_lsn": str(head.stop_lsn),
        "plain_bytes": head.plain_bytes,
        "stored_bytes": head.stored_bytes,
        "files": head.file_count,
        "objects": head.object_count,
        "compression": head.compression.value,
        "sealing": head.sealing.value,
        "key_id": head.key_id,
        "reason": head.reason,
    }


def _backup(context: Context, source: str, label: BackupLabel) -> int:
    area = context.reading.repository.source(source)
    head = area.head(label)
    value = summary(head) | _share(area, head)
    value["extensions"] = _extensions(context, area, label)
    value["holds"] = [hold.reason for hold in area.holds(context.now()) if hold.label == label]
    value["suspicions"] = [mark.sentence for mark in judged(area, label)]
    shown = {member: item for member, item in value.items() if item not in ("", None)}
    shown["extensions"] = [f"{one['name']} {one['version']} in {one['database']}" for one in value["extensions"] or []]
    lines = [f"{member.replace('_', ' '):<18} {_shown(member, item)}" for member, item in shown.items() if item != []]
    return answer(context, {"backup": value}, lines)


def _extensions(context: Context, area: SourceArea, label: BackupLabel) -> list[dict[str, str]] | None:
    """What the backup says of extensions, which is sealed: None where it cannot be opened here."""
    from seawall.postgres import extensions

    try:
        with context.ring as ring:
            found = extensions.of_backup(area.manifest(label, ring).specials)
    except SeawallError as error:
        context.console.note(f"extensions cannot be shown: {error.message}")
        return None
    return [{"database": one.database, "name": one.name, "version": one.version} for one in found]


def _share(area: SourceArea, head: Head) -> dict[str, Any]:
    """How much was stored for this backup, before compression, and on how many objects of earlier ones it relies."""
    listed = area.stored_objects(head.label)
    bundles = [stored for stored in listed if stored.name != area.layout.blocks(head.label)]
    own = [stored for stored in bundles if area.layout.is_new(stored.name, head.label, head.prior)]
    return {"changed_bytes": sum(stored.plain_bytes for stored in own), "earlier_objects": len(bundles) - len(own)}


def _shown(member: str, item: object) -> str:
    if member.endswith("_bytes") and isinstance(item, int):
        return size(item)
    if isinstance(item, datetime):
        return f"{item:%Y-%m-%d %H:%M:%S}Z"
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)


def _sources(context: Context, source: str | None) -> int:
    repository = context.reading.repository
    names = (context.stored_source(source),) if source is not None else repository.sources()
    found = [_source(repository.source(name)) for name in names]
    lines = [f"repository {repository.id} at {repository.storage.url}"]
    for item in found:
        lines += ["", *(f"{member.replace('_', ' '):<22} {_shown(member, value)}" for member, value in item.items())]
    return answer(context, {"repository": repository.id, "sources": found}, lines)


def _source(area: SourceArea) -> dict[str, Any]:
    identity, heads = area.identity(), area.heads()
    value: dict[str, Any] = {"source": area.name, "backups": len(heads)}
    if identity is not None:
        value["system_identifier"] = str(identity.system_identifier)
        value["major_version"] = identity.major_version
        value["timelines"] = list(identity.timelines)
    if heads:
        value["restorable_from"] = heads[0].stopped_at
        value["newest_backup"] = str(heads[-1].label)
        value["wal_unbroken_until"] = _wal_until(area, heads[-1])
        value["stored_bytes"] = sum(head.stored_bytes for head in heads)
    value["wal_stored_bytes"] = area.wal.stored_bytes()
    return value


def _wal_until(area: SourceArea, head: Head) -> str:
    first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
    last = contiguous_until(first, area.wal.names(head.timeline))
    return "nothing is stored" if last is None else str(last.end)
