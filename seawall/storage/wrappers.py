"""Storages around a storage: retry, bandwidth, concurrency, read-only.

Each keeps the contract of what it wraps. The order that `open_storage` builds is Retrying(Limited(Throttled(driver))):
a pause between attempts occupies no place, and every attempt pays for the bytes that it sends.

Not guaranteed: `Limited` counts requests that a driver is working on, not open streams; a stream whose producer or
consumer is busy elsewhere gives its place away, so that no two streams can wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar

from seawall.errors import Cancelled, ObjectExists, StorageDenied, StorageError
from seawall.events import Cancel
from seawall.storage.base import Bytes, Capabilities, Replayable, Stat, Storage
from seawall.storage.retry import RetryPolicy, Sleep, Tries, jitter, repeated

__all__ = [
    "Limited",
    "ReadOnly",
    "RetryPolicy",
    "Retrying",
    "Sleep",
    "Throttled",
    "TokenBucket",
    "Wrapper",
    "cancellable_sleep",
]

_T = TypeVar("_T")
_B = TypeVar("_B", bound=Bytes)

# A thread that waits for bandwidth looks this often whether the rate was changed.
_SLICE_SECONDS = 0.1


def cancellable_sleep(cancel: Cancel) -> Sleep:
    """A sleep for `TokenBucket` and `Retrying` that raises Cancelled as soon as somebody asks to stop."""

    def sleep(seconds: float) -> None:
        if cancel.wait(seconds):
            raise Cancelled("waiting for the storage was cancelled")

    return sleep


class Wrapper:
    """A storage that hands everything on; subclasses change what they are for."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        return self.inner.put(name, chunks)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self.inner.get(name, offset, length)

    def stat(self, name: str) -> Stat:
        return self.inner.stat(name)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        return self.inner.list(prefix)

    def children(self, folder: str) -> tuple[str, ...]:
        return self.inner.children(folder)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def now(self) -> datetime:
        return self.inner.now()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def sweep(self, older_than: timedelta) -> int:
        return self.inner.sweep(older_than)

    def close(self) -> None:
        self.inner.close()


class ReadOnly(Wrapper):
    """Refuses everything that would change an object."""

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:  # noqa: ARG002 - the contract's signature
        raise StorageDenied(f"{name} is not written: {self.url} is open for reading only", hint="")

    def delete(self, name: str) -> None:
        raise StorageDenied(f"{name} is not deleted: {self.url} is open for reading only", hint="")

    def sweep(self, older_than: timedelta) -> int:  # noqa: ARG002 - the contract's signature
        raise StorageDenied(f"{self.url} is not swept: it is open for reading only", hint="")


# -- retry


class _Delivery:
    """Chunks on their way into a driver, and what became of them in each attempt."""

    def __init__(self, chunks: Iterable[Bytes]) -> None:
        self._chunks = chunks
        # Only what is known to begin anew counts: an iterable around a generator would go on in its middle, and the
        # second half of an object would be stored under its name.
        self._once_only = not isinstance(chunks, (list, tuple, Replayable))
        self._touched = False
        self.source_failed = False
        self.sent_whole = False

    @property
    def repeatable(self) -> bool:
        """What cannot begin anew can be sent again only as long as nothing was taken from it."""
        return not (self.source_failed or (self._once_only and self._touched))

    def attempt(self) -> Iterator[Bytes]:
        try:
            source = iter(self._chunks)
            while True:
                self._touched = True
                try:
                    chunk = next(source)
                except StopIteration:
                    break
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            self.source_failed = True
            raise
        self.sent_whole = True


class Retrying(Wrapper):
    """Repeats what failed for a passing reason.

    A put is repeated if its chunks are a list, a tuple or `Replayable`, or if none was taken yet; any other iterable
    that was begun is not sent again, and the error goes to the caller, who knows how to make the bytes anew. A repeated
    put that meets ObjectExists after an earlier attempt sent everything compares size and SHA-256 with what was sent:
    identical means that the earlier attempt succeeded and only its answer was lost. A get goes on where it broke off;
    a list starts again and leaves out what it yielded.

    Args:
        sleep: called with seconds; may raise to cancel.
        randomness: a number from 0 up to 1 for each pause.
    """

    def __init__(
        self,
        inner: Storage,
        policy: RetryPolicy | None = None,
        *,
        sleep: Sleep = time.sleep,
        randomness: Callable[[], float] = jitter,
    ) -> None:
        super().__init__(inner)
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._randomness = randomness

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        tries = self._tries(f"put {name}")
        delivery = _Delivery(chunks)
        while True:
            sent_before = delivery.sent_whole
            try:
                return self.inner.put(name, delivery.attempt())
            except ObjectExists:
                stored = self._identical(name, chunks) if sent_before else None
                if stored is None:
                    raise
                return stored
            except StorageError as error:
                if not delivery.repeatable or not tries.again(error):
                    raise

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        tries = self._tries(f"get {name}")
        done = 0
        while True:
            try:
                for piece in self.inner.get(name, offset + done, None if length is None else length - done):
                    done += len(piece)
                    tries.progressed()
                    yield piece
                return
            except StorageError as error:
                if not tries.again(error):
                    raise

    def stat(self, name: str) -> Stat:
        return self._repeat(f"stat {name}", lambda: self.inner.stat(name))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        tries = self._tries(f"list {prefix}")
        last = ""
        while True:
            try:
                for stat in self.inner.list(prefix):
                    if stat.name > last:
                        last = stat.name
                        tries.progressed()
                        yield stat
                return
            except StorageError as error:
                if not tries.again(error):
                    raise

    def children(self, folder: str) -> tuple[str, ...]:
        return self._repeat(f"children of {folder}", lambda: self.inner.children(folder))

    def delete(self, name: str) -> None:
        self._repeat(f"delete {name}", lambda: self.inner.delete(name))

    def now(self) -> datetime:
        return self._repeat("now", self.inner.now)

    def free_bytes(self) -> int | None:
        return self._repeat("free_bytes", self.inner.free_bytes)

    def sweep(self, older_than: timedelta) -> int:
        return self._repeat("sweep", lambda: self.inner.sweep(older_than))

    def _tries(self, what: str) -> Tries:
        return Tries(self._policy, self._sleep, self._randomness, what)

    def _repeat(self, what: str, call: Callable[[], _T]) -> _T:
        return repeated(what, call, self._policy, self._sleep, self._randomness)

    def _identical(self, name: str, chunks: Iterable[Bytes]) -> Stat | None:
        """What is stored, if it is what `chunks` produce."""
        stored = self.stat(name)
        size, digest = _fingerprint(chunks)
        same = stored.size_bytes == size and _fingerprint(self.get(name)) == (size, digest)
        return stored if same else None


