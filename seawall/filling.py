"""The record of a primary location that was filled from copies: whatever is done there later builds on what came.

It is written after the deed, which destroys nothing: before it, there is no audit there that could go on.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from seawall.audit import AuditEnd, AuditLog
from seawall.errors import Damaged
from seawall.events import Noticed, Observer
from seawall.mirror import MirrorReport
from seawall.nearest import Nearest
from seawall.repository import Repository
from seawall.storage.base import Storage

if TYPE_CHECKING:
    from seawall.catalog import Logbook
    from seawall.catalog.views import AuditAnchor


def filled(
    copies: Storage,
    primary: Storage,
    report: MirrorReport,
    catalog: Logbook | None,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
) -> None:
    """Record in the audit that came with the copies, and in the catalog, what was brought; nothing if nothing was.

    What the lost primary's audit told that came to no copy is lost with it. The catalog, which knows where it ended,
    records that and goes on from the new end: else every later look would say that the audit was cut.

    Args:
        catalog: None tells nobody.

    Raises:
        Damaged: the audit there does not have all that the copies' has, so it cannot go on yet.
        CatalogError, StorageError: it is not recorded.
    """
    if not report.objects:
        return
    end, audit = AuditLog(copies).end(), AuditLog(primary)
    if end.number:
        audit.proved(end)
    details = _details(copies, primary, report)
    audit.append(actor, "fill-primary", report.source, details, now=now)
    if catalog is None:
        return
    repository_id = Repository.open(primary).id
    lost = _lost(audit, catalog.repository_anchor(repository_id))
    if lost is None:
        catalog.audit(actor, "primary.fill", report.source, details, now)
        return
    told = {"audit_ended": f"{lost.sequence} {lost.hash}", "audit_goes_on_after": f"{end.number} {end.digest}"}
    # The record of what is lost precedes the deed that forgets it.
    catalog.audit(actor, "primary.fill", report.source, {**details, **told}, now)
    found = audit.end()
    catalog.replace_repository_anchor(repository_id, found.number, found.digest, now=now)
    text = (
        f"the audit ended with record {lost.sequence} before the primary was lost; the copies have it up to "
        f"{end.number}, so what the records behind that told is lost, and the catalog goes on from there"
    )
    observe.hear(Noticed("high", "audit-lost", text))


def _lost(audit: AuditLog, known: AuditAnchor | None) -> AuditAnchor | None:
    """The end that the catalog knows, where it did not come with the copies."""
    try:
        if known is not None:
            audit.proved(AuditEnd(known.sequence, known.hash))
    except Damaged:
        return known
    return None


def _details(copies: Storage, primary: Storage, report: MirrorReport) -> dict[str, str]:
    return {
        "location": primary.url,
        "from": ", ".join(copies.names) if isinstance(copies, Nearest) else copies.url,
        "objects": str(report.objects),
        "stored_bytes": str(report.stored_bytes),
        "committed": str(len(report.committed)),
        "left": str(len(report.left)),
    }
