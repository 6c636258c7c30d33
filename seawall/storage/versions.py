"""Versions that a storage keeps out of sight: what was overwritten or deleted past Seawall, and is paid for.

Seawall overwrites nothing and deletes whole versions, so there are none unless somebody else, or a service that keeps
what is deleted for a while, made them.

Not guaranteed: the numbers of Azure and Google Cloud, whose servers on loopback keep no versions to try it on; their
requests are written from the vendors' references.
"""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable

from seawall.errors import StorageError
from seawall.storage.base import Storage, layers

_log = logging.getLogger(__name__)


@runtime_checkable
class Versioned(Protocol):
    """A storage that may keep versions which no list shows."""

    def hidden_bytes(self) -> int:
        """How much such versions take; lists all of them.

        Raises:
            StorageDenied: these credentials may not list versions.
            StorageError: the service knows none.
        """
        ...


def hidden_bytes(storage: Storage) -> int:
    """How much is kept below a storage's wrappers that no list shows; 0 where that cannot be found out.

    Raises:
        StorageUnreachable, StorageBusy: the storage does not answer.
    """
    versioned = next((layer for layer in layers(storage) if isinstance(layer, Versioned)), None)
    if versioned is None:
        return 0
    try:
        return versioned.hidden_bytes()
    except StorageError as error:
        if error.retryable:
            raise
        _log.info("versions that no list shows are not counted: %s", error.message)
        return 0
