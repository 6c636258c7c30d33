"""The catalog's audit: append-only, hash-chained.

Each entry's hash covers everything in it and the hash of the entry before, so an edit, a removal or an insertion
anywhere breaks the chain. The row of `audit_head` says where the chain ends, so a cut tail is seen too. Triggers in
the database refuse every change but an append.

Not guaranteed: whoever owns the database can drop the triggers and write a whole new chain. An anchor that was
kept elsewhere (in a repository) finds that out. `seawall.catalog.logbook.audit` appends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlmodel import Session, col, select

from seawall.catalog.logbook.audit import chain_hash
from seawall.catalog.models import AuditHeadRow, AuditRow
from seawall.catalog.records import Records, view
from seawall.catalog.views import HASH_LENGTH, AuditAnchor, AuditEntry, AuditVerdict
from seawall.model import Finding

EMPTY = AuditAnchor(0, "0" * HASH_LENGTH)
_PAGE = 1000


class AuditRecords(Records):
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
