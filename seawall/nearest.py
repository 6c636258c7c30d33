"""Several copies of one repository as one storage to read from: each object from the nearest sound copy.

What the repository can prove (see `repository.evidence`) is proved before its first byte is handed out: an object is
read into a file of this process, compared, and only then given. So a restore or verification above reads a damaged or
missing object from the next location without knowing of it. What cannot be proved, WAL without a private key, is taken
from the first location that has it.

A location that does not answer is left out, with a notice; only when none answers is that an error. A mark of expiry
counts when every location that holds the backup has it: one that keeps backups longer still offers them.

Not guaranteed: that ranges are cheap. The first range of an object reads all of it once in order to prove it.
"""

from __future__ import annotations

import heapq
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import IO, TypeVar

from seawall.errors import (
    Damaged,
    NotARepository,
    ObjectMissing,
    ObjectTruncated,
    RepositoryError,
    StorageDenied,
    StorageError,
    StorageUnreachable,
)
from seawall.events import Noticed, Observer
from seawall.keys import KeyRing
from seawall.repository import Repository, SourceArea
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS
from seawall.settings import PRIMARY
from seawall.storage.base import PIECE_BYTES, Bytes, Capabilities, Stat, Storage
from seawall.storage.wrappers import Wrapper

_T = TypeVar("_T")

_IN_MEMORY_BYTES = 4 * 1024 * 1024
_MARK = re.compile(r"sources/([^/]+)/expired/([^/]+)\.json")
_DAMAGE = (Damaged, ObjectTruncated)
# A place that is not there, such as a folder that is not mounted, says nothing of its objects.
SILENT = (StorageUnreachable, StorageDenied, NotARepository)
_TROUBLE = (StorageError, NotARepository)


@dataclass(frozen=True, slots=True)
class Copy:
    """A location and its storage."""

    name: str
    storage: Storage


