"""The head of a backup set: what can be known of it without any key, as a document and back.

A head that is damaged or missing is no loss: the manifest repeats it under seal, and `recovered` takes it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seawall.codec import FrameReader, KeySource
from seawall.errors import Damaged, FormatTooNew, KeyMissing, NameRefused, ObjectMissing, ObjectTruncated
from seawall.keys import KeyRing
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
from seawall.repository import documents, manifest, sealed
from seawall.repository.keychain import Keychain
from seawall.repository.layout import SourceLayout
from seawall.storage.base import Storage
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


def read(storage: Storage, layout: SourceLayout, label: BackupLabel) -> Head:
    """The head of a set from its document.

    Raises:
        FormatTooNew: a later version wrote it.
        Damaged: it is missing or is not what was written.
    """
    name = layout.head(label)
    try:
        head = from_document(documents.get(storage, name), name=name)
    except ObjectMissing as error:
        raise Damaged(f"{name} is missing, but the manifest beside it is there") from error
    refuse_other_place(head, layout, label, name=name)
    return head


def refuse_other_place(head: Head, layout: SourceLayout, label: BackupLabel, *, name: str) -> None:
    """Stop at a head that was written for another set.

    Raises:
        Damaged: it was.
    """
    if head.label != label or head.source != layout.source:
        raise Damaged(f"{name} is the head of {head.source} {head.label}")


def recovered(
    storage: Storage, layout: SourceLayout, keychain: Keychain, label: BackupLabel, ring: KeyRing, *, instead: Damaged
) -> Head:
    """The head of a set from its manifest, or from the copy, when the document beside them is no use.

    The manifest is read to its end, so that what stands in for the head is as whole as what it describes.

    Raises:
        Damaged: `instead`, if neither can be read.
    """
    logical, key_for = layout.logical(layout.manifest(label)), keychain.source(ring, str(label))
    for name in (layout.manifest(label), layout.manifest_copy(label)):
        try:
            head = _from_manifest(storage, name, logical, ring, key_for)
            refuse_other_place(head, layout, label, name=name)
            return head
        except (Damaged, ObjectMissing, ObjectTruncated, FormatTooNew, KeyMissing):
            continue
    raise instead


def _from_manifest(storage: Storage, name: str, logical: str, ring: KeyRing, key_for: KeySource) -> Head:
    counted = sealed.Counted(storage.get(name))
    first = b""
    for chunk in counted:
        first = first or bytes(chunk[:8])
    # Nothing else says how it is sealed; what it says itself is compared below.
    mode = SealingMode.AES_256_GCM if first.startswith(b"SEAWALL") else SealingMode.OPENPGP
    plain = sealed.plain_envelope(storage.get(name), mode, ring, name=name)
    frames = FrameReader(plain, logical, key_for)
    found = manifest.Reader(frames, name=name)
    for _ in found.files():
        pass
    about = {"manifest_sha256": counted.sha256, "manifest_bytes": counted.stored_bytes}
    head = from_document({**found.head_document, **about}, name=name)
    sealed.refuse_other_mode(frames.envelope.seal, head.sealing, name=name)
    if (head.sealing is SealingMode.OPENPGP) is not (mode is SealingMode.OPENPGP):
        raise Damaged(f"{name} is not sealed as it says itself")
    return head


def sealed_part(head: Head) -> dict[str, object]:
    """What a manifest repeats of its head under seal: all but what only writing the manifest tells."""
    return {member: value for member, value in to_document(head).items() if not member.startswith("manifest_")}
