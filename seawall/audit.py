"""A hash-chained, append-only record in the repository of everything that destroys, restores or promotes.

Each record carries the hash of the one before it, so that a change, a removal or a swap anywhere breaks the
chain at that place. Numbers are claimed by creating the object: two writers never share one.

It lies in the primary location. While that cannot be written, what is done to a copy is recorded in a chain of its own
in the copy's location (`AuditApart`), and carried to the primary when it answers again (`carry`).

Not guaranteed by the chain alone: that the newest records were not cut off together. `verify` takes an end that was
kept elsewhere (the catalog keeps one) and finds that it is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from seawall.errors import Damaged, ObjectExists, ObjectMissing, StorageUnreachable
from seawall.repository import documents
from seawall.storage.base import Storage

PREFIX = "audit/"
# Written in a location while the primary did not answer, and what was carried of that into the primary.
APART = "audit-apart/"
CARRIED = "audit-carried/"
PREFIXES = (PREFIX, APART, CARRIED)
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
    """The audit of one repository.

    Args:
        prefix: of the names of its records.
    """

    def __init__(self, storage: Storage, prefix: str = PREFIX) -> None:
        self._storage = storage
        self._prefix = prefix

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
                documents.put(self._storage, self._name(number), document)
            except ObjectExists:
                # Another writer was faster, or a list does not show yet what lies there: its record is the last one.
                last = _record(documents.get(self._storage, self._name(number)), name=self._name(number))
                continue
            return _record(document, name=self._name(number))
        raise StorageUnreachable("the audit could not be written: other writers were always faster")

    def records(self, after: AuditEnd = _EMPTY) -> Iterator[AuditRecord]:
        """All records in order, each proved against its own hash.

        Args:
            after: only those behind this one, which must be what it was.

        Raises:
            Damaged: a record is missing, changed, or does not follow its predecessor.
        """
        previous = after.digest
        listed = (stat for stat in self._storage.list(self._prefix) if stat.name > self._name(after.number))
        for number, stat in enumerate(listed, start=after.number + 1):
            record = _record(documents.get(self._storage, stat.name), name=stat.name)
            if record.number != number or record.previous != previous or stat.name != self._name(number):
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
            found = _record(documents.get(self._storage, self._name(known.number)), name=self._name(known.number))
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
        newest = max((stat.name for stat in self._storage.list(self._prefix)), default=None)
        return None if newest is None else _record(documents.get(self._storage, newest), name=newest)

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:012d}.json"


class AuditApart(AuditLog):
    """The chain of deeds in one location while the primary did not answer; each record says which audit it follows."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, APART)

    def append(
        self, actor: str, action: str, subject: str, details: Mapping[str, str], *, now: datetime
    ) -> AuditRecord:
        """As `AuditLog.append`; beside the details, where the primary's audit ended as far as this location knows."""
        follows = AuditLog(self._storage).end()
        told = {**details, "follows": f"{follows.number} {follows.digest}"}
        return super().append(actor, action, subject, told, now=now)


def carry(origin: Storage, primary: Storage, *, now: datetime) -> int:
    """Bring what was recorded apart in a location into the audit of the primary; how many records were new there.

    Each is appended as what it says, with the time and the place of the deed, and kept as it was written. A run that is
    interrupted between the two appends one record again; none is lost.

    Raises:
        Damaged: the chain in the location is broken, or the primary's is; nothing more is carried.
        StorageError: one of the two does not answer.
    """
    if next(iter(origin.list(APART)), None) is None:
        return 0
    known, carried = {stat.name for stat in primary.list(CARRIED)}, 0
    for record in AuditLog(origin, APART).records():
        name = f"{CARRIED}{record.digest}.json"
        if name not in known:
            done = {"done_at": record.at.isoformat(), "recorded_in": origin.url, "recorded_as": record.digest}
            AuditLog(primary).append(record.actor, record.action, record.subject, {**record.details, **done}, now=now)
            _keep(primary, name, documents.get(origin, f"{APART}{record.number:012d}.json"))
            carried += 1
    return carried


def _keep(storage: Storage, name: str, document: Mapping[str, Any]) -> None:
    # Another run may carry the same at this moment.
    with suppress(ObjectExists):
        documents.put(storage, name, dict(document))


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