class Nearest:
    """The copies as one storage, for reading only; the audit is written into the primary.

    Args:
        copies: the nearest first.
        evidence: of the same copies.
        observe: hears when another location steps in.
    """

    def __init__(self, copies: Sequence[Copy], evidence: Evidence, observe: Observer) -> None:
        self._copies = tuple(copies)
        self._evidence = evidence
        self._observe = observe
        self._silent: set[str] = set()
        self._sound: dict[str, tuple[Storage, str]] = {}
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self.found_wrong: dict[tuple[str, str], RepositoryError | StorageError] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the locations, the nearest first."""
        return tuple(copy.name for copy in self._copies)

    def damaged(self) -> dict[str, tuple[str, ...]]:
        """The objects that were found damaged so far, by location."""
        found: dict[str, tuple[str, ...]] = {}
        for (place, name), error in sorted(self.found_wrong.items()):
            if isinstance(error, _DAMAGE):
                found[place] = (*found.get(place, ()), name)
        return found

    def without(self, name: str) -> Nearest | None:
        """The copies in other locations than this one, None where there are none; they are closed with all of them."""
        rest = [copy for copy in self._copies if copy.name != name]
        return Nearest(rest, Evidence(telling(rest)), self._observe) if rest else None

    @property
    def url(self) -> str:
        return " or ".join(copy.storage.url for copy in self._copies)

    @property
    def capabilities(self) -> Capabilities:
        return self._copies[0].storage.capabilities

    # ---- reading

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if not self._evidence.can_tell(name):
            yield from self._unproved(name, offset, length)
            return
        if offset or length is not None:
            storage, stored_as = self._sound_place(name)
            yield from storage.get(stored_as, offset, length)
            return
        with self._proved(name) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _proved(self, name: str) -> IO[bytes]:
        """The object's bytes from the nearest sound copy, in a file of ours."""
        for copy, stored_as in self._places(name):
            file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
            try:
                self._evidence.refuse_damaged(name, _into(file, copy.storage.get(stored_as)))
            except (*_TROUBLE, Damaged) as error:
                file.close()
                self._wrong(copy, name, error)
            else:
                file.seek(0)
                return file
        raise self._nowhere(name)

    def _sound_place(self, name: str) -> tuple[Storage, str]:
        with self._lock:
            known = self._sound.get(name)
        if known is not None:
            return known
        for copy, stored_as in self._places(name):
            try:
                self._evidence.refuse_damaged(name, copy.storage.get(stored_as))
            except (*_TROUBLE, Damaged) as error:
                self._wrong(copy, name, error)
                continue
            with self._lock:
                return self._sound.setdefault(name, (copy.storage, stored_as))
        raise self._nowhere(name)

    def _unproved(self, name: str, offset: int, length: int | None) -> Iterator[bytes]:
        for copy in self._answering():
            given = 0
            try:
                for piece in copy.storage.get(name, offset, length):
                    given += len(piece)
                    yield piece
                return
            except _TROUBLE as error:
                self._wrong(copy, name, error)
                # Another copy cannot go on where this one broke off: nobody knows that they hold the same.
                if given:
                    raise
        raise self._nowhere(name)

    def _places(self, name: str) -> Iterator[tuple[Copy, str]]:
        """Where a copy may lie: under its name everywhere, then as what repaired it."""
        for copy in self._answering():
            yield copy, name
        for copy in self._answering():
            if _is_there(copy.storage, f"{REPAIRS}{name}"):
                yield copy, f"{REPAIRS}{name}"

    def stat(self, name: str) -> Stat:
        if (mark := _MARK.fullmatch(name)) and not mark[2].startswith("wal-"):
            return self._mark(name, f"sources/{mark[1]}/backups/{mark[2]}/manifest")
        return self._of_right_size(name) or self._first(name, lambda storage: storage.stat(name))

    def _of_right_size(self, name: str) -> Stat | None:
        """The nearest copy that is as large as it should be; None where nothing tells, or none is."""
        size_bytes = self._evidence.size_bytes(name)
        if size_bytes is None:
            return None
        for copy, stored_as in self._places(name):
            try:
                found = copy.storage.stat(stored_as)
            except _TROUBLE as error:
                self._wrong(copy, name, error)
                continue
            if found.size_bytes == size_bytes:
                return replace(found, name=name)
        return None

    def _mark(self, name: str, manifest: str) -> Stat:
        found: Stat | None = None
        for copy in self._answering():
            try:
                marked = _stat(copy.storage, name)
                if marked is None and _is_there(copy.storage, manifest):
                    raise ObjectMissing(f"{name} does not exist in {copy.storage.url}, which still lists the backup")
            except SILENT as error:
                self._wrong(copy, name, error)
                continue
            found = found or marked
        if found is None:
            raise ObjectMissing(f"{name} does not exist in {self.url}")
        return found

    def list(self, prefix: str = "") -> Iterator[Stat]:
        previous = ""
        for stat in heapq.merge(*self._each(lambda storage: [*storage.list(prefix)]), key=lambda stat: stat.name):
            if stat.name != previous:
                previous = stat.name
                yield stat

    def children(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(set().union(*self._each(lambda storage: storage.children(folder)))))

    def now(self) -> datetime:
        return self._first("its clock", lambda storage: storage.now())

    def free_bytes(self) -> int | None:
        return self._first("free space", lambda storage: storage.free_bytes())

    # ---- what reading does not need

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        """Only the audit can be written, and only into the primary, which is where its chain goes on.

        Raises:
            StorageDenied: anything else, or anywhere else.
        """
        first = self._copies[0]
        if name.startswith("audit/") and first.name == PRIMARY and first.name not in self._silent:
            return first.storage.put(name, chunks)
        raise StorageDenied(f"{name} is not written: several locations are open for reading only", hint="")

    def delete(self, name: str) -> None:
        raise StorageDenied(f"{name} is not deleted: several locations are open for reading only", hint="")

    def sweep(self, older_than: timedelta) -> int:  # noqa: ARG002 - the contract's signature
        raise StorageDenied("nothing is swept: several locations are open for reading only", hint="")

    def close(self) -> None:
        for copy in self._copies:
            copy.storage.close()

    # ---- asking

    def _answering(self) -> tuple[Copy, ...]:
        with self._lock:
            # When none answered the last time, all are asked again: an outage may be over.
            return tuple(copy for copy in self._copies if copy.name not in self._silent) or self._copies

    def _first(self, name: str, ask: Callable[[Storage], _T]) -> _T:
        for copy in self._answering():
            try:
                answer = ask(copy.storage)
            except _TROUBLE as error:
                self._wrong(copy, name, error)
            else:
                self._answered.add(copy.name)
                return answer
        raise self._nowhere(name)

    def _each(self, ask: Callable[[Storage], _T]) -> tuple[_T, ...]:
        answers = []
        for copy in self._answering():
            try:
                answers.append(ask(copy.storage))
            except SILENT as error:
                self._wrong(copy, "its list", error)
            else:
                self._answered.add(copy.name)
        if not answers:
            raise StorageUnreachable(f"none of the locations answers: {', '.join(copy.name for copy in self._copies)}")
        return tuple(answers)

    def _wrong(self, copy: Copy, name: str, error: RepositoryError | StorageError) -> None:
        if isinstance(error, SILENT):
            with self._lock:
                is_new = copy.name not in self._silent
                self._silent.add(copy.name)
            if is_new:
                text = f"location {copy.name} does not answer and is left out: {error.message}"
                self._observe.hear(Noticed("medium", "location-silent", text))
            return
        self.found_wrong.setdefault((copy.name, name), error)
        if isinstance(error, _DAMAGE):
            text = f"{name} is damaged in location {copy.name}; another copy is looked for"
            self._observe.hear(Noticed("high", "copy-damaged", text))

    def _nowhere(self, name: str) -> StorageError | Damaged:
        wrong = {place: error for (place, what), error in self.found_wrong.items() if what == name}
        damaged = sorted(place for place, error in wrong.items() if isinstance(error, _DAMAGE))
        if damaged:
            return Damaged(f"no copy of {name} is sound; it is damaged in {', '.join(damaged)}")
        lost = sorted(self._silent & self._answered)
        # One that never answered was announced as left out. One that went away meanwhile may have held it: to call it
        # absent would end recovery too early.
        if lost or not wrong:
            return StorageUnreachable(
                f"{name} is in no location that answers, and {', '.join(lost) or 'none'} does not"
            )
        return ObjectMissing(f"{name} does not exist in {self.url}")