def _fingerprint(chunks: Iterable[Bytes]) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    for chunk in chunks:
        digest.update(chunk)
        size += memoryview(chunk).nbytes
    return size, digest.hexdigest()


# -- bandwidth


class TokenBucket:
    """Bytes per second that several threads share, first come, first served.

    Each taker gets a ticket, the count of bytes asked for up to and with its own, and waits until as many were granted.
    So a chunk larger than the burst passes too, and a new rate holds for those who wait already.

    Args:
        rate: bytes per second, 0 for no limit; or what is asked for it at each step, and must answer at once.
        burst: bytes that may pass at once after a pause; a tenth of a second's worth when omitted.
        clock: monotonic seconds.
        sleep: called with seconds; may raise to cancel.
    """

    def __init__(
        self,
        rate: float | Callable[[], float],
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._asked = 0
        self._granted = 0.0
        self._refilled_at = clock()
        self._ask = rate if callable(rate) else None
        self._rate = 0.0 if callable(rate) else float(rate)
        self._rate = self._current()

    @property
    def rate(self) -> float:
        with self._lock:
            self._refill()
            return self._rate

    def set_rate(self, rate: float) -> None:
        """Change the rate for good; those who wait notice within a tenth of a second."""
        with self._lock:
            self._refill()
            self._ask, self._rate = None, rate

    def take(self, amount: int) -> None:
        """Wait until `amount` bytes may pass.

        Raises:
            Exception: whatever `sleep` raised; the bytes are given back.
        """
        with self._lock:
            self._refill()
            self._asked += amount
            ticket = self._asked
        try:
            while (wait := self._missing_seconds(ticket)) > 0:
                self._sleep(min(wait, _SLICE_SECONDS))
        except BaseException:
            with self._lock:
                self._granted += amount
            raise

    def _missing_seconds(self, ticket: int) -> float:
        with self._lock:
            self._refill()
            missing = ticket - self._granted
            # Sums of fractions never come out even; less than a byte is nothing to wait for.
            return 0.0 if self._rate <= 0 or missing < 1 else missing / self._rate

    def _refill(self) -> None:
        now = self._clock()
        passed = now - self._refilled_at
        self._refilled_at = now
        # What has passed was at the old rate; nothing is saved up or owed where there was none.
        if self._rate <= 0:
            self._granted = float(self._asked)
        else:
            burst = self._rate * 0.1 if self._burst is None else self._burst
            self._granted = min(self._granted + passed * self._rate, self._asked + burst)
        self._rate = self._current()

    def _current(self) -> float:
        return self._rate if self._ask is None else self._ask()


class Throttled(Wrapper):
    """Reads and writes share the bandwidth of one bucket, which may be shared with other storages too."""

    def __init__(self, inner: Storage, bucket: TokenBucket) -> None:
        super().__init__(inner)
        self.bucket = bucket

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        return self.inner.put(name, self._paced(chunks))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._paced(self.inner.get(name, offset, length))

    def _paced(self, chunks: Iterable[_B]) -> Iterator[_B]:
        for chunk in chunks:
            self.bucket.take(memoryview(chunk).nbytes)
            yield chunk


# -- concurrency


class Limited(Wrapper):
    """At most `places` requests are with the driver at once; see the module's note on streams."""

    def __init__(self, inner: Storage, places: int) -> None:
        super().__init__(inner)
        self._places = threading.BoundedSemaphore(places)

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        with self._places:
            return self.inner.put(name, self._produced(chunks))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._consumed(self.inner.get(name, offset, length))

    def stat(self, name: str) -> Stat:
        with self._places:
            return self.inner.stat(name)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        return self._consumed(self.inner.list(prefix))

    def children(self, folder: str) -> tuple[str, ...]:
        with self._places:
            return self.inner.children(folder)

    def delete(self, name: str) -> None:
        with self._places:
            self.inner.delete(name)

    def now(self) -> datetime:
        with self._places:
            return self.inner.now()

    def free_bytes(self) -> int | None:
        with self._places:
            return self.inner.free_bytes()

    def _produced(self, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
        """The chunks; the place is free for others while the producer makes the next one."""
        source = iter(chunks)
        while True:
            with self._elsewhere():
                chunk = next(source, None)
            if chunk is None:
                return
            yield chunk

    def _consumed(self, items: Iterator[_T]) -> Iterator[_T]:
        while True:
            with self._places:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[None]:
        self._places.release()
        try:
            yield
        finally:
            self._places.acquire()
