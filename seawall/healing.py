"""Replacing what is damaged or missing in one location by a copy from another that is proved to be sound.

The order protects data. First the sound bytes are at hand, proved against what the repository says of them; then the
audit says what will happen; only then does the damaged object go and the sound one take its place, and what lies there
now is read back. A crash in between leaves an object missing, which the next run heals. A manifest is replaced under
the source's lease in that location, because without one its set looks like garbage to retention.

Where a lock forbids to delete, the sound bytes are stored under `repairs/`, and readers of several locations take
them from there.

Not guaranteed: that WAL which no list names yet can be healed without a private key; nobody could say which copy is
sound.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO

from seawall.audit import AuditLog
from seawall.errors import (
    Damaged,
    KeyMissing,
    LeaseHeld,
    NameRefused,
    NotARepository,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    SeawallError,
    StorageDenied,
    StorageError,
)
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Finding, Verdict
from seawall.nearest import Copy
from seawall.repository import SourceArea
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS, SourceLayout
from seawall.storage.base import PIECE_BYTES, Replayable, Storage

_WRONG = (Damaged, ObjectMissing, ObjectTruncated)
_IN_MEMORY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Healed:
    """One object that was replaced: where, from which location, and whether beside it because it is locked."""

    name: str
    location: str
    donor: str
    beside: bool = False

    @property
    def stored_as(self) -> str:
        """Where the sound bytes lie now."""
        return f"{REPAIRS}{self.name}" if self.beside else self.name


@dataclass(frozen=True, slots=True)
class HealReport:
    """What became of the objects that were looked at; those in neither were sound.

    Args:
        left: what is wrong and could not be healed, each with its reason.
    """

    healed: tuple[Healed, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def suspects(area: SourceArea, verdict: Verdict) -> tuple[str, ...]:
    """Names of the objects to look at after a verification found something: what it names, and what opens the set."""
    layout = area.layout
    named = {name for finding in verdict.findings for name in _named(layout, finding)}
    return tuple(sorted(named | set(documents_of(area, verdict.label))))


def _named(layout: SourceLayout, finding: Finding) -> list[str]:
    if finding.code.startswith("wal-"):
        segment = layout.segment(finding.subject)
        return [segment]
    return [finding.subject] if finding.subject.startswith(layout.root) else []


def documents_of(area: SourceArea, label: BackupLabel) -> tuple[str, ...]:
    """What names and opens a set: its documents, both manifests, its keys, the source's identity."""
    layout = area.layout
    fixed = (layout.head(label), layout.objects(label), layout.manifest(label), layout.manifest_copy(label))
    keys = [wrap for key_id in _key_ids(area, label) for wrap in area.keychain.generations(key_id)]
    return (*fixed, *keys, *(stat.name for stat in area.storage.list(layout.identities)))


def _key_ids(area: SourceArea, label: BackupLabel) -> list[str]:
    """The data keys of a set: its own, and those of earlier sets and attempts whose objects it needs."""
    found = {str(label)}
    # A list that cannot be read names none; it is healed first, and then looked at again.
    with contextlib.suppress(Damaged, NameRefused):
        bundles = (name for name in area.needed_objects(label) if not area.layout.is_own(name, label))
        found |= {str(area.layout.label_of(name)) for name in bundles}
    return sorted(found)


def heal(
    at: Copy,
    donors: Sequence[Copy],
    names: Iterable[str],
    evidence: Evidence,
    audit: AuditLog,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
) -> HealReport:
    """Look at objects of one location and replace those that are damaged or missing.

    Args:
        donors: other locations, the nearest first; only copies that are proved are taken.
        names: of objects; one that is sound is left alone.
        evidence: of all these locations.
        audit: of the repository; written before anything is replaced.

    Raises:
        StorageUnreachable: the location does not answer; nothing is known of it.
        Damaged: what was put in place is not what was sent; the object's place needs a look.
        Cancelled: on request.
    """
    healing = _Healing(
        at, tuple(donor for donor in donors if donor.name != at.name), evidence, audit, actor, now, observe
    )
    return healing.run(names)


