"""Hashes by runs: an extent's bytes in pieces of equal length, each with a digest of its own, and one hash over these.

One pass over the bytes gives two things: the hash that proves the extent, and the digests by which a later backup
finds what changed. The hash of a part of an extent that begins and ends at runs follows from their digests alone,
without the bytes. Format v1, docs/repository-format.md, "Hashes of extents".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from seawall.storage.base import Bytes

if TYPE_CHECKING:
    from blake3 import blake3

DIGEST_BYTES = 16

_KIB = 1024
_LEAST_RUN_BYTES = 4 * _KIB
_MOST_RUN_BYTES = 1024 * _KIB


def run_bytes(file_bytes: int) -> int:
    """How long the runs of a file are: short ones where much of a small file would be stored for one changed page.

    Longer ones would make the map of a large file smaller, and every incremental of it larger (ADR 0010).

    Args:
        file_bytes: the file's size when it was listed.
    """
    return 8 * _KIB if file_bytes < 1024 * _KIB else 16 * _KIB


def checked_run_bytes(value: object) -> int:
    """`value` itself, if runs may be that long: a power of two from 4 KiB to 1 MiB.

    Raises:
        ValueError: they may not.
    """
    if type(value) is not int or not _LEAST_RUN_BYTES <= value <= _MOST_RUN_BYTES or value & (value - 1):
        raise ValueError(f"{value!r} is no length of a run")
    return value


class RunHasher:
    """The hash of one extent, from parts of any size.

    Args:
        run_bytes: how long its runs are; the last may be shorter.
    """

    __slots__ = ("_begun", "_digests", "_run_bytes")

    def __init__(self, run_bytes: int) -> None:
        self._run_bytes = run_bytes
        self._digests = bytearray()
        # The beginning of a run that a part ended in; parts end at runs nearly always.
        self._begun = b""

    def update(self, view: Bytes) -> None:
        """Take the extent's next bytes in."""
        rest = memoryview(view)
        if self._begun:
            missing = self._run_bytes - len(self._begun)
            self._begun, rest = self._begun + rest[:missing], rest[missing:]
            if len(self._begun) < self._run_bytes:
                return
            self._digests += digests_of(self._begun, self._run_bytes)
        whole = len(rest) - len(rest) % self._run_bytes
        self._digests += digests_of(rest[:whole], self._run_bytes)
        self._begun = bytes(rest[whole:])

    def digests(self) -> bytes:
        """`DIGEST_BYTES` for each run so far; the last one is of the bytes that it has so far."""
        last = digests_of(self._begun, self._run_bytes) if self._begun else b""
        return bytes(self._digests) + last

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        return combined(self.digests())


def combined(digests: bytes) -> str:
    """The hash, 32 bytes in hex, of an extent whose runs have these digests."""
    return _blake3()(digests).hexdigest()


def digests_of(view: Bytes, run_bytes: int) -> bytes:
    """`DIGEST_BYTES` for each run of `view`, which begins at one."""
    hashed = _blake3()
    if len(view) <= run_bytes:
        return hashed(view).digest(DIGEST_BYTES) if len(view) else b""
    return b"".join([hashed(view[at : at + run_bytes]).digest(DIGEST_BYTES) for at in range(0, len(view), run_bytes)])


@cache
def _blake3() -> Callable[[Bytes], blake3]:
    # Looked up once: an import statement at each of a million short runs would show.
    from blake3 import blake3  # noqa: PLC0415 - segments of WAL never come here

    return blake3
