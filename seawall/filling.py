"""The record of a primary location that was filled from copies: whatever is done there later builds on what came.

It is written after the deed, which destroys nothing: before it, there is no audit there that could go on.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from seawall.audit import AuditLog
from seawall.mirror import MirrorReport
from seawall.nearest import Nearest
from seawall.storage.base import Storage

if TYPE_CHECKING:
    from seawall.catalog import Logbook


def filled(
    copies: Storage, primary: Storage, report: MirrorReport, catalog: Logbook | None, *, actor: str, now: datetime
) -> None:
    """Record in the audit that came with the copies, and in the catalog, what was brought; nothing if nothing was.

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
    if catalog is not None:
        catalog.audit(actor, "primary.fill", report.source, details, now)


def _details(copies: Storage, primary: Storage, report: MirrorReport) -> dict[str, str]:
    return {
        "location": primary.url,
        "from": ", ".join(copies.names) if isinstance(copies, Nearest) else copies.url,
        "objects": str(report.objects),
        "stored_bytes": str(report.stored_bytes),
        "committed": str(len(report.committed)),
        "left": str(len(report.left)),
    }
