"""JSON lines: one object to a line, in ASCII, so that paths that are no UTF-8 survive as surrogate escapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from seawall.errors import Damaged

# Made once: `json.dumps` makes one for each call that asks for separators.
_COMPACT = json.JSONEncoder(separators=(",", ":"))


class Row(NamedTuple):
    """What one line says, encoded once for all who write it, and what the last line counts of it."""

    json: bytes
    counted: int


def compact(value: object) -> bytes:
    """A value as lines hold it."""
    return _COMPACT.encode(value).encode("ascii")


def encoded(value: Mapping[str, Any]) -> bytes:
    """One line with its line feed."""
    return compact(value) + b"\n"


def decoded(frames: Iterable[bytes], *, name: str) -> Iterator[dict[str, Any]]:
    """The objects of all lines; `name` is the stored object's, for messages.

    Args:
        frames: verified plain bytes in pieces of any size.

    Raises:
        Damaged: a line is no JSON object.
    """
    for line in _lines(frames):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{name} has a line that is no JSON") from error
        if not isinstance(value, dict):
            raise Damaged(f"{name} has a line that is no object")
        yield value


def _lines(frames: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for frame in frames:
        *whole, rest = (rest + frame).split(b"\n")
        yield from whole
    if rest:
        yield rest
