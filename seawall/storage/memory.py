"""Objects in this process's memory: for tests, demos and dry runs.

It keeps the whole contract, also the parts that a dictionary would not: write-once, no object below another object,
a limit of space, locks. What it holds is gone with the process.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from seawall.errors import ObjectExists, ObjectLocked, ObjectMissing, ObjectTruncated, StorageFull
from seawall.storage.base import (
    PIECE_BYTES,
    Bytes,
    Capabilities,
    Stat,
    checked_folder,
    checked_object_name,
    checked_prefix,
    checked_range,
)
from seawall.storage.immutability import Retention

_shared: dict[str, MemoryStorage] = {}
_shared_lock = threading.Lock()


def open_url(url: str, *_how: object) -> MemoryStorage:
    """`memory:NAME` is one storage for the whole process; `memory:` alone is a new one each time."""
    name = url.removeprefix("memory:")
    if not name:
        return MemoryStorage()
    checked_object_name(name)
    with _shared_lock:
        return _shared.setdefault(name, MemoryStorage(name))


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    stat: Stat


class MemoryStorage:
    """Objects in a dictionary; safe to use from several threads.

    Args:
        name: shown in `url`.
        capacity_bytes: above this a put raises StorageFull; None for as much as there is.
        clock: the storage's own clock.
    """

    def __init__(
        self,
        name: str = "",
        *,
        capacity_bytes: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._capacity = capacity_bytes
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._names: list[str] = []  # sorted, so that a prefix is a slice
        self._used = 0
        self._retained: dict[str, Retention] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"memory:{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            create_only=True, consistent_list=True, object_lock=True, free_space=self._capacity is not None
        )

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        checked_object_name(name)
        with self._lock:
            self._refuse_existing(name)
        content = b"".join(bytes(chunk) for chunk in chunks)
        with self._lock:
            self._refuse_existing(name)
            if self._capacity is not None and self._used + len(content) > self._capacity:
                raise StorageFull(f"cannot write {name} in {self.url}: {self._capacity} bytes are all there is")
            made = _Object(content, Stat(name, len(content), self._clock()))
            self._objects[name] = made
            bisect.insort(self._names, name)
            self._used += len(content)
        return made.stat

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        checked_range(offset, length)
        content = self._object(name).content
        end = len(content) if length is None else offset + length
        if max(offset, end) > len(content):
            raise ObjectTruncated(
                f"{name} in {self.url} has {len(content)} bytes, but bytes {offset} to {end} are wanted"
            )
        for start in range(offset, end, PIECE_BYTES):
            yield content[start : min(start + PIECE_BYTES, end)]

    def stat(self, name: str) -> Stat:
        return self._object(name).stat

    def list(self, prefix: str = "") -> Iterator[Stat]:
        checked_prefix(prefix)
        with self._lock:
            stats = [self._objects[name].stat for name in self._below(prefix)]
        yield from stats

    def children(self, folder: str) -> tuple[str, ...]:
        checked_folder(folder)
        with self._lock:
            return tuple(sorted({name[len(folder) :].partition("/")[0] for name in self._below(folder)}))

    def delete(self, name: str) -> None:
        checked_object_name(name)
        with self._lock:
            kept = self._retained.get(name, Retention())
            if kept.locked(self._clock()):
                why = "is under a legal hold" if kept.hold else f"is immutable until {kept.until:%Y-%m-%d %H:%M} UTC"
                raise ObjectLocked(f"{name} in {self.url} {why}")
            self._retained.pop(name, None)
            gone = self._objects.pop(name, None)
            if gone is not None:
                self._names.pop(bisect.bisect_left(self._names, name))
                self._used -= len(gone.content)

    def can_lock(self) -> bool:
        return True

    def put_locked(self, name: str, chunks: Iterable[Bytes], until: datetime) -> Stat:
        made = self.put(name, chunks)
        self.retain(name, until)
        return made

    def retain(self, name: str, until: datetime) -> None:
        kept = self.retention(name)
        if kept.until is None or kept.until < until:
            self._retained[name] = replace(kept, until=until)

    def retention(self, name: str) -> Retention:
        self._object(name)
        return self._retained.get(name, Retention())

    def hold(self, name: str, on: bool) -> None:
        self._retained[name] = replace(self.retention(name), hold=on)

    def tamper(self, name: str) -> tuple[str, ...]:
        try:
            self.delete(name)
        except ObjectLocked:
            return ()
        return ("could be deleted",)

    def now(self) -> datetime:
        return self._clock()

    def free_bytes(self) -> int | None:
        with self._lock:
            return None if self._capacity is None else self._capacity - self._used

    def sweep(self, older_than: timedelta) -> int:  # noqa: ARG002 - the contract's signature
        """Nothing: an interrupted put leaves nothing in memory."""
        return 0

    def close(self) -> None:
        """What is stored stays for whoever opens the same name again."""

    def _object(self, name: str) -> _Object:
        checked_object_name(name)
        with self._lock:
            try:
                return self._objects[name]
            except KeyError as error:
                raise ObjectMissing(f"{name} does not exist in {self.url}") from error

    def _below(self, prefix: str) -> Sequence[str]:
        start = bisect.bisect_left(self._names, prefix)
        # No name holds a character above "z", so this is behind every name with the prefix.
        return self._names[start : bisect.bisect_left(self._names, f"{prefix}\x7f")]

    def _refuse_existing(self, name: str) -> None:
        if name in self._objects:
            raise ObjectExists(f"{name} exists already in {self.url}")
        parts = name.split("/")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if self._below(f"{name}/") or any(folder in self._objects for folder in above):
            raise ObjectExists(f"{name} in {self.url} would be an object and a folder at once")
