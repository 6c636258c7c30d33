"""The contract over a bucket: what S3, Azure and Google Cloud Storage have in common.

A driver brings a `Bucket`, each of whose calls is one request or a page of them, with errors translated. This module
cuts, sends and reads ahead, checks ranges and names, repeats requests of a put that failed for a passing reason (the
chunks before them cannot be made anew), and asks for the object after it was written: what a put returns is what the
storage says it holds.

Not guaranteed: that no object lies below another; only a file system cares.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Protocol, TypeVar

from seawall.errors import ObjectExists, ObjectMissing, ObjectTruncated, StorageError
from seawall.storage.base import (
    Bytes,
    Capabilities,
    Stat,
    checked_folder,
    checked_object_name,
    checked_prefix,
    checked_range,
    is_object_name,
)
from seawall.storage.parts import PART_BYTES, cut, exactly, pieces, read_ahead, send_ahead
from seawall.storage.retry import RetryPolicy, Sleep, repeated

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """A range as it came, and how large the whole object is."""

    content: bytes
    object_bytes: int


class Upload(Protocol):
    """An object on its way in numbered parts; no reader sees it before `finish` returned."""

    # How many parts may be under way beside each other.
    at_once: int

    def send(self, number: int, part: bytearray) -> None: ...

    def finish(self) -> None:
        """Give the object its name.

        Raises:
            ObjectExists: something lies there already.
        """
        ...

    def stored(self) -> bool:
        """Whether what lies under the name is, by the storage's own word, exactly what was sent."""
        ...

    def abort(self) -> None: ...


