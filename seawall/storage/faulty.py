"""A storage that fails as its script says, for tests of everything above storage.

The faults are those that real storages have: a request that fails before or after it was done, one that hangs, one
that breaks off half way, an answer that is out of date, a disk that fills. `at` is called at each boundary, so that a
crash test can stop the process there.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from seawall.errors import ObjectMissing, SeawallError, StorageFull, StorageUnreachable, UsageError
from seawall.storage.base import Bytes, Capabilities, Stat, Storage
from seawall.storage.immutability import lockable
from seawall.storage.wrappers import Sleep, Wrapper

_T = TypeVar("_T")

OPERATIONS = ("put", "get", "stat", "list", "children", "delete", "now", "free_bytes")


class Trouble(StrEnum):
    """What goes wrong."""

    FAIL_BEFORE = "fail-before"  # nothing is done
    FAIL_AFTER = "fail-after"  # it is done, but the answer is lost
    HANG = "hang"  # it sleeps, then goes on
    CUT_SHORT = "cut-short"  # put and get break off after `after_bytes`, a short one at its end
    STALE = "stale"  # list and children answer as before the last `lag` puts and deletes made through this wrapper
    DISK_FULL = "disk-full"  # all puts together may write `after_bytes`


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of a script.

    Args:
        operation: a method's name, or `*`.
        name: shell pattern for the object's name, prefix or folder.
        skip: so many matching calls go well first.
        times: so many calls fail then; 0 for all. A full disk stays full.
        error: made from a message; for FAIL_BEFORE, FAIL_AFTER and CUT_SHORT.
        after_bytes: for CUT_SHORT and DISK_FULL.
        seconds: for HANG.
        lag: for STALE.
    """

    trouble: Trouble
    operation: str = "*"
    name: str = "*"
    skip: int = 0
    times: int = 1
    error: Callable[[str], SeawallError] = StorageUnreachable
    after_bytes: int = 0
    seconds: float = 0.0
    lag: int = 1

    def concerns(self, operation: str, name: str) -> bool:
        return self.operation in ("*", operation) and fnmatch.fnmatchcase(name, self.name)


class Killed(BaseException):
    """Stands for the end of the process where a test cannot afford a real one; no handler for errors catches it."""


def die() -> None:
    """End this process as a power cut or `kill -9` would: no cleanup of any kind runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Raise Killed."""
    raise Killed


class KillPoint:
    """Acts at the `number`-th boundary, counted from 1, and at every one after it: the dead do nothing more."""

    def __init__(self, number: int, act: Callable[[], None] = stop) -> None:
        self._number = number
        self._act = act
        self._lock = threading.Lock()
        self.passed: list[tuple[str, str]] = []

    @property
    def reached(self) -> bool:
        return len(self.passed) >= self._number

    def __call__(self, point: str, name: str) -> None:
        with self._lock:
            self.passed.append((point, name))
        if self.reached:
            self._act()


class Locking(Wrapper):
    """As a bucket with a default retention: whatever is put is immutable for a while from that moment.

    Args:
        inner: can lock objects (`immutability.Lockable`), such as a `MemoryStorage`.
        span: for how long.
    """

    def __init__(self, inner: Storage, span: timedelta) -> None:
        super().__init__(inner)
        locks = lockable(inner)
        if locks is None:
            raise UsageError(f"{inner.url} cannot lock objects")
        self._locks = locks
        self._span = span

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        return self._locks.put_locked(name, chunks, self.inner.now() + self._span)


