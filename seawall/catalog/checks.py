"""What comes into the catalog, checked."""

from __future__ import annotations

from datetime import datetime

from seawall.catalog.documents import clean
from seawall.errors import UsageError


def bounded(text: str, length: int, what: str) -> str:
    """`text` fit for a column of that length, which SQLite itself does not enforce.

    Raises:
        UsageError: it is empty or longer.
    """
    if not 1 <= len(text) <= length:
        raise UsageError(f"{what} has {len(text)} characters; 1 to {length} are wanted")
    return clean(text)


def aware(moment: datetime, what: str = "now") -> datetime:
    """`moment`, if it says which time it means.

    Raises:
        UsageError: it has no offset from UTC.
    """
    if moment.utcoffset() is None:
        raise UsageError(f"{what} has no offset from UTC: {moment.isoformat()}")
    return moment
