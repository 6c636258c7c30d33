"""Clear lists of stored WAL: size and SHA-256 of each object as it lies in the storage, for readers without a key.

Whoever stores WAL knows these hashes; a list is written for many objects together, so that storing a segment costs no
second object of its own. What is noted and not yet listed is lost with its process: then a backup lists the WAL that
it needs itself, after reading it, and verification with a private key whatever it opened.

Invariants: a list is a document that is never changed; several may name the same object. Of those, the one wins that
knows most: what was counted on its way into the storage, or was opened with a key, before what was only read back.

Not guaranteed: that every object is listed (the newest are not yet, and tails never), nor that a forger is found: who
can write to the storage can write a list as well (docs/threat-model.md).
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from seawall.errors import Damaged, FormatTooNew, ObjectMissing, SeawallError
from seawall.model import StoredObject
from seawall.repository import documents
from seawall.repository.layout import SourceLayout
from seawall.storage.base import Storage

log = logging.getLogger(__name__)

# 32 segments are half a GiB of WAL; five minutes bound what is not listed where little is written.
LISTED_TOGETHER = 32
_LONGEST_WAIT_SECONDS = 300.0
# A storage that takes WAL and no lists must not fill this process's memory.
_MOST_NOTED = 1024
_HISTORY = "history"
_LIST = re.compile(r"([0-9A-F]{8})/(?:history|([0-9A-F]{24})-([0-9A-F]{24}))-[0-9a-f]{8}\.json")
_UNREADABLE = (Damaged, FormatTooNew, ObjectMissing)


class How(StrEnum):
    """How whoever wrote a list came to know it: counted while storing, opened with a key, or read back from there."""

    WRITTEN = "written"
    OPENED = "opened"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Listed:
    """What lists say of one object."""

    stored_bytes: int
    sha256: str
    how: How


@dataclass(frozen=True, slots=True)
class _Place:
    """One list: the segments that it spans, both ends included, and its name."""

    first: str
    last: str
    name: str


class WalLists:
    """The lists of one source's WAL.

    Args:
        storage: where the repository lies.
        layout: the source's.
    """

    def __init__(self, storage: Storage, layout: SourceLayout) -> None:
        self._storage = storage
        self._layout = layout
        self._lock = threading.Lock()
        self._noted: list[StoredObject] = []
        self._since = 0.0
        self._places: dict[str, tuple[list[_Place], list[str]]] = {}
        self._content: dict[str, dict[str, Listed]] = {}

    # ---- writing

    def note(self, stored: StoredObject) -> None:
        """Remember what was stored, and list it together with others when there are enough of them."""
        with self._lock:
            self._since = self._since if self._noted else time.monotonic()
            self._noted.append(stored)
            waited = time.monotonic() - self._since
            due = len(self._noted) >= LISTED_TOGETHER or waited > _LONGEST_WAIT_SECONDS
        if due:
            self.flush()

    def flush(self) -> None:
        """List all that was noted; what cannot be listed now stays noted, because the WAL itself is stored."""
        with self._lock:
            noted, self._noted = self._noted, []
        try:
            self.write(noted, How.WRITTEN)
        except SeawallError as error:
            log.warning("stored WAL of %s is not listed yet: %s", self._layout.source, error)
            with self._lock:
                self._noted = (noted + self._noted)[-_MOST_NOTED:]

    def write(self, stored: Iterable[StoredObject], how: How) -> None:
        """Write lists of these objects, one for each timeline.

        Raises:
            StorageError: a list is not stored.
        """
        for (timeline, is_history), members in groupby(sorted(stored, key=_order), key=lambda one: _order(one)[:2]):
            rows = list(members)
            keys = [_key(one.name) for one in rows]
            span = _HISTORY if is_history else f"{keys[0]}-{keys[-1]}"
            name = f"{self._layout.wal_lists}{timeline}/{span}-{secrets.token_hex(4)}.json"
            listed = [[one.name, one.stored_bytes, one.stored_sha256] for one in rows]
            documents.put(self._storage, name, {"how": how.value, "objects": listed})

    # ---- reading

    def find(self, name: str) -> Listed | None:
        """What the lists say of an object of WAL, or None while none names it."""
        best: Listed | None = None
        for place in self._spanning(name):
            found = self._rows(place.name).get(name)
            if found is not None and (best is None or best.how is How.READ):
                best = found
        return best

    def refuse_other(self, name: str, stored_bytes: int, sha256: str) -> None:
        """Compare what lies there with what is listed.

        Raises:
            Damaged: they differ.
        """
        listed = self.find(name)
        if listed is not None and (listed.stored_bytes, listed.sha256) != (stored_bytes, sha256):
            raise Damaged(f"{name} is not what was stored: its SHA-256 differs from the one that was listed")

    def names_within(self, timeline: int) -> Iterator[tuple[str, str, str]]:
        """Every list of a timeline's segments: the first and the last that it spans, and its name."""
        for place in self._listed_places(f"{timeline:08X}"):
            if place.first != _HISTORY:
                yield place.first, place.last, place.name

    def _spanning(self, name: str) -> Iterator[_Place]:
        key = _key(name)
        timeline = key[:8]
        if timeline not in self._places:
            places = sorted(self._listed_places(timeline), key=lambda place: place.first)
            self._places[timeline] = places, _greatest_so_far(places)
        places, reach = self._places[timeline]
        if name.startswith(self._layout.histories):
            yield from (place for place in places if place.first == _HISTORY)
            return
        # Lists overlap only where segments were stored side by side, so this ends after a few steps.
        for index in range(bisect_right(places, key, key=lambda place: place.first) - 1, -1, -1):
            if reach[index] < key:
                return
            if places[index].last >= key:
                yield places[index]

    def _listed_places(self, timeline: str) -> Iterator[_Place]:
        for stat in self._storage.list(f"{self._layout.wal_lists}{timeline}/"):
            match = _LIST.fullmatch(stat.name.removeprefix(self._layout.wal_lists))
            if match:
                yield _Place(match[2] or _HISTORY, match[3] or "", stat.name)

    def _rows(self, name: str) -> dict[str, Listed]:
        if name not in self._content:
            try:
                self._content[name] = self._read(name)
            except _UNREADABLE as error:
                # A damaged list is found as a document; it must not make sound WAL look damaged.
                log.warning("a list of stored WAL is passed over: %s", error)
                self._content[name] = {}
        return self._content[name]

    def _read(self, name: str) -> dict[str, Listed]:
        document = documents.get(self._storage, name)
        try:
            how = How(document["how"])
            return {str(o): Listed(int(size), str(sha256), how) for o, size, sha256 in document["objects"]}
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"{name} is no list of stored WAL") from error


def spans(name: str) -> tuple[str, str] | None:
    """The first and the last segment that a list spans by its name; None for a list of histories, or another object."""
    match = _LIST.fullmatch("/".join(name.split("/")[-2:]))
    return (match[2], match[3]) if match and match[2] else None


def _key(name: str) -> str:
    """The segment that an object belongs to, or the timeline of a history."""
    return name.rsplit("/", 1)[1].partition(".")[0]


def _order(stored: StoredObject) -> tuple[str, bool, str]:
    key = _key(stored.name)
    return key[:8], len(key) == len("00000001"), stored.name


def _greatest_so_far(places: Sequence[_Place]) -> list[str]:
    """For each list, the last segment that it or any before it reaches."""
    found: list[str] = []
    for place in places:
        found.append(max(place.last, found[-1]) if found else place.last)
    return found
