"""Where the audit in each repository ended when this catalog last looked, which finds a chain that was cut.

A chain of hashes proves that nothing inside it changed, and not that it is whole: whoever can delete objects can cut
its end off. The catalog lies elsewhere, so it remembers the end and compares.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from seawall.audit import AuditEnd, AuditLog
from seawall.catalog.logbook import Logbook
from seawall.catalog.views import AuditAnchor
from seawall.errors import Damaged, StorageError
from seawall.events import Noticed, Observer

if TYPE_CHECKING:
    from seawall.repository import Repository


def compared(catalog: Logbook, repository: Repository, *, now: datetime) -> AuditEnd:
    """Where a repository's audit ends, after proving that what the catalog saw of it is still there; remembered.

    Records that the catalog saw before are not read again; `seawall audit` reads all of them.

    Raises:
        Damaged: the audit was cut, written anew or broken; the catalog keeps what it knew.
        CatalogError, StorageError: one of the two does not answer.
    """
    known = catalog.repository_anchor(repository.id)
    end = AuditLog(repository.storage).verify(None if known is None else AuditEnd(known.sequence, known.hash))
    # Only what was just proved to continue the known end may take its place.
    catalog.keep_repository_anchor(repository.id, AuditAnchor(end.number, end.digest), now=now)
    return end


def watched(catalog: Logbook, repository: Repository, observe: Observer, *, now: datetime) -> None:
    """As `compared`, beside other work: a cut audit is a critical notice and stops nothing that reads.

    Raises:
        CatalogError: the catalog does not answer.
    """
    try:
        compared(catalog, repository, now=now)
    except Damaged as error:
        observe.hear(Noticed("critical", "audit-damaged", f"{error.message} ({error.hint})"))
    except StorageError as error:
        observe.hear(Noticed("medium", "audit-unread", f"the audit could not be read: {error.message}"))
