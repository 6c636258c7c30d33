"""What an HTTP service answered, in our own words.

Statuses mean the same to all three clouds (RFC 9110); where one of them has a code that says more, its driver looks at
that first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from seawall.errors import (
    ObjectExists,
    ObjectMissing,
    StorageBusy,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)

_BY_STATUS: dict[int, type[StorageError]] = {
    401: StorageDenied,
    403: StorageDenied,
    404: ObjectMissing,
    408: StorageUnreachable,
    412: ObjectExists,
    413: StorageFull,
    429: StorageBusy,
    503: StorageBusy,
    507: StorageFull,
}


def explained(status: int, message: str, *, hint: str | None = None) -> StorageError:
    """The error for an HTTP status.

    Args:
        message: what was tried, where, and the service's own code and text.
    """
    if status in _BY_STATUS:
        return _BY_STATUS[status](message, hint=hint)
    if status >= 500:
        return StorageUnreachable(message, hint=hint)
    error = StorageError(message, hint=hint)
    # A request that was wrong stays wrong; only a conflict (409) of two writers passes.
    error.exhausted = 400 <= status < 500 and status != 409
    return error


def foreign(what: str, service: str, why: object = "") -> StorageUnreachable:
    """The error for an answer that the service did not give, but a proxy, a web page or another server in its place.

    Such an answer proves nothing: above all, not that an object is absent.

    Args:
        what: what was tried, and where.
        service: whose answer was expected.
        why: what is wrong with it.
    """
    said = " ".join(str(why).split())[:200]
    return StorageUnreachable(
        f"{what}: what answers there does not speak as {service} does" + (f" ({said})" if said else ""),
        hint="Check endpoint, and what stands in between, such as a proxy, a gateway or a console's web page.",
    )


def server_time(date: str | None, url: str) -> datetime:
    """The moment of a `Date` header (RFC 9110, section 6.6.1), whole seconds.

    Raises:
        StorageError: the service sent none, or no date.
    """
    try:
        return parsedate_to_datetime(date or "").astimezone(UTC)
    except ValueError as error:
        raise StorageError(
            f"{url} answers without the time", hint="A proxy may have removed the Date header."
        ) from error