@dataclass
class _Healing:
    at: Copy
    donors: tuple[Copy, ...]
    evidence: Evidence
    audit: AuditLog
    actor: str
    now: datetime
    observe: Observer
    healed: list[Healed] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def run(self, names: Iterable[str]) -> HealReport:
        # Manifests last: one that is missing may come back only when what its set needs is there.
        for name in sorted(names, key=lambda name: (name.endswith("/manifest"), name)):
            self.observe.checkpoint()
            try:
                self._object(name)
            except (LeaseHeld, KeyMissing) as error:
                self.left[name] = error.message
        for name, why in self.left.items():
            self.observe.hear(Noticed("critical", "not-healed", f"{name} in location {self.at.name}: {why}"))
        return HealReport(tuple(self.healed), self.left)

    def _object(self, name: str) -> None:
        if not self.evidence.can_tell(name):
            if not _is_there(self.at.storage, name):
                self.left[name] = "it is missing, and nothing here can tell which copy of it is sound"
            return
        wrong = self._wrong(name)
        if wrong is None:
            return
        if name.endswith("/manifest") and isinstance(wrong, ObjectMissing) and (lacking := self._lacking(name)):
            self.left[name] = f"it is missing, and so is {lacking} that its backup needs"
            return
        found = self._donated(name)
        if found is None:
            self.left[name] = f"{wrong.message}; no other location has a sound copy"
            return
        donor, content = found
        with content:
            self._replace(name, wrong, donor, content)

    def _lacking(self, manifest: str) -> str:
        """The first object that a set needs and this location has not; empty when it has all."""
        _, source, _, label, _ = manifest.split("/")
        needs = self.evidence.needs(source, BackupLabel.parse(label))
        return next((name for name in sorted(needs) if not _is_there(self.at.storage, name)), "")

    def _wrong(self, name: str) -> SeawallError | None:
        """What is wrong with this location's copy, counting one beside it that repaired it."""
        try:
            self.evidence.refuse_damaged(name, self.at.storage.get(name))
        except _WRONG as error:
            return None if self._is_repaired(name) else error
        return None

    def _is_repaired(self, name: str) -> bool:
        try:
            self.evidence.refuse_damaged(name, self.at.storage.get(f"{REPAIRS}{name}"))
        except _WRONG:
            return False
        return True

    def _donated(self, name: str) -> tuple[Copy, IO[bytes]] | None:
        for donor in self.donors:
            for stored_as in (name, f"{REPAIRS}{name}"):
                file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
                try:
                    self.evidence.refuse_damaged(name, _into(file, donor.storage.get(stored_as)))
                except (*_WRONG, StorageError, NotARepository):
                    file.close()
                else:
                    return donor, file
        return None

    def _replace(self, name: str, wrong: SeawallError, donor: Copy, content: IO[bytes]) -> None:
        # The record precedes the deed, and says why.
        details = {"location": self.at.name, "from": donor.name, "why": wrong.message}
        self.audit.append(self.actor, "heal", name, details, now=self.now)
        beside = False
        with self._guarded(name):
            try:
                self.at.storage.delete(name)
                self._put(name, content)
            except StorageDenied:
                beside = True
                if not self._put_beside(name, content):
                    return
        self.evidence.refuse_damaged(name, self.at.storage.get(f"{REPAIRS}{name}" if beside else name))
        self.healed.append(Healed(name, self.at.name, donor.name, beside))
        text = f"{name} in location {self.at.name} was replaced from {donor.name}: {wrong.message}"
        self.observe.hear(Noticed("high", "healed", text))

    def _put_beside(self, name: str, content: IO[bytes]) -> bool:
        stored_as = f"{REPAIRS}{name}"
        # What lies there was looked at: an earlier repair that was damaged since.
        if _is_there(self.at.storage, stored_as):
            try:
                self.at.storage.delete(stored_as)
            except StorageDenied:
                self.left[name] = "it is locked, and so is an earlier repair of it that is damaged as well"
                return False
        self._put(stored_as, content)
        return True

    def _guarded(self, name: str) -> AbstractContextManager[object]:
        """Retention takes a set without a manifest for garbage, and an old one at once, unless a lease runs."""
        if not name.endswith(("/manifest", "/manifest.copy")):
            return nullcontext()
        return SourceArea(self.at.storage, name.split("/")[1]).lease(self.actor, "heal")

    def _put(self, name: str, content: IO[bytes]) -> None:
        try:
            self.at.storage.put(name, Replayable(lambda: _pieces(content)))
        except ObjectExists:
            # Somebody else healed it meanwhile; reading it back says whether it is sound.
            return


def _into(file: IO[bytes], chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    content.seek(0)
    while piece := content.read(PIECE_BYTES):
        yield piece


def _is_there(storage: Storage, name: str) -> bool:
    try:
        storage.stat(name)
    except ObjectMissing:
        return False
    return True