def as_read(copy: Copy, ring: KeyRing | None, observe: Observer) -> Storage:
    """One location as it is read: what is damaged and locked there is taken from what repaired it."""
    repaired = frozenset(stat.name.removeprefix(REPAIRS) for stat in copy.storage.list(REPAIRS))
    if not repaired:
        return copy.storage
    return _Mended(copy.storage, Nearest([copy], Evidence(telling([copy]), ring), observe), repaired)


class _Mended(Wrapper):
    """A location in which the objects that were repaired are proved before they are given; the others are read once."""

    def __init__(self, inner: Storage, proved: Nearest, repaired: frozenset[str]) -> None:
        super().__init__(inner)
        self._proved, self._repaired = proved, repaired

    def _at(self, name: str) -> Storage:
        return self._proved if name in self._repaired else self.inner

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._at(name).get(name, offset, length)

    def stat(self, name: str) -> Stat:
        return self._at(name).stat(name)


def source_as_read(repository: Repository, source: str, ring: KeyRing | None, observe: Observer) -> SourceArea:
    """A source as a restore reads it, from the primary with what repaired it, or from the copies that stand in."""
    storage = repository.storage
    if isinstance(storage, Nearest):
        return repository.source(source)
    return SourceArea(as_read(Copy(PRIMARY, storage), ring, observe), source)


def telling(copies: Iterable[Copy]) -> list[Storage]:
    """What tells sound objects from others, for `Evidence`: the locations, and what repaired documents of theirs."""
    storages = [copy.storage for copy in copies]
    return [*storages, *(_Repairs(storage) for storage in storages)]


class _Repairs(Wrapper):
    """What lies under `repairs/`, under the names of the objects that it stands for; for reading."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self.inner.get(f"{REPAIRS}{name}", offset, length)

    def stat(self, name: str) -> Stat:
        return replace(self.inner.stat(f"{REPAIRS}{name}"), name=name)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        for stat in self.inner.list(f"{REPAIRS}{prefix}"):
            yield replace(stat, name=stat.name.removeprefix(REPAIRS))

    def children(self, folder: str) -> tuple[str, ...]:
        return self.inner.children(f"{REPAIRS}{folder}")


def _into(file: IO[bytes], chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _stat(storage: Storage, name: str) -> Stat | None:
    try:
        return storage.stat(name)
    except ObjectMissing:
        return None


def _is_there(storage: Storage, name: str) -> bool:
    return _stat(storage, name) is not None
