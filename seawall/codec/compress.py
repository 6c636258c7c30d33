"""Compression of single frames by name; each library is imported when its codec is first used.

Compressors are kept for each thread: making one costs more than a small frame does, and none may be used by two
threads at once. Every compressed frame is a whole file of its tool (`gzip`, `lz4`, `zstd`), readable without us.
Output is bounded by the plain length that the frame states, whatever the compressed bytes claim.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias, cast

from seawall.errors import Damaged, SettingsError
from seawall.model import Compression
from seawall.storage.base import Bytes

Compress: TypeAlias = Callable[[Bytes], bytes]
Decompress: TypeAlias = Callable[[Bytes, int], bytes]

_HIGHEST = {Compression.NONE: 99, Compression.GZIP: 9, Compression.LZ4: 16, Compression.ZSTD: 22}
_FAST_LZ4 = {0: -4, 1: -1}
_kept = threading.local()


def checked_level(compression: Compression, level: int) -> int:
    """`level` itself, if the codec has it; isal's gzip means its best, 3, by every level above that.

    Raises:
        SettingsError: the codec has no such level.
    """
    if not 0 <= level <= _HIGHEST[compression]:
        raise SettingsError(f"{compression.value} has levels 0 to {_HIGHEST[compression]}, not {level}")
    return level


def compressor(compression: Compression, level: int) -> Compress:
    """This thread's compressor; call it from no other thread."""
    kept: dict[tuple[Compression, int], Compress] = _kept.__dict__.setdefault("compressors", {})
    found = kept.get((compression, level))
    if found is None:
        found = kept[compression, level] = _COMPRESSORS[compression](level)
    return found


def decompressor(compression: Compression) -> Decompress:
    """This thread's decompressor: takes a compressed frame and the plain length that it must have.

    The function raises `Damaged` if what comes out is longer, shorter, or nothing.
    """
    kept: dict[Compression, Decompress] = _kept.__dict__.setdefault("decompressors", {})
    found = kept.get(compression)
    if found is None:
        found = kept[compression] = _DECOMPRESSORS[compression]()
    return found


def _wrong(codec: str, cause: object) -> Damaged:
    return Damaged(f"a frame does not decompress with {codec}: {cause}")


def _no_compress(level: int) -> Compress:  # noqa: ARG001 - all makers take a level
    return bytes


def _gzip_compress(level: int) -> Compress:
    from isal import isal_zlib  # noqa: PLC0415 - by codec

    best = isal_zlib.ISAL_BEST_COMPRESSION
    return lambda plain: bytes(isal_zlib.compress(plain, min(level, best), 31))


def _lz4_compress(level: int) -> Compress:
    from lz4 import frame  # noqa: PLC0415 - by codec

    # To the library 0, 1 and 2 are one level, and negative ones are faster (lz4frame.h, compressionLevel). On
    # PostgreSQL's pages -1 takes a sixth less time and stores as much, -4 a quarter less for half a percent more.
    chosen = _FAST_LZ4.get(level, level)
    # Blocks of their own need no history when they are opened; larger ones would be opened by way of a buffer.
    size = frame.BLOCKSIZE_MAX1MB
    return lambda plain: bytes(frame.compress(plain, compression_level=chosen, block_size=size, block_linked=False))


def _zstd_compress(level: int) -> Compress:
    import zstandard  # noqa: PLC0415 - by codec

    # Level 0 means zstd's default, 3. The frame states its size; our own tag replaces zstd's checksum.
    made = zstandard.ZstdCompressor(level=level or 3, write_content_size=True, write_checksum=False)
    return made.compress


def _no_decompress() -> Decompress:
    def decompress(body: Bytes, plain_length: int) -> bytes:  # noqa: ARG001 - a raw frame never comes here
        raise Damaged("a compressed frame in an object without compression")

    return decompress


def _gzip_decompress() -> Decompress:
    from isal import isal_zlib  # noqa: PLC0415 - by codec

    # The stubs call the class an instance.
    failure = cast("type[Exception]", isal_zlib.error)

    def decompress(body: Bytes, plain_length: int) -> bytes:
        stream = isal_zlib.decompressobj(wbits=31)
        try:
            plain = bytes(stream.decompress(body, plain_length + 1))
        except failure as error:
            raise _wrong("gzip", error) from error
        if len(plain) != plain_length or not stream.eof or stream.unused_data:
            raise _wrong("gzip", "its length is wrong")
        return plain

    return decompress


def _lz4_decompress() -> Decompress:
    from lz4 import frame  # noqa: PLC0415 - by codec

    # The class above these functions would copy a view before it reads it, and make a context for each frame.
    context = frame.create_decompression_context()

    def decompress(body: Bytes, plain_length: int) -> bytes:
        frame.reset_decompression_context(context)
        try:
            plain, used, is_whole = frame.decompress_chunk(context, body, max_length=plain_length + 1)
        except RuntimeError as error:
            raise _wrong("lz4", error) from error
        if len(plain) != plain_length or not is_whole or used != len(body):
            raise _wrong("lz4", "its length is wrong")
        return bytes(plain)

    return decompress


def _zstd_decompress() -> Decompress:
    import zstandard  # noqa: PLC0415 - by codec

    made = zstandard.ZstdDecompressor()

    def decompress(body: Bytes, plain_length: int) -> bytes:
        try:
            # The library allocates what the frame states, so that is compared first.
            if zstandard.frame_content_size(body) != plain_length:
                raise _wrong("zstd", "its length is wrong")
            plain = made.decompress(body, max_output_size=plain_length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _wrong("zstd", error) from error
        if len(plain) != plain_length:
            raise _wrong("zstd", "its length is wrong")
        return plain

    return decompress


_COMPRESSORS: dict[Compression, Callable[[int], Compress]] = {
    Compression.NONE: _no_compress,
    Compression.GZIP: _gzip_compress,
    Compression.LZ4: _lz4_compress,
    Compression.ZSTD: _zstd_compress,
}
_DECOMPRESSORS: dict[Compression, Callable[[], Decompress]] = {
    Compression.NONE: _no_decompress,
    Compression.GZIP: _gzip_decompress,
    Compression.LZ4: _lz4_decompress,
    Compression.ZSTD: _zstd_decompress,
}
