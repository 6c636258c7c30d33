"""A repository: a prefix on a storage with an identity, and in it the sources that it protects.

Invariants: objects are never overwritten; a backup set exists exactly when its manifest does; what no listed
set needs is garbage and is removed only by `seawall.retention`, in two steps.

Not guaranteed here: that a listed backup can be decrypted by the keys at hand. `seawall.verify` proves that.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime

from seawall.errors import ObjectExists, UsageError
from seawall.repository import identity
from seawall.repository.area import SourceArea
from seawall.repository.identity import Identity
from seawall.repository.layout import recovery_script
from seawall.repository.lease import Lease
from seawall.repository.sealed import Sealing, sealing_of
from seawall.repository.set_writer import BackupSetWriter
from seawall.repository.wal_area import WalArea
from seawall.storage.base import Storage

__all__ = ["BackupSetWriter", "Lease", "Repository", "Sealing", "SourceArea", "WalArea", "sealing_of"]


class Repository:
    """An opened repository; make one with `create` or `open`."""

    def __init__(self, storage: Storage, repository_id: str, created_at: datetime) -> None:
        self.storage = storage
        self.id = repository_id
        self.created_at = created_at
        self._areas: dict[str, SourceArea] = {}

    @classmethod
    def create(cls, storage: Storage, *, now: datetime) -> Repository:
        """Make a new repository on an empty prefix.

        Raises:
            UsageError: there is one already, or something else lies there.
        """
        if next(iter(storage.list()), None) is not None:
            raise UsageError(
                f"{storage.url} is not empty", hint="Choose an empty directory or prefix for a new repository."
            )
        repository_id = str(uuid.uuid4())
        try:
            identity.create(storage, Identity(repository_id, now))
        except ObjectExists as error:
            raise UsageError(f"{storage.url} became a repository at this moment") from error
        return cls(storage, repository_id, now)

    @classmethod
    def open(cls, storage: Storage) -> Repository:
        """Open an existing repository, by either of the two objects that say which it is.

        Raises:
            NotARepository: no identity object lies there.
            FormatTooNew: a later version wrote it.
            Damaged: no identity object is what was written.
        """
        found = identity.found(storage)
        return cls(storage, found.repository_id, found.created_at)

    def sources(self) -> tuple[str, ...]:
        """Names of all sources that ever stored something."""
        return self.storage.children("sources/")

    def source(self, name: str) -> SourceArea:
        """One source's part; it need not exist yet.

        Raises:
            NameRefused: the name cannot be one.
        """
        return self._areas.setdefault(name, SourceArea(self.storage, name))

    def install_recovery_script(self, text: str) -> str:
        """Store the stand-alone recovery script beside the data; the same text again changes nothing."""
        data = text.encode()
        name = recovery_script(hashlib.sha256(data).hexdigest())
        try:
            self.storage.put(name, [data])
        except ObjectExists:
            return name
        return name

    def close(self) -> None:
        self.storage.close()
