"""Chunks of any size cut into parts of one size, as object storage takes them, and ranges read ahead.

Not guaranteed: order of arrival at the storage. Parts are numbered, and ranges are yielded in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from seawall.errors import StorageUnreachable
from seawall.storage.base import PIECE_BYTES, Bytes

# One request each: large enough that a request's price vanishes, small enough that several fit in memory. Ten thousand
# parts, which S3 admits, are 78 GiB; no object of the repository comes near.
PART_BYTES = 8 * 1024 * 1024

# Requests of one put or get that are under way at once, beside the one that is being filled or read.
AHEAD = 2


def cut(chunks: Iterable[Bytes], part_bytes: int = PART_BYTES) -> Iterator[bytearray]:
    """The bytes of `chunks` in parts of `part_bytes`, the last one shorter; nothing at all for no bytes."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(view):
            taken = view[: part_bytes - len(part)]
            part += taken
            view = view[len(taken) :]
            if len(part) == part_bytes:
                yield part
                part = bytearray()
    if part:
        yield part


def send_ahead(parts: Iterable[bytearray], send: Callable[[int, bytearray], Future[None]], at_once: int = AHEAD) -> int:
    """Send numbered parts, the first with number 1, a few at once; how many bytes there were.

    Args:
        send: begins to send a part.
        at_once: how many may be under way while the next one is filled.

    Raises:
        Exception: whatever the first failing `send`, or iterating `parts`, raised; none is under way any more.
    """
    under_way: deque[Future[None]] = deque()
    total = 0
    try:
        for number, part in enumerate(parts, 1):
            total += len(part)
            if len(under_way) == at_once:
                under_way.popleft().result()
            under_way.append(send(number, part))
        while under_way:
            under_way.popleft().result()
    finally:
        # Whoever aborts the upload now must not be overtaken by a part of it.
        _settle(under_way)
    return total


def read_ahead(
    fetch: Callable[[int, int], Future[bytes]],
    begin: int,
    end: int,
    result: Callable[[Future[bytes]], bytes] = Future.result,
) -> Iterator[bytes]:
    """Bytes from `begin` to `end` in pieces, a few ranges asked for before they are wanted.

    Args:
        fetch: begins to read exactly the bytes from its first up to its second argument.
        result: waits for what `fetch` began, for ever unless it says otherwise.
    """
    under_way: deque[Future[bytes]] = deque()
    starts = iter(range(begin, end, PART_BYTES))
    try:
        while True:
            while len(under_way) < AHEAD and (start := next(starts, None)) is not None:
                under_way.append(fetch(start, min(start + PART_BYTES, end)))
            if not under_way:
                return
            yield from pieces(result(under_way.popleft()))
    finally:
        for future in under_way:
            future.cancel()


def pieces(content: bytes) -> Iterator[bytes]:
    """Content in pieces of at most 1 MiB."""
    if len(content) <= PIECE_BYTES:
        if content:
            yield content
        return
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def exactly(content: bytes, wanted: int, what: str) -> bytes:
    """`content`, if it has that many bytes.

    Raises:
        StorageUnreachable: it has not, although the storage said so; the connection ended early.
    """
    if len(content) != wanted:
        raise StorageUnreachable(f"{what}: {len(content)} bytes came where {wanted} were asked for")
    return content


def _settle(under_way: Iterable[Future[None]]) -> None:
    for future in under_way:
        if not future.cancel():
            future.exception()
