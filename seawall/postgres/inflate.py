"""Undoing the compression of a stream whose pieces arrive one by one, in bounded memory.

A piece of 32 KiB can stand for hundreds of MiB of zeros, so no step here makes more than `_MOST` bytes at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, cast

from seawall.errors import ClusterError
from seawall.model import Compression
from seawall.storage.base import Bytes

_MOST = 1024 * 1024


def inflated(pieces: Iterator[memoryview], compression: Compression) -> Iterator[Bytes]:
    """The plain bytes of one compressed stream; each piece is valid until the next is asked for.

    zstd that ends in the middle is not noticed here but by `TarReader`, which then misses its last block.

    Raises:
        ClusterError: the bytes are not of that codec, or end in the middle.
    """
    if compression is Compression.GZIP:
        return _gunzipped(pieces)
    if compression is Compression.LZ4:
        return _from_lz4(pieces)
    if compression is Compression.ZSTD:
        return _from_zstd(pieces)
    return iter(pieces)


def _gunzipped(pieces: Iterator[memoryview]) -> Iterator[Bytes]:
    codec = zlib.decompressobj(31)
    try:
        for piece in pieces:
            yield codec.decompress(piece, _MOST)
            while codec.unconsumed_tail:
                yield codec.decompress(codec.unconsumed_tail, _MOST)
        yield codec.flush()
    except zlib.error as error:
        raise _wrong("gzip", error) from error
    if not codec.eof:
        raise _wrong("gzip", "it ends in the middle")


def _from_lz4(pieces: Iterator[memoryview]) -> Iterator[Bytes]:
    from lz4 import frame  # noqa: PLC0415 - by codec

    codec = frame.LZ4FrameDecompressor()
    try:
        for piece in pieces:
            yield codec.decompress(piece, _MOST)
            while not codec.needs_input and not codec.eof:
                yield codec.decompress(b"", _MOST)
    except (RuntimeError, EOFError) as error:
        raise _wrong("lz4", error) from error
    if not codec.eof:
        raise _wrong("lz4", "it ends in the middle")


class _Source:
    """Pieces as something that zstandard can read from; it takes whatever length it is given."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces

    def read(self, _most: int = -1) -> Bytes:
        return next(self._pieces, b"")


def _from_zstd(pieces: Iterator[memoryview]) -> Iterator[Bytes]:
    import zstandard  # noqa: PLC0415 - by codec

    reader = zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", _Source(pieces)))
    buffer = memoryview(bytearray(_MOST))
    try:
        while count := reader.readinto(buffer):
            yield buffer[:count]
    except zstandard.ZstdError as error:
        raise _wrong("zstd", error) from error
    # The reader stops at the end of the frame; the archive's end is where the pieces end.
    for _ in pieces:
        pass


def _wrong(codec: str, cause: object) -> ClusterError:
    return ClusterError(f"the server's stream does not decompress with {codec}: {cause}", hint="Take the backup again.")
