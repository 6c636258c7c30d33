"""The head of a backup set: what can be known of it without any key, as a document and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seawall.errors import Damaged, NameRefused
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    SealingMode,
    Tablespace,
)
from seawall.repository import documents
from seawall.wal import Lsn

HEAD_FORMAT = 1


def to_document(head: Head) -> dict[str, Any]:
    """The head as plain JSON values (docs/repository-format.md, section "Head")."""
    return {
        "head": HEAD_FORMAT,
        "label": str(head.label),
        "source": head.source,
        "kind": head.kind.value,
        "mode": head.mode.value,
        # 64 bits do not survive readers that take JSON numbers for doubles.
        "system_identifier": str(head.cluster.system_identifier),
        "major_version": head.cluster.major_version,
        "timelines": list(head.cluster.timelines),
        "server_version": head.server_version,
        "timeline": head.timeline,
        "start_lsn": str(head.start_lsn),
        "stop_lsn": str(head.stop_lsn),
        "segment_bytes": head.segment_bytes,
        "began_at": head.began_at.isoformat(),
        "ended_at": head.ended_at.isoformat(),
        "stopped_at": head.stopped_at.isoformat(),
        "plain_bytes": head.plain_bytes,
        "stored_bytes": head.stored_bytes,
        "file_count": head.file_count,
        "object_count": head.object_count,
        "compression": head.compression.value,
        "sealing": head.sealing.value,
        "key_id": head.key_id,
        "manifest_sha256": head.manifest_sha256,
        "manifest_bytes": head.manifest_bytes,
        "health": head.health.value,
        "prior": head.prior,
        "reason": head.reason,
        "checksums": head.checksums,
        "tablespaces": [[t.oid, t.location] for t in head.tablespaces],
    }


def from_document(document: Mapping[str, Any], *, name: str) -> Head:
    """The head from its document; `name` is the object's, for messages.

    Raises:
        FormatTooNew: a later version wrote it.
        Damaged: a member is missing or of the wrong type.
    """
    documents.refuse_newer(document.get("head"), HEAD_FORMAT, name=name)
    try:
        return Head(
            label=BackupLabel.parse(document["label"]),
            source=document["source"],
            kind=BackupKind(document["kind"]),
            mode=CopyMode(document["mode"]),
            cluster=ClusterIdentity(
                int(document["system_identifier"]), document["major_version"], tuple(document["timelines"])
            ),
            server_version=document["server_version"],
            timeline=document["timeline"],
            start_lsn=Lsn.parse(document["start_lsn"]),
            stop_lsn=Lsn.parse(document["stop_lsn"]),
            segment_bytes=document["segment_bytes"],
            began_at=documents.moment(document["began_at"], name=name),
            ended_at=documents.moment(document["ended_at"], name=name),
            stopped_at=documents.moment(document["stopped_at"], name=name),
            plain_bytes=document["plain_bytes"],
            stored_bytes=document["stored_bytes"],
            file_count=document["file_count"],
            object_count=document["object_count"],
            compression=Compression(document["compression"]),
            sealing=SealingMode(document["sealing"]),
            key_id=document["key_id"],
            manifest_sha256=document["manifest_sha256"],
            manifest_bytes=document["manifest_bytes"],
            health=Health(document["health"]),
            prior=document["prior"],
            reason=document["reason"],
            checksums=document["checksums"],
            tablespaces=tuple(Tablespace(int(oid), str(place)) for oid, place in document["tablespaces"]),
        )
    except (KeyError, ValueError, TypeError, NameRefused) as error:
        raise Damaged(f"{name} is not the head of a backup: {error}") from error
