"""Lifecycle rules of the bucket that a storage lies in: read and replaced as a whole, in the vendor's own form.

Not guaranteed: that the credentials for objects may do either. Azure keeps such rules with the account, where no
credential for blobs reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from seawall.storage.base import Storage, layers


@runtime_checkable
class Ruled(Protocol):
    """A bucket whose lifecycle rules can be read and replaced."""

    def lifecycle(self) -> Mapping[str, Any]:
        """The whole configuration; one without rules where there is none.

        Raises:
            StorageDenied: these credentials may not.
        """
        ...

    def set_lifecycle(self, document: Mapping[str, Any]) -> None:
        """Put another configuration in its place.

        Raises:
            StorageDenied: these credentials may not.
        """
        ...


def ruled(storage: Storage) -> Ruled | None:
    """The bucket below a storage and its wrappers, or None where nothing has such rules."""
    *_, driver = layers(storage)
    bucket = getattr(driver, "bucket", None)
    return bucket if isinstance(bucket, Ruled) else None