class Faulty(Wrapper):
    """Hands calls on, except where the script says otherwise.

    Args:
        script: faults; each call suffers from all that concern it, in this order.
        at: called as `at(point, name)` where point is `<operation>.before`, `<operation>.after`, `put.chunk` or
            `get.piece`.
        sleep: what HANG does with its seconds.
    """

    def __init__(
        self,
        inner: Storage,
        script: Sequence[Fault] = (),
        *,
        at: Callable[[str, str], None] = lambda _point, _name: None,
        sleep: Sleep = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._script = tuple(script)
        self._seen = [0] * len(self._script)
        self._at = at
        self._sleep = sleep
        self._lock = threading.Lock()
        self._written_bytes = 0
        self._changes: list[tuple[str, Stat]] = []
        self.calls: list[tuple[str, str]] = []

    @property
    def capabilities(self) -> Capabilities:
        stale = any(fault.trouble is Trouble.STALE for fault in self._script)
        return replace(self.inner.capabilities, consistent_list=False) if stale else self.inner.capabilities

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        faults = self._begin("put", name)
        stat = self.inner.put(name, self._sent(name, chunks, faults))
        self._changes.append(("put", stat))
        self._end("put", name, faults)
        return stat

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        faults = self._begin("get", name)
        cut = _only(faults, Trouble.CUT_SHORT)
        left = cut.after_bytes if cut else 0
        for piece in self.inner.get(name, offset, length):
            self._at("get.piece", name)
            if cut and left < len(piece):
                if left:
                    yield piece[:left]
                raise cut.error(f"the connection broke while {name} was read")
            left -= len(piece)
            yield piece
        if cut:
            raise cut.error(f"the connection broke at the end of {name}")
        self._end("get", name, faults)

    def stat(self, name: str) -> Stat:
        return self._around("stat", name, lambda _faults: self.inner.stat(name))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        yield from self._around("list", prefix, lambda faults: self._listed(prefix, faults))

    def children(self, folder: str) -> tuple[str, ...]:
        return self._around("children", folder, lambda faults: self._children(folder, faults))

    def delete(self, name: str) -> None:
        faults = self._begin("delete", name)
        gone = self._existing(name)
        self.inner.delete(name)
        self._changes.extend(("delete", stat) for stat in gone)
        self._end("delete", name, faults)

    def now(self) -> datetime:
        return self._around("now", "", lambda _faults: self.inner.now())

    def free_bytes(self) -> int | None:
        return self._around("free_bytes", "", lambda _faults: self.inner.free_bytes())

    def _around(self, operation: str, name: str, call: Callable[[Sequence[Fault]], _T]) -> _T:
        faults = self._begin(operation, name)
        answer = call(faults)
        self._end(operation, name, faults)
        return answer

    def _begin(self, operation: str, name: str) -> tuple[Fault, ...]:
        self._at(f"{operation}.before", name)
        with self._lock:
            self.calls.append((operation, name))
            faults = tuple(self._due(operation, name))
        for fault in faults:
            if fault.trouble is Trouble.HANG:
                self._sleep(fault.seconds)
            if fault.trouble is Trouble.FAIL_BEFORE:
                raise fault.error(f"{operation} {name} was refused")
        return faults

    def _due(self, operation: str, name: str) -> Iterator[Fault]:
        for index, fault in enumerate(self._script):
            if not fault.concerns(operation, name):
                continue
            turn = self._seen[index]
            self._seen[index] += 1
            lasting = fault.times == 0 or fault.trouble is Trouble.DISK_FULL
            if turn >= fault.skip and (lasting or turn < fault.skip + fault.times):
                yield fault

    def _end(self, operation: str, name: str, faults: Sequence[Fault]) -> None:
        self._at(f"{operation}.after", name)
        if lost := _only(faults, Trouble.FAIL_AFTER):
            raise lost.error(f"the answer to {operation} {name} was lost")

    def _sent(self, name: str, chunks: Iterable[Bytes], faults: Sequence[Fault]) -> Iterator[Bytes]:
        """The chunks; a fault raised here makes the storage below drop the object by its own means."""
        cut, full = _only(faults, Trouble.CUT_SHORT), _only(faults, Trouble.DISK_FULL)
        sent = 0
        for chunk in chunks:
            sent += memoryview(chunk).nbytes
            if cut and sent > cut.after_bytes:
                raise cut.error(f"the connection broke while {name} was written")
            with self._lock:
                if full and self._written_bytes + memoryview(chunk).nbytes > full.after_bytes:
                    raise StorageFull(f"{name}: {full.after_bytes} bytes are all there is")
                self._written_bytes += memoryview(chunk).nbytes
            yield chunk
            self._at("put.chunk", name)
        if cut and sent <= cut.after_bytes:
            raise cut.error(f"the connection broke at the end of {name}")

    def _existing(self, name: str) -> tuple[Stat, ...]:
        try:
            return (self.inner.stat(name),)
        except ObjectMissing:
            return ()

    def _listed(self, prefix: str, faults: Sequence[Fault]) -> Iterable[Stat]:
        stale = _only(faults, Trouble.STALE)
        return self._as_before(stale.lag, prefix) if stale else self.inner.list(prefix)

    def _children(self, folder: str, faults: Sequence[Fault]) -> tuple[str, ...]:
        stale = _only(faults, Trouble.STALE)
        if not stale:
            return self.inner.children(folder)
        names = (stat.name for stat in self._as_before(stale.lag, folder))
        return tuple(sorted({name.removeprefix(folder).partition("/")[0] for name in names}))

    def _as_before(self, lag: int, prefix: str) -> Sequence[Stat]:
        """The list without the last `lag` changes."""
        known = {stat.name: stat for stat in self.inner.list(prefix)}
        for change, stat in reversed(self._changes[-lag:] if lag else []):
            if change == "put":
                known.pop(stat.name, None)
            elif stat.name.startswith(prefix):
                known[stat.name] = stat
        return [known[name] for name in sorted(known)]


def _only(faults: Sequence[Fault], trouble: Trouble) -> Fault | None:
    return next((fault for fault in faults if fault.trouble is trouble), None)
