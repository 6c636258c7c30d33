"""What a repository itself tells of its objects: which bytes each should have.

A document carries its own hash, a head the manifest's, a clear list those of bundles and block maps, another those of
WAL, a recovery script's name its own. WAL that is not listed says in its header what it holds, which only a private key
can open. So whether a copy of an object is sound can be told without asking the host that wrote it, and from any copy
of the repository.

Not guaranteed: that a forger is found. Hashes in clear find damage (docs/threat-model.md); verification up to
`decryptable` compares with what is sealed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from seawall.errors import BackupMissing, Damaged, FormatTooNew, NotARepository, ObjectMissing, StorageError
from seawall.keys import KeyRing
from seawall.model import BackupLabel, StoredObject
from seawall.repository import documents, heads
from seawall.repository.area import SourceArea
from seawall.repository.layout import SourceLayout
from seawall.repository.sealed import Counted
from seawall.repository.wal_lists import How, Listed, WalLists
from seawall.storage.base import Bytes, Storage

_T = TypeVar("_T")

_SCRIPT = re.compile(r"recover-([0-9a-f]{12})\.py")
_OF_A_SET = re.compile(r"sources/([^/]+)/backups/([^/]+)/(manifest|manifest\.copy|blocks|bundles/.+)")
_WAL = re.compile(r"sources/([^/]+)/wal/.+")
_UNREADABLE = (Damaged, FormatTooNew, BackupMissing, NotARepository, StorageError)


class Evidence:
    """What tells sound objects from others, read from any of several copies of one repository.

    Args:
        storages: the copies; for each fact the first that can tell it is asked.
        ring: opens WAL if it holds a private key; without it, nothing can be said about WAL that is not listed.
    """

    def __init__(self, storages: Sequence[Storage], ring: KeyRing | None = None) -> None:
        self._storages = tuple(storages)
        self._ring = ring
        self._rows: dict[tuple[str, BackupLabel], dict[str, StoredObject]] = {}
        self._manifests: dict[tuple[str, BackupLabel], str] = {}
        self._lists: dict[str, tuple[WalLists, ...]] = {}
        self._areas: dict[str, tuple[SourceArea, ...]] = {}

    def can_tell(self, name: str) -> bool:
        """Whether there is anything to compare an object with."""
        if (match := _WAL.fullmatch(name)) and not name.endswith(".json"):
            return self._ring is not None or self._listed(match[1], name) is not None
        if match := _OF_A_SET.fullmatch(name):
            return bool(self._sha256(name, match))
        return name.endswith(".json") or _SCRIPT.fullmatch(name) is not None

    def refuse_damaged(self, name: str, chunks: Iterable[Bytes]) -> None:
        """Read an object's bytes to their end and compare.

        Args:
            name: one that `can_tell` knows; of any other nothing is said.

        Raises:
            Damaged: they are not what was written.
            KeyMissing: the ring does not open WAL.
        """
        if name.endswith(".json"):
            documents.decode(_whole(name, chunks), name=name)
        elif match := _SCRIPT.fullmatch(name):
            _refuse_other(name, chunks, match[1])
        elif match := _OF_A_SET.fullmatch(name):
            _refuse_other(name, chunks, self._sha256(name, match))
        elif match := _WAL.fullmatch(name):
            self._refuse_damaged_wal(match[1], name, chunks)

    def sha256(self, name: str) -> str:
        """The SHA-256 that alone tells whether an object is sound; empty where there is none, or not it alone."""
        if match := _OF_A_SET.fullmatch(name):
            return self._sha256(name, match)
        match = _WAL.fullmatch(name)
        listed = self._listed(match[1], name) if match and not name.endswith(".json") else None
        return listed.sha256 if listed and self._suffices(listed) else ""

    def needs(self, source: str, label: BackupLabel) -> dict[str, StoredObject]:
        """All objects with data that a set needs, by name.

        Raises:
            Damaged: no copy has a sound list of them.
        """
        key = (source, label)
        if key not in self._rows:
            found = self._first(lambda storage: SourceArea(storage, source).stored_objects(label))
            if found is None:
                raise Damaged(f"no copy of the list of objects of {source} {label} is sound")
            self._rows[key] = {stored.name: stored for stored in found}
        return self._rows[key]

    def size_bytes(self, name: str) -> int | None:
        """How large an object of a set should be; None where nothing tells."""
        match = _OF_A_SET.fullmatch(name)
        if match is None or match[3].startswith("manifest"):
            return None
        stored = self._stored(name, match)
        return None if stored is None else stored.stored_bytes

    def _sha256(self, name: str, match: re.Match[str]) -> str:
        if match[3].startswith("manifest"):
            return self._manifest_sha256(match[1], BackupLabel.parse(match[2]))
        stored = self._stored(name, match)
        return "" if stored is None else stored.stored_sha256

    def _stored(self, name: str, match: re.Match[str]) -> StoredObject | None:
        source, label = match[1], BackupLabel.parse(match[2])
        for known in self._rows.values():
            if name in known:
                return known[name]
        # What lies under the name of a set that was let go, or of an attempt, is listed by sets that came after it.
        for candidate in (label, *self._later(source, label)):
            try:
                stored = self.needs(source, candidate).get(name)
            except Damaged:
                continue
            if stored is not None:
                return stored
        return None

    def _later(self, source: str, label: BackupLabel) -> Iterator[BackupLabel]:
        for storage in self._storages:
            try:
                begun = SourceArea(storage, source).begun()
            except _UNREADABLE:
                continue
            yield from (other for other in begun if other.begun_at > label.begun_at)

    def _manifest_sha256(self, source: str, label: BackupLabel) -> str:
        key = (source, label)
        if key not in self._manifests:
            head = self._first(lambda storage: heads.read(storage, SourceArea(storage, source).layout, label))
            self._manifests[key] = head.manifest_sha256 if head else ""
        return self._manifests[key]

    def _refuse_damaged_wal(self, source: str, name: str, chunks: Iterable[Bytes]) -> None:
        listed = self._listed(source, name)
        counted = Counted(chunks)
        if self._ring is not None and not (listed and self._suffices(listed)):
            self._prove_wal(source, name, counted, self._ring)
        for _ in counted:
            pass
        if listed and counted.sha256 != listed.sha256:
            raise Damaged(f"{name} is not what was stored: its SHA-256 differs")

    def _suffices(self, listed: Listed) -> bool:
        """Whether a listed hash says all: one that was only read back may be of bytes that were damaged before."""
        return self._ring is None or listed.how is not How.READ

    def _listed(self, source: str, name: str) -> Listed | None:
        if source not in self._lists:
            self._lists[source] = tuple(WalLists(storage, SourceLayout(source)) for storage in self._storages)
        found = [self._asked(lists, name) for lists in self._lists[source]]
        return min((one for one in found if one), key=lambda one: one.how is How.READ, default=None)

    def _asked(self, lists: WalLists, name: str) -> Listed | None:
        try:
            return lists.find(name)
        except _UNREADABLE:
            return None

    def _prove_wal(self, source: str, name: str, chunks: Iterable[Bytes], ring: KeyRing) -> None:
        wrong: Damaged | None = None
        content = [bytes(chunk) for chunk in chunks]
        # Kept, because each remembers the data keys that it opened: that takes a process of gpg for each key.
        areas = self._areas.setdefault(source, tuple(SourceArea(storage, source) for storage in self._storages))
        for area in areas:
            # The data key is an object as well: a copy whose key is damaged says nothing about the segment.
            try:
                area.wal.opened(name, ring, content)
            except (Damaged, ObjectMissing, FormatTooNew) as error:
                # A flip in the version looks like a later one; what truly is of a later one is so in every copy.
                wrong = wrong or Damaged(error.message)
            except (StorageError, NotARepository):
                continue
            else:
                return
        raise wrong or Damaged(f"{name} could not be opened: no location told its key")

    def _first(self, ask: Callable[[Storage], _T]) -> _T | None:
        for storage in self._storages:
            try:
                return ask(storage)
            except _UNREADABLE:
                continue
        return None


def _whole(name: str, chunks: Iterable[Bytes]) -> bytes:
    limit = documents.LIST_LIMIT_BYTES if name.endswith("/objects.json") else documents.LIMIT_BYTES
    parts, total = [], 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise Damaged(f"{name} is larger than any document that was written")
        parts.append(bytes(chunk))
    return b"".join(parts)


def _refuse_other(name: str, chunks: Iterable[Bytes], sha256: str) -> None:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    if not sha256 or not digest.hexdigest().startswith(sha256):
        raise Damaged(f"{name} is not what was stored: its SHA-256 differs")
