"""A hash-chained, append-only record in the repository of everything that destroys, restores or promotes.

Each record carries the hash of the one before it, so that a change, a removal or a swap anywhere breaks the
chain at that place. Numbers are claimed by creating the object: two writers never share one.

Not guaranteed by the chain alone: that the newest records were not cut off together. `verify` takes an end that was
kept elsewhere (the catalog keeps one) and finds that it is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from seawall.errors import Damaged, ObjectExists, ObjectMissing, StorageUnreachable
from seawall.repository import documents
from seawall.storage.base import Storage

PREFIX = "audit/"
_GENESIS = "0" * 64
_ATTEMPTS = 64
_CUT = "Somebody deleted or replaced audit records. Look at who may write to this storage before anything else."


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


class AuditEnd(NamedTuple):
    """The number and hash of a chain's last record at some moment; number 0 of a chain without records."""

    number: int
    digest: str


_EMPTY = AuditEnd(0, _GENESIS)


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
        last = self._last()
        for _ in range(_ATTEMPTS):
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
                # Another writer was faster, or a list does not show yet what lies there: its record is the last one.
                last = _record(documents.get(self._storage, _name(number)), name=_name(number))
                continue
            return _record(document, name=_name(number))
        raise StorageUnreachable("the audit could not be written: other writers were always faster")

    def records(self, after: AuditEnd = _EMPTY) -> Iterator[AuditRecord]:
        """All records in order, each proved against its own hash.

        Args:
            after: only those behind this one, which must be what it was.

        Raises:
            Damaged: a record is missing, changed, or does not follow its predecessor.
        """
        previous = after.digest
        listed = (stat for stat in self._storage.list(PREFIX) if stat.name > _name(after.number))
        for number, stat in enumerate(listed, start=after.number + 1):
            record = _record(documents.get(self._storage, stat.name), name=stat.name)
            if record.number != number or record.previous != previous or stat.name != _name(number):
                raise Damaged(f"the audit is broken at {stat.name}: it does not follow record {number - 1}")
            previous = record.digest
            yield record

    def verify(self, known: AuditEnd | None = None) -> AuditEnd:
        """Where the chain ends, after proving it: all of it, or what came after an end that was kept elsewhere.

        Args:
            known: an earlier end of this chain.

        Raises:
            Damaged: the chain is broken, or the known end is not in it any more.
        """
        end = _EMPTY if known is None or not known.number else self.proved(known)
        for record in self.records(end):
            end = AuditEnd(record.number, record.digest)
        return end

    def proved(self, known: AuditEnd) -> AuditEnd:
        """An end that was kept elsewhere, if the chain still has it.

        Raises:
            Damaged: it has not: the audit was cut or written anew.
        """
        try:
            found = _record(documents.get(self._storage, _name(known.number)), name=_name(known.number))
        except ObjectMissing as error:
            raise Damaged(
                f"the audit was cut: record {known.number}, which was seen here before, is gone", hint=_CUT
            ) from error
        if found.digest != known.digest:
            raise Damaged(f"audit record {known.number} is not the one that was seen here before", hint=_CUT)
        return known

    @property
    def url(self) -> str:
        """Where it lies."""
        return self._storage.url

    def end(self) -> AuditEnd:
        """Where the chain ends now, without proving what lies before."""
        last = self._last()
        return _EMPTY if last is None else AuditEnd(last.number, last.digest)

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
