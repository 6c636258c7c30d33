"""A hash-chained, append-only record in the repository of everything that destroys, restores or promotes.

Each record carries the hash of the one before it, so that a change, a removal or a swap anywhere breaks the
chain at that place. Numbers are claimed by creating the object: two writers never share one.

Not guaranteed: that the newest records were not cut off together. Keep the hash that `verify` returns
elsewhere and compare; nothing does so by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from seawall.errors import Damaged, ObjectExists, StorageUnreachable
from seawall.repository import documents
from seawall.storage.base import Storage

PREFIX = "audit/"
_GENESIS = "0" * 64
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to which subject, when; `previous` and `digest` link the chain (SHA-256, hex)."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: Mapping[str, str]
    previous: str
    digest: str


class AuditLog:
    """The audit of one repository."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def append(
        self, actor: str, action: str, subject: str, details: Mapping[str, str], *, now: datetime
    ) -> AuditRecord:
        """Write a record; it is durable when this returns, so that it can precede the deed.

        Raises:
            Damaged: the newest record is not what was written; nothing may be destroyed until a person looked.
            StorageError: it is not written.
        """
        for _ in range(_ATTEMPTS):
            last = self._last()
            number, previous = (1, _GENESIS) if last is None else (last.number + 1, last.digest)
            document: dict[str, Any] = {
                "number": number,
                "at": now.isoformat(),
                "actor": actor,
                "action": action,
                "subject": subject,
                "details": dict(details),
                "previous": previous,
            }
            try:
                documents.put(self._storage, _name(number), document)
            except ObjectExists:
                continue
            return _record(document, name=_name(number))
        raise StorageUnreachable("the audit could not be written: other writers were always faster")

    def records(self) -> Iterator[AuditRecord]:
        """All records in order, each proved against its own hash.

        Raises:
            Damaged: a record is missing, changed, or does not follow its predecessor.
        """
        previous = _GENESIS
        for number, stat in enumerate(self._storage.list(PREFIX), start=1):
            record = _record(documents.get(self._storage, stat.name), name=stat.name)
            if record.number != number or record.previous != previous or stat.name != _name(number):
                raise Damaged(f"the audit is broken at {stat.name}: it does not follow record {number - 1}")
            previous = record.digest
            yield record

    def verify(self) -> tuple[int, str]:
        """The number of records and the hash of the last one, after proving the whole chain.

        Raises:
            Damaged: the chain is broken.
        """
        count, digest = 0, _GENESIS
        for record in self.records():
            count, digest = record.number, record.digest
        return count, digest

    def _last(self) -> AuditRecord | None:
        newest = max((stat.name for stat in self._storage.list(PREFIX)), default=None)
        return None if newest is None else _record(documents.get(self._storage, newest), name=newest)


def _name(number: int) -> str:
    return f"{PREFIX}{number:012d}.json"


def _record(document: Mapping[str, Any], *, name: str) -> AuditRecord:
    try:
        return AuditRecord(
            number=int(document["number"]),
            at=documents.moment(document["at"], name=name),
            actor=str(document["actor"]),
            action=str(document["action"]),
            subject=str(document["subject"]),
            details={str(k): str(v) for k, v in document["details"].items()},
            previous=str(document["previous"]),
            digest=hashlib.sha256(documents.canonical(document)).hexdigest(),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{name} is no audit record") from error
