"""The contract that every storage driver and wrapper fulfils.

Objects are immutable: `put` never overwrites. After `put` returned, the object is durable and whole under its
name; if it raised, no reader ever sees a part of it under that name. `list` is consistent with puts and
deletes that returned before it began (drivers that cannot promise this say so in `capabilities`).
Names are relative, `/`-separated, without empty, `.` or `..` parts.

Not guaranteed: atomicity over several objects. The repository orders its writes so that none is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from seawall.errors import NameRefused

Bytes: TypeAlias = bytes | bytearray | memoryview

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Stat:
    """What the storage says of one object; `modified_at` is in the storage's own clock."""

    name: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do; a missing one is reported by `check`, never assumed."""

    create_only: bool
    consistent_list: bool
    object_lock: bool
    free_space: bool


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

        Chunks may be views of buffers that the caller reuses as soon as the next chunk is asked for.

        Raises:
            ObjectExists: something lies there already; it is left as it is.
            StorageFull, StorageDenied, StorageUnreachable, StorageError: nothing was stored.
            Exception: whatever iterating `chunks` raised; nothing was stored.
        """
        ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object's bytes from `offset`, `length` of them or to the end, in pieces of about 1 MiB.

        Raises:
            ObjectMissing: proved absent.
            StorageError: fewer bytes came than `length` asks, or another failure.
        """
        ...

    def stat(self, name: str) -> Stat:
        """Size and age of one object.

        Raises:
            ObjectMissing: proved absent.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """All objects whose names begin with `prefix` (a string, not a folder), in the order of their names."""
        ...

    def children(self, folder: str) -> tuple[str, ...]:
        """The distinct first name parts below `folder` (which ends with `/` or is empty), sorted, without slashes."""
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
