"""Appending to the catalog's audit, whose rules are `seawall.catalog.journal`'s, and where those of repositories ended.

Each entry's hash covers everything in it and the hash of the entry before. JSONB keeps numbers as decimals and rewrites
those with fractions or exponents, which would break the hash; in audit details such numbers are therefore text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from seawall.catalog.checks import aware
from seawall.catalog.documents import as_document, clean
from seawall.catalog.logbook.rows import Entries, inserted
from seawall.catalog.views import AuditAnchor, AuditEntry, Document
from seawall.errors import CatalogError


class AuditEntries(Entries):
    def audit(self, actor: str, action: str, subject: str, details: Document, now: datetime) -> AuditEntry:
        """Append an entry to the audit.

        Args:
            actor: who did it, a user or a part of Seawall.
            action: what was done, such as `retention.expire`.
            subject: what it was done to.
            details: plain facts, never a secret.
        """
        with self._writes() as rows:
            # Appenders wait for each other here: a chain has one end.
            head = rows.execute(f"SELECT sequence, hash FROM audit_head WHERE id = 1{rows.lock}")  # noqa: S608 - a constant
            if not head:
                raise CatalogError("the record of where the catalog's audit ends is gone")
            entry = _next(
                AuditAnchor(*head[0]),
                actor=actor,
                action=action,
                subject=subject,
                details=details,
                now=aware(now),
            )
            inserted(entry, rows.insert(entry))
            rows.execute(
                "UPDATE audit_head SET sequence = :sequence, hash = :hash WHERE id = 1",
                sequence=entry.sequence,
                hash=entry.hash,
            )
            return entry

    def keep_repository_anchor(self, repository_id: UUID | str, anchor: AuditAnchor, *, now: datetime) -> None:
        """Remember where the audit of a repository ended; an older end never takes the place of a newer one."""
        with self._writes() as rows:
            rows.execute(
                "INSERT INTO audit_anchors (repository_id, sequence, hash, seen_at)"
                " VALUES (:key, :sequence, :hash, :now)"
                " ON CONFLICT (repository_id) DO UPDATE"
                " SET sequence = excluded.sequence, hash = excluded.hash, seen_at = excluded.seen_at"
                " WHERE excluded.sequence >= audit_anchors.sequence",
                key=UUID(str(repository_id)),
                sequence=anchor.sequence,
                hash=anchor.hash,
                now=aware(now),
            )

    def replace_repository_anchor(
        self, repository_id: UUID | str, sequence: int, digest: str, *, now: datetime
    ) -> None:
        """Let another end take the place of one that is lost; the caller has recorded in the audit what was lost."""
        with self._writes() as rows:
            rows.execute(
                "UPDATE audit_anchors SET sequence = :sequence, hash = :hash, seen_at = :now"
                " WHERE repository_id = :key",
                key=UUID(str(repository_id)),
                sequence=sequence,
                hash=digest,
                now=aware(now),
            )

    def repository_anchor(self, repository_id: UUID | str) -> AuditAnchor | None:
        """Where the audit of a repository ended when this catalog last looked; None if it never did."""
        query = "SELECT sequence, hash FROM audit_anchors WHERE repository_id = :key"
        with self._reads() as rows:
            found = rows.execute(query, key=UUID(str(repository_id)))
        return AuditAnchor(*found[0]) if found else None


def chain_hash(entry: AuditEntry) -> str:
    """The hash of an entry: SHA-256 of the canonical JSON of everything else in it.

    Canonical is JSON (RFC 8259) in UTF-8 with sorted keys and without spaces.
    """
    record: dict[str, object] = {
        "id": str(entry.id),
        "sequence": entry.sequence,
        "recorded_at": entry.recorded_at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "details": entry.details,
        "previous_hash": entry.previous_hash,
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _next(head: AuditAnchor, *, actor: str, action: str, subject: str, details: Document, now: datetime) -> AuditEntry:
    unsealed = AuditEntry(
        id=uuid4(),
        sequence=head.sequence + 1,
        recorded_at=now.astimezone(UTC),
        actor=clean(actor),
        action=clean(action),
        subject=clean(subject),
        details={key: _exact(value) for key, value in as_document(details).items()},
        previous_hash=head.hash,
        hash="",
    )
    return replace(unsealed, hash=chain_hash(unsealed))


def _exact(value: object) -> object:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list) else value