class Bucket(Protocol):
    """What a service does for one bucket and prefix; names are the contract's, below the prefix.

    Args:
        part_bytes: an object of fewer is created whole, a larger one is uploaded in parts of so many.
    """

    part_bytes: int

    @property
    def url(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def create(self, name: str, content: bytearray) -> None:
        """Store a small object whole.

        Raises:
            ObjectExists: something lies there already.
        """
        ...

    def holds(self, name: str, content: bytearray) -> bool:
        """Whether an object is, by the storage's own checksum, exactly this."""
        ...

    def begin(self, name: str) -> Upload: ...

    def fetch(self, name: str, begin: int, end: int) -> Fetched:
        """Bytes from `begin` to `end`, fewer where the object ends before; none where it ends before `begin`.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def look(self, name: str) -> Stat:
        """Size, age and checksum.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def walk(self, prefix: str) -> Iterator[Stat]:
        """Objects whose names begin with `prefix`, in order; foreign names too."""
        ...

    def folders(self, folder: str) -> Iterator[str]:
        """Names and, ending with `/`, folders directly below `folder`, in any order."""
        ...

    def hidden_bytes(self) -> int:
        """See `versions.Versioned`."""
        ...

    def remove(self, name: str) -> None: ...

    def now(self) -> datetime: ...

    def sweep(self, older_than: timedelta) -> int: ...

    def close(self) -> None: ...


class ObjectStorage:
    """Objects in a bucket; safe to use from several threads.

    Args:
        policy: how often one request of a put is repeated.
        sleep: called with seconds between these.
    """

    def __init__(self, bucket: Bucket, policy: RetryPolicy | None = None, sleep: Sleep = time.sleep) -> None:
        self.bucket = bucket
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")

    @property
    def url(self) -> str:
        return self.bucket.url

    @property
    def capabilities(self) -> Capabilities:
        return self.bucket.capabilities

    def through(self, bucket: Bucket) -> ObjectStorage:
        """The same, but writing into the bucket in another way; it shares the threads, so only one may be closed."""
        other = copy.copy(self)
        other.bucket = bucket
        return other

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        checked_object_name(name)
        parts = cut(chunks, self.bucket.part_bytes)
        first = next(parts, bytearray())
        # A part that is not full is the last one.
        whole = len(first) < self.bucket.part_bytes
        sent = self._create(name, first) if whole else self._upload(name, chain([first], parts))
        return self._confirmed(name, sent)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        checked_object_name(name)
        checked_range(offset, length)
        # An empty range is no request that a service understands, so a byte more is asked for and left away.
        wanted = PART_BYTES if length is None else max(1, min(length, PART_BYTES))
        first = self.bucket.fetch(name, offset, offset + wanted)
        end = first.object_bytes if length is None else offset + length
        if max(offset, end) > first.object_bytes:
            raise ObjectTruncated(
                f"{name} in {self.url} has {first.object_bytes} bytes, but bytes {offset} to {end} are wanted"
            )
        begun = min(offset + wanted, end)
        content = first.content[: begun - offset]
        yield from pieces(exactly(content, begun - offset, f"{name} in {self.url}"))
        yield from read_ahead(lambda start, stop: self._executor.submit(self._range, name, start, stop), begun, end)

    def stat(self, name: str) -> Stat:
        return self.bucket.look(checked_object_name(name))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        for stat in self.bucket.walk(checked_prefix(prefix)):
            if is_object_name(stat.name):
                yield stat

    def children(self, folder: str) -> tuple[str, ...]:
        below = self.bucket.folders(checked_folder(folder))
        found = {name[len(folder) :].removesuffix("/") for name in below}
        return tuple(sorted(name for name in found if is_object_name(name)))

    def hidden_bytes(self) -> int:
        return self.bucket.hidden_bytes()

    def delete(self, name: str) -> None:
        self.bucket.remove(checked_object_name(name))

    def now(self) -> datetime:
        return self.bucket.now()

    def free_bytes(self) -> int | None:
        """None: a bucket has no end that it tells of."""
        return None

    def sweep(self, older_than: timedelta) -> int:
        return self.bucket.sweep(older_than)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self.bucket.close()

    def _create(self, name: str, content: bytearray) -> int:
        self._settled(
            f"put {name}", lambda: self.bucket.create(name, content), lambda: self.bucket.holds(name, content)
        )
        return len(content)

    def _upload(self, name: str, parts: Iterable[bytearray]) -> int:
        self._refuse_existing(name)
        upload = self._again(f"begin {name}", lambda: self.bucket.begin(name))

        def send(number: int, part: bytearray) -> None:
            self._again(f"part {number} of {name}", lambda: upload.send(number, part))

        try:
            total = send_ahead(parts, lambda number, part: self._executor.submit(send, number, part), upload.at_once)
            self._settled(f"finish {name}", upload.finish, upload.stored)
        except BaseException:
            self._abort(upload, name)
            raise
        return total

    def _refuse_existing(self, name: str) -> None:
        """Spare the way of bytes that the last request would refuse; that one decides."""
        try:
            self._again(f"look at {name}", lambda: self.bucket.look(name))
        except ObjectMissing:
            return
        raise ObjectExists(f"{name} exists already in {self.url}")

    def _settled(self, what: str, call: Callable[[], None], stored: Callable[[], bool]) -> None:
        """Make a request that gives an object its name; an answer that was lost is found out by looking."""
        unanswered = False

        def attempt() -> None:
            nonlocal unanswered
            try:
                call()
            except (ObjectExists, ObjectMissing):
                if not (unanswered and stored()):
                    raise
            except StorageError:
                unanswered = True
                raise

        self._again(what, attempt)

    def _abort(self, upload: Upload, name: str) -> None:
        """Leave no parts behind; what cannot be removed now, `sweep` finds."""
        try:
            upload.abort()
        except StorageError as error:
            logger.warning("parts of %s stay in %s until they are swept: %s", name, self.url, error)

    def _confirmed(self, name: str, sent: int) -> Stat:
        stat = self._again(f"look at {name}", lambda: self.bucket.look(name))
        if stat.size_bytes != sent:
            raise StorageError(f"{name} in {self.url} has {stat.size_bytes} bytes after {sent} were sent")
        return stat

    def _range(self, name: str, begin: int, end: int) -> bytes:
        return exactly(self.bucket.fetch(name, begin, end).content, end - begin, f"{name} in {self.url}")

    def _again(self, what: str, call: Callable[[], _T]) -> _T:
        return repeated(what, call, self._policy, self._sleep)
