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
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import NamedTuple

from seawall.codec.envelope import FRAME_BYTES
from seawall.codec.runs import checked_run_bytes
from seawall.errors import Damaged

TRAILER = struct.Struct(">QI12s")
TRAILER_MAGIC = b"SEAWALL1IDX\n"

_HEX = re.compile(r"[0-9a-f]*")


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
        entries = _entries(document["entries"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"the index of {name} is malformed: {error}") from error
    full = all(length == FRAME_BYTES for _, length in frames[:-1]) and all(0 < n <= FRAME_BYTES for _, n in frames)
    at = 0
    for entry in entries:
        full, at = full and entry.plain_offset == at, at + entry.length
    if not full or at != sum(length for _, length in frames):
        raise Damaged(f"the index of {name} contradicts itself")
    return frames, entries


def _entries(rows: list[list[object]]) -> tuple[Entry, ...]:
    """The rows as entries. Checked by columns: a restore of a chain reads hundreds of thousands of rows.

    Raises:
        ValueError, TypeError: they are none.
    """
    if not rows:
        return ()
    paths, *counts, hashes, runs = zip(*rows, strict=True)
    for column in counts:
        _checked_counts(column)
    _checked_texts(paths, is_right=all)
    _checked_texts(hashes, is_right=_are_hashes)
    # One file's rows have one length of runs, and a bundle holds few lengths.
    for run in {(type(run), run) for run in runs}:
        checked_run_bytes(run[1])
    return tuple(starmap(Entry, rows))


def _checked_counts(column: tuple[object, ...]) -> None:
    # A bool is no count, although it is an int.
    counts = [count for count in column if type(count) is int and count >= 0]
    if len(counts) != len(column):
        raise ValueError("not all counts of bytes are counts")


def _checked_texts(column: tuple[object, ...], is_right: Callable[[Sequence[str]], bool]) -> None:
    texts = [text for text in column if isinstance(text, str)]
    if len(texts) != len(column) or not is_right(texts):
        raise ValueError("not all paths are paths, or not all hashes are hashes")


def _are_hashes(texts: Sequence[str]) -> bool:
    return set(map(len, texts)) == {64} and _HEX.fullmatch("".join(texts)) is not None


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count of bytes")
    return value
