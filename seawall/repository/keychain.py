"""Data keys of a source, wrapped for OpenPGP recipients, and their rotation.

A data key is 32 random bytes made for one backup set or one period of WAL. What lies in the storage is an
OpenPGP message for every recipient. Rotation writes the next generation of that message for other recipients;
data is never rewritten. The host that takes backups wraps, and cannot unwrap.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from datetime import datetime

from seawall.codec import DataKey, KeySource, new_data_key
from seawall.errors import Damaged, KeyMissing, ObjectExists, ObjectLocked
from seawall.keys import KeyRing
from seawall.repository import documents
from seawall.repository.layout import SourceLayout
from seawall.repository.sealed import Sealing
from seawall.storage.base import Storage

KEY_FORMAT = 1


class Keychain:
    """The wrapped data keys of one source."""

    def __init__(self, storage: Storage, layout: SourceLayout) -> None:
        self._storage = storage
        self._layout = layout
        self._open: dict[str, DataKey] = {}
        self._locks: dict[str, threading.Lock] = {}

    def ids(self) -> tuple[str, ...]:
        return self._storage.children(self._layout.keys)

    def generations(self, key_id: str) -> tuple[str, ...]:
        """The names of a key's wraps, oldest first."""
        return tuple(stat.name for stat in self._storage.list(f"{self._layout.keys}{key_id}/"))

    def create(self, key_id: str, sealing: Sealing, now: datetime) -> DataKey:
        """Make a data key and store it wrapped for the recipients.

        Raises:
            ObjectExists: a key of this id exists already.
            KeyMissing, KeyUnusable: a recipient cannot be sealed for.
        """
        key = new_data_key(key_id)
        self._put(key, 1, sealing.ring, sealing.recipients, now)
        return key

    def _put(self, key: DataKey, generation: int, ring: KeyRing, recipients: Sequence[str], now: datetime) -> None:
        # Base64 keeps the wrapped payload printable, so that a person can follow docs/recover-by-hand.md.
        wrapped = ring.wrap(base64.b64encode(key.secret), recipients)
        document = {
            "key": KEY_FORMAT,
            "id": key.id,
            "generation": generation,
            "recipients": list(recipients),
            "wrapped": wrapped,
            "wrapped_at": now.isoformat(),
        }
        documents.put(self._storage, self._layout.key(key.id, generation), document)

    def source(self, ring: KeyRing, only: str = "") -> KeySource:
        """What a reader asks for keys; with `only`, any other key's id is damage."""

        def key_for(key_id: str) -> DataKey:
            if only and key_id != only:
                raise Damaged(f"an object is sealed with key {key_id!r} where {only!r} belongs")
            return self.unwrap(key_id, ring)

        return key_for

    def unwrap(self, key_id: str, ring: KeyRing) -> DataKey:
        """The data key of that id, opened with a private key of the ring.

        Raises:
            KeyMissing: the ring has none of the private keys that open it.
            Damaged: the key is missing in the storage, or is not what was written.
        """
        # One lock for each key: several may be opened side by side, and none twice.
        with self._locks.setdefault(key_id, threading.Lock()):
            if key_id not in self._open:
                self._open[key_id] = self._unwrap(key_id, ring)
            return self._open[key_id]

    def _unwrap(self, key_id: str, ring: KeyRing) -> DataKey:
        names = self.generations(key_id)
        if not names:
            raise Damaged(f"data key {key_id} of source {self._layout.source} is missing in the storage")
        refused: list[KeyMissing | Damaged] = []
        for name in reversed(names):
            # One generation that is damaged or was meant for others must not lock out those that open.
            try:
                return self._unwrapped(key_id, name, ring)
            except (KeyMissing, Damaged) as error:
                refused.append(error)
        raise next((error for error in refused if isinstance(error, KeyMissing)), refused[0])

    def _unwrapped(self, key_id: str, name: str, ring: KeyRing) -> DataKey:
        document = documents.get(self._storage, name)
        documents.refuse_newer(document.get("key"), KEY_FORMAT, name=name)
        try:
            return DataKey(key_id, base64.b64decode(ring.unwrap(document["wrapped"]), validate=True))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Damaged(f"{name} does not hold a data key") from error

    def is_wrapped_for(self, key_id: str, recipients: Sequence[str]) -> bool:
        """Whether a key's newest wrap is for exactly these recipients."""
        names = self.generations(key_id)
        return bool(names) and set(documents.get(self._storage, names[-1])["recipients"]) == set(recipients)

    def rewrap(self, key_id: str, ring: KeyRing, recipients: Sequence[str], now: datetime) -> bool:
        """Wrap a key for other recipients; false if its newest wrap is for exactly these already.

        Raises:
            KeyMissing: the ring cannot open the key.
        """
        if self.is_wrapped_for(key_id, recipients):
            return False
        key = self.unwrap(key_id, ring)
        try:
            self._put(key, len(self.generations(key_id)) + 1, ring, recipients, now)
        except ObjectExists:
            return self.rewrap(key_id, ring, recipients, now)
        return True

    def retire(self, key_id: str, recipients: Sequence[str]) -> int:
        """Delete older wraps that open for anyone but `recipients`; returns how many. What is locked stays.

        The newest wrap is never deleted: it must be for `recipients` (see `rewrap`), else nothing happens.
        """
        if not self.is_wrapped_for(key_id, recipients):
            return 0
        return sum(self._retired(name) for name in self.generations(key_id)[:-1])

    def _retired(self, name: str) -> bool:
        try:
            self._storage.delete(name)
        except ObjectLocked:
            return False
        return True
