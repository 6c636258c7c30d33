"""The contract that every storage driver and wrapper fulfils.

Objects are immutable: `put` never overwrites. After `put` returned, the object is durable and whole under its
name; if it raised, no reader ever sees a part of it under that name. `list` is consistent with puts and
deletes that returned before it began (drivers that cannot promise this say so in `capabilities`).
Names are relative, `/`-separated, without empty, `.` or `..` parts.

Not guaranteed: atomicity over several objects. The repository orders its writes so that none is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias, runtime_checkable

from seawall.errors import NameRefused, UsageError

Bytes: TypeAlias = bytes | bytearray | memoryview

# What `get` yields: large enough that Python's share vanishes, small enough to lie in a cache.
PIECE_BYTES = 1024 * 1024
# What it yields at most. Two frames of the largest size: whoever takes frames from a folder's pieces then copies only
# those that lie across a boundary, which made a restore a tenth faster.
LARGEST_PIECE_BYTES = 4 * PIECE_BYTES

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Stat:
    """What the storage says of one object.

    Args:
        modified_at: in the storage's own clock.
        sha256: of the whole object, hex, if the storage itself computed it over what it stores, or, of what a
            put returns where `confirm = "hash"`, what came back of it; lists never have it.
        parts_sha256: of an object that was sent in parts, the storage's own SHA-256 over the SHA-256s of these, in its
            own form; equal ones prove equal content, and other ones only other parts. Lists never have it.
    """

    name: str
    size_bytes: int
    modified_at: datetime
    sha256: str | None = None
    parts_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do; a missing one is reported by `check`, never assumed.

    Args:
        create_only: a put never replaces an object, whoever else writes at the same moment.
        consistent_list: a list shows every put and delete that returned before it began.
        object_lock: objects can be made immutable until a date (`immutability.py`).
        free_space: `free_bytes` knows a number.
        checksums: the storage itself compares what arrives with a checksum of what was sent.
        folders: no object lies below another, so that a copy in a file system is always possible.
    """

    create_only: bool
    consistent_list: bool
    object_lock: bool
    free_space: bool
    checksums: bool = False
    folders: bool = True

    @property
    def unsafe(self) -> tuple[str, ...]:
        """What is missing of that on which data depends, in words."""
        needed = {"create-only writes": self.create_only, "consistent listing": self.consistent_list}
        return tuple(name for name, there in needed.items() if not there)

    @property
    def without(self) -> tuple[str, ...]:
        """What is missing of that which Seawall makes use of where it is there."""
        wanted = {
            "object lock": self.object_lock,
            "free space": self.free_space,
            "checksums of what arrives": self.checksums,
        }
        return tuple(name for name, there in wanted.items() if not there)


@dataclass(frozen=True, slots=True)
class Replayable:
    """Chunks that can be produced again from the start, so that `Retrying` may repeat a put.

    Args:
        make: returns a fresh iterator over the same bytes each time it is called.
    """

    make: Callable[[], Iterable[Bytes]]

    def __iter__(self) -> Iterator[Bytes]:
        return iter(self.make())


@runtime_checkable
class Storage(Protocol):
    """One storage location."""

    @property
    def url(self) -> str:
        """Where this is, without any secret."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        """Store a new object from chunks of bytes; durable when it returns.

        Chunks may be views of buffers that the caller reuses as soon as the next chunk is asked for. A list,
        tuple or `Replayable` can be sent again after a lost connection; any other iterable cannot.

        Raises:
            ObjectExists: something lies there already, durable itself; it is left as it is.
            StorageFull, StorageDenied, StorageUnreachable, StorageError: nothing was stored.
            Exception: whatever iterating `chunks` raised; nothing was stored.
        """
        ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object's bytes from `offset`, `length` of them or to the end, in pieces of at most 4 MiB.

        The request is made, and errors are raised, when the first piece is asked for.

        Raises:
            ObjectMissing: proved absent; never raised because the storage is not there.
            NotARepository: the place that the storage's URL names does not exist.
            ObjectTruncated: the object ends before `offset`, or before `length` bytes came.
            UsageError: `offset` or `length` is negative.
            StorageError: another failure; pieces that came before it are right.
        """
        ...

    def stat(self, name: str) -> Stat:
        """Size and age of one object.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """All objects whose names begin with `prefix` (a string, not a folder), in the order of their names.

        Raises:
            NameRefused: no object name can begin so.
        """
        ...

    def children(self, folder: str) -> tuple[str, ...]:
        """The distinct first name parts below `folder` (which ends with `/` or is empty), sorted, without slashes.

        A part is there only as long as an object lies at or below it; an unknown folder has none.

        Raises:
            NameRefused: `folder` is not empty and does not end with `/`, or no object name can begin so.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove one object; absent is success (an interrupted cleanup runs again).

        Raises:
            StorageDenied: locked or not permitted.
        """
        ...

    def now(self) -> datetime:
        """The storage's own clock, aware, as a write of this moment would be stamped."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that can still be written, or None where the storage does not say."""
        ...

    def sweep(self, older_than: timedelta) -> int:
        """Remove what interrupted puts left and no reader ever sees; how many there were.

        Args:
            older_than: age by the storage's own clock; longer than any put can be silent.

        Raises:
            StorageDenied: a leftover may not be removed.
        """
        ...

    def close(self) -> None: ...


def checked_object_name(name: str) -> str:
    """`name` itself, if it is a relative path of safe parts.

    Raises:
        NameRefused: a part is empty, begins with a dot, is longer than 200 characters, or has a character
            outside A-Z a-z 0-9 . _ = + -.
    """
    if len(name) > 900 or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise NameRefused(
            f"object name {name!r} is refused", hint="Object names are made by Seawall; this is a defect."
        )
    return name


def is_object_name(name: str) -> bool:
    """Whether `name` could be an object's."""
    try:
        checked_object_name(name)
    except NameRefused:
        return False
    return True


def checked_prefix(prefix: str) -> str:
    """`prefix` itself, if some object name can begin with it.

    Raises:
        NameRefused: it can climb out of the storage or holds a character that no name has.
    """
    if prefix:
        checked_object_name(prefix.removesuffix("/"))
    return prefix


def checked_folder(folder: str) -> str:
    """`folder` itself, if it is empty or a prefix that ends with `/`.

    Raises:
        NameRefused: anything else.
    """
    if folder and not folder.endswith("/"):
        raise NameRefused(f"folder {folder!r} does not end with '/'", hint="This is a defect in Seawall.")
    return checked_prefix(folder)


def checked_range(offset: int, length: int | None) -> None:
    """Refuse a range that no object can have.

    Raises:
        UsageError: `offset` or `length` is negative.
    """
    if offset < 0 or (length is not None and length < 0):
        raise UsageError(f"a range cannot begin at {offset} and have length {length}", hint="This is a defect.")


def layers(storage: Storage) -> Iterator[object]:
    """A storage and what lies below it, wrapper by wrapper; the driver comes last."""
    layer: object = storage
    yield layer
    while hasattr(layer, "inner"):
        layer = layer.inner
        yield layer


def read(storage: Storage, name: str, *, limit: int = 256 * 1024 * 1024) -> bytes:
    """A small object whole, refusing one of more than `limit` bytes before memory is spent on it.

    Raises:
        ObjectMissing: proved absent.
        NameRefused: it is larger than `limit`.
    """
    parts: list[bytes] = []
    total = 0
    for piece in storage.get(name):
        total += len(piece)
        if total > limit:
            raise NameRefused(
                f"object {name!r} is larger than {limit} bytes", hint="It is not what Seawall wrote there."
            )
        parts.append(piece)
    return b"".join(parts)
