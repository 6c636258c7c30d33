"""A bundle's index: which extent lies where, and how it is written.

The final frame of a bundle is canonical JSON `{"entries":[[path, file offset, plain offset, length, hash, run
length]…],"frames":[[stored offset, plain length]…]}`; frames are those of data. A clear trailer of 24 bytes follows:
the final frame's stored offset (u64 BE), its number (u32 BE), `SEAWALL1IDX` and a line feed. Format v1,
docs/repository-format.md.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from seawall.codec.envelope import FRAME_BYTES
from seawall.codec.runs import checked_run_bytes
from seawall.errors import Damaged

TRAILER = struct.Struct(">QI12s")
TRAILER_MAGIC = b"SEAWALL1IDX\n"

_HASH = re.compile(r"[0-9a-f]{64}")


class Entry(NamedTuple):
    """One extent as the index has it: `length` bytes of `path` at `file_offset`, at `plain_offset` of the stream.

    `blake3` is its hash by runs of `run_bytes` (`seawall.codec.runs`).
    """

    path: str
    file_offset: int
    plain_offset: int
    length: int
    blake3: str
    run_bytes: int


def encoded(value: object) -> bytes:
    # A file's name need not be UTF-8; its bytes survive as they are.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def encoded_index(table: Sequence[tuple[int, int]], entries: Sequence[Entry]) -> bytes:
    return encoded({"frames": table, "entries": entries})


def decoded_index(plain: bytes, name: str) -> tuple[tuple[tuple[int, int], ...], tuple[Entry, ...]]:
    """Frames and entries of an index.

    Raises:
        Damaged: it is no index, or contradicts itself.
    """
    try:
        document = json.loads(plain.decode("utf-8", "surrogateescape"))
        frames = tuple((_count(offset), _count(length)) for offset, length in document["frames"])
        entries = tuple(
            Entry(_path(path), _count(at), _count(plain_at), _count(length), _hash(digest), checked_run_bytes(run))
            for path, at, plain_at, length, digest, run in document["entries"]
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"the index of {name} is malformed: {error}") from error
    full = all(length == FRAME_BYTES for _, length in frames[:-1]) and all(0 < n <= FRAME_BYTES for _, n in frames)
    at = 0
    for entry in entries:
        full, at = full and entry.plain_offset == at, at + entry.length
    if not full or at != sum(length for _, length in frames):
        raise Damaged(f"the index of {name} contradicts itself")
    return frames, entries


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count of bytes")
    return value


def _path(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no path")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no hash")
    return value
