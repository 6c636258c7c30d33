"""The catalog's audit: append-only, hash-chained.

Each entry's hash covers everything in it and the hash of the entry before, so an edit, a removal or an insertion
anywhere breaks the chain. The row of `audit_head` says where the chain ends, so a cut tail is seen too. Triggers in
the database refuse every change but an append.

Not guaranteed: whoever owns the database can drop the triggers and write a whole new chain. An anchor that was
kept elsewhere (in a repository) finds that out.

JSONB keeps numbers as decimals and rewrites those with fractions or exponents, which would break the hash; in
audit details such numbers are therefore text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlmodel import Session, col, select

from seawall.catalog.documents import as_document, clean
from seawall.catalog.models import HASH_LENGTH, AuditAnchorRow, AuditHeadRow, AuditRow
from seawall.catalog.records import Records, aware, view
from seawall.catalog.views import AuditAnchor, AuditEntry, AuditVerdict, Document
from seawall.model import Finding

EMPTY = AuditAnchor(0, "0" * HASH_LENGTH)
_PAGE = 1000


class AuditRecords(Records):
    def audit(self, actor: str, action: str, subject: str, details: Document, now: datetime) -> AuditEntry:
        """Append an entry to the audit.

        Args:
            actor: who did it, a user or a part of Seawall.
            action: what was done, such as `retention.expire`.
            subject: what it was done to.
            details: plain facts, never a secret.
        """
        with self._writing() as session:
            # Appenders wait for each other here: a chain has one end.
            head = session.get_one(AuditHeadRow, 1, with_for_update=True)
            entry = _next(
                AuditAnchor(head.sequence, head.hash),
                actor=actor,
                action=action,
                subject=subject,
                details=details,
                now=aware(now),
            )
            session.add(AuditRow(**{f.name: getattr(entry, f.name) for f in fields(entry)}))
            session.flush()
            head.sequence, head.hash = entry.sequence, entry.hash
            session.add(head)
            return entry

    def audit_entries(self, *, before: int | None = None, limit: int = 100) -> tuple[AuditEntry, ...]:
        """Entries, newest first, those before a sequence number if one is given."""
        query = select(AuditRow).order_by(col(AuditRow.sequence).desc()).limit(limit)
        if before is not None:
            query = query.where(AuditRow.sequence < before)
        with self._reading() as session:
            return tuple(view(AuditEntry, row) for row in session.exec(query))

    def audit_anchor(self) -> AuditAnchor:
        """Where the chain ends now, to be kept outside the catalog."""
        with self._reading() as session:
            head = session.get_one(AuditHeadRow, 1)
            return AuditAnchor(head.sequence, head.hash)

    def keep_repository_anchor(self, repository_id: UUID | str, anchor: AuditAnchor, *, now: datetime) -> None:
        """Remember where the audit of a repository ended; an older end never takes the place of a newer one."""
        key = UUID(str(repository_id))
        with self._writing() as session:
            row = session.get(AuditAnchorRow, key, with_for_update=True)
            if row is None:
                row = AuditAnchorRow(repository_id=key, sequence=-1, hash="", seen_at=aware(now))
            if anchor.sequence >= row.sequence:
                row.sequence, row.hash, row.seen_at = anchor.sequence, anchor.hash, aware(now)
                session.add(row)

    def repository_anchor(self, repository_id: UUID | str) -> AuditAnchor | None:
        """Where the audit of a repository ended when this catalog last looked; None if it never did."""
        with self._reading() as session:
            row = session.get(AuditAnchorRow, UUID(str(repository_id)))
            return None if row is None else AuditAnchor(row.sequence, row.hash)

    def verify_audit(self, *, anchor: AuditAnchor | None = None) -> AuditVerdict:
        """Read the whole chain and say everything that is wrong with it.

        Args:
            anchor: an end of the chain that was kept elsewhere, which the chain must still contain.
        """
        with self._snapshot() as session:
            head = session.get(AuditHeadRow, 1)
            walk = _Walk(anchor=anchor)
            try:
                for entry in _entries(session):
                    walk.step(entry)
            except (ValueError, TypeError) as error:
                walk.report("audit-unreadable", f"the entry after {walk.end.sequence} cannot be read: {error}")
            walk.close(None if head is None else AuditAnchor(head.sequence, head.hash))
            return AuditVerdict(walk.entries, walk.end, tuple(walk.findings))


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


def _entries(session: Session) -> Iterator[AuditEntry]:
    """All entries in the order of the chain, a page of rows in memory at a time."""
    last: int | None = None
    while True:
        query = select(AuditRow).order_by(col(AuditRow.sequence)).limit(_PAGE)
        page = [
            view(AuditEntry, row)
            for row in session.exec(query if last is None else query.where(AuditRow.sequence > last))
        ]
        session.expunge_all()
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].sequence


@dataclass(slots=True)
class _Walk:
    """The state of a walk along the chain."""

    anchor: AuditAnchor | None
    end: AuditAnchor = EMPTY
    entries: int = 0
    findings: list[Finding] = field(default_factory=list)

    def step(self, entry: AuditEntry) -> None:
        if entry.sequence != self.end.sequence + 1:
            self.report("audit-gap", f"after {self.end.sequence} comes {entry.sequence}: entries were removed or added")
        if entry.previous_hash != self.end.hash:
            self.report("audit-broken", f"entry {entry.sequence} does not continue the entry before it")
        if entry.hash != chain_hash(entry):
            self.report("audit-edited", f"entry {entry.sequence} is not what was written")
        self.end = AuditAnchor(entry.sequence, entry.hash)
        self.entries += 1
        self._compare(self.anchor, "audit-anchor", "the anchor that was kept elsewhere")

    def close(self, head: AuditAnchor | None) -> None:
        """Compare the end with what the database and the caller say of it."""
        if head is None:
            self.report("audit-headless", "the record of where the chain ends is gone")
        elif head != self.end:
            self.report("audit-cut", f"the chain ends at {self.end.sequence}, but {head.sequence} was recorded")
        if self.anchor is not None and self.anchor.sequence > self.end.sequence:
            self.report("audit-anchor", f"entry {self.anchor.sequence}, anchored elsewhere, is gone")

    def report(self, code: str, message: str) -> None:
        self.findings.append(Finding(code, f"audit/{self.end.sequence}", message))

    def _compare(self, other: AuditAnchor | None, code: str, what: str) -> None:
        if other is not None and other.sequence == self.end.sequence and other.hash != self.end.hash:
            self.report(code, f"entry {other.sequence} differs from {what}")
