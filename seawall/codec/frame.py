"""A stream of plain bytes as frames, each compressed and sealed alone, and back.

A frame is a 9-byte header (u32 BE stored length with the tag, u32 BE plain length, flags: bit 0 final, bit 1 stored
uncompressed) and its sealed body. Exactly one frame is final: the last. Format v1, docs/repository-format.md.

Writing copies nothing that it need not: a frame is sealed into one reused buffer, and what `frame` returns are
views of that buffer, valid until the next call. That is what `Storage.put` promises to live with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from seawall.codec.compress import checked_level, compressor, decompressor
from seawall.codec.envelope import (
    FINAL,
    FRAME_BYTES,
    FRAME_HEADER,
    RAW,
    TAG_BYTES,
    DataKey,
    Envelope,
    KeySource,
    Randomness,
    Seal,
    header_length,
    make_envelope,
    read_envelope,
    seal_for,
)
from seawall.errors import Damaged, UsageError
from seawall.model import Compression, SealingMode
from seawall.storage.base import Bytes

# Reads into a frame buffer are rounded up to this, so that pages stay whole across frames (PostgreSQL's largest).
PAGE_BYTES = 32 * 1024
_SEALED_BYTES = FRAME_HEADER.size + FRAME_BYTES + TAG_BYTES

# glibc gives freed memory back to the kernel at once if it was more than a threshold, and the kernel clears every
# page of the next frame anew: that cost more than decompressing. The largest freed allocation, up to 32 MiB, becomes
# the threshold (mallopt(3), M_MMAP_THRESHOLD); no page of these bytes is ever touched.
bytes(8 * 1024 * 1024)


class Scratch:
    """The two buffers of a writer, at most 4 MiB; a worker thread that writes many objects passes its own along.

    Never shared by two writers that are at work at the same time. Memory is taken when it is first needed: most
    objects other than bundles are small.
    """

    __slots__ = ("_plain", "_sealed")

    def __init__(self) -> None:
        self._plain = self._sealed = memoryview(b"")

    @property
    def plain(self) -> memoryview:
        """A frame of plain bytes, and a page more."""
        if not self._plain:
            self._plain = memoryview(bytearray(FRAME_BYTES + PAGE_BYTES))
        return self._plain

    def sealed(self, length: int) -> memoryview:
        """Room for `length` bytes of a sealed frame with its header."""
        if len(self._sealed) < length:
            self._sealed = memoryview(bytearray(_SEALED_BYTES if length > PAGE_BYTES else PAGE_BYTES))
        return self._sealed[:length]


class FrameWriter:
    """Turns plain frames into the bytes of one object.

    Used by one thread at a time. Either `begin`, then `frame` until one was final; or `stream`, which does all.

    Args:
        kind: `bundle`, `manifest`, `wal` or `history`.
        object_name: the logical name that is sealed in.
        level: see `compress.checked_level`.
        key: the data key; without one, frames only carry checksums.
        extra: facts to state in the clear header.
        hashed: whether to compute `sha256`; off where the caller hashes what is stored anyway.
        scratch: buffers to reuse.

    Raises:
        SettingsError: the codec has no such level.
    """

    def __init__(
        self,
        kind: str,
        object_name: str,
        *,
        compression: Compression,
        level: int = 1,
        key: DataKey | None,
        randomness: Randomness = os.urandom,
        extra: Mapping[str, str | int] | None = None,
        hashed: bool = True,
        scratch: Scratch | None = None,
    ) -> None:
        self.envelope = make_envelope(
            kind, object_name, compression=compression, key=key, extra=extra or {}, randomness=randomness
        )
        self.plain_bytes = 0
        self.stored_bytes = 0
        self.frames = 0
        self.scratch = scratch or Scratch()
        self._level = checked_level(compression, level)
        self._seal = seal_for(self.envelope, key)
        self._hash = hashlib.sha256() if hashed else None
        self._ended = False

    def begin(self) -> bytes:
        """The object's first bytes."""
        if self.stored_bytes:
            raise UsageError(f"{self.envelope.object} was begun twice", hint="This is a defect in Seawall.")
        self.count(self.envelope.encoded)
        return self.envelope.encoded

    def frame(self, plain: Bytes, final: bool = False) -> tuple[Bytes, ...]:
        """One frame of at most `FRAME_BYTES`; what is returned is valid until the next call.

        Raises:
            UsageError: it is too long, or comes before `begin` or after the final one.
        """
        size = len(plain)
        if size > FRAME_BYTES or self._ended or not self.stored_bytes:
            raise UsageError(
                f"frame {self.frames} of {self.envelope.object} is out of place or too long",
                hint="This is a defect in Seawall.",
            )
        body, raw = self._compressed(plain, size)
        stored = len(body) + TAG_BYTES
        header = FRAME_HEADER.pack(stored, size, (FINAL if final else 0) | (RAW if raw else 0))
        out = self.scratch.sealed(FRAME_HEADER.size + stored)
        out[: FRAME_HEADER.size] = header
        self._seal.close(header, self.frames, final, body, out[FRAME_HEADER.size :])
        self.frames += 1
        self.plain_bytes += size
        self._ended = final
        self.count(out)
        return (out,)

    def _compressed(self, plain: Bytes, size: int) -> tuple[Bytes, bool]:
        codec = self.envelope.codec
        if codec is Compression.NONE or size == 0:
            return plain, True
        body = compressor(codec, self._level)(plain)
        return (body, False) if len(body) < size else (plain, True)

    def count(self, chunk: Bytes) -> None:
        """Take bytes of the object into account that are no frame."""
        self.stored_bytes += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)

    def stream(self, pieces: Iterable[Bytes]) -> Iterator[Bytes]:
        """The whole object from plain pieces of any size; large pieces are cut without a copy."""
        yield self.begin()
        # The final frame is the one that is not full, empty if need be: holding a full one back until it is
        # known whether more follows would mean copying it.
        for plain in _cut(pieces, self.scratch):
            yield from self.frame(plain, final=len(plain) < FRAME_BYTES)

    @property
    def sha256(self) -> str:
        """The hash, in hex, of everything emitted so far.

        Raises:
            UsageError: the writer was made with `hashed=False`.
        """
        if self._hash is None:
            raise UsageError(f"{self.envelope.object} was not hashed", hint="This is a defect in Seawall.")
        return self._hash.hexdigest()


def _cut(pieces: Iterable[Bytes], scratch: Scratch) -> Iterator[Bytes]:
    """Frames of exactly `FRAME_BYTES`, then one that is shorter (perhaps empty); each valid until the next."""
    used = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while len(rest):
            if not used and len(rest) >= FRAME_BYTES:
                yield rest[:FRAME_BYTES]
                rest = rest[FRAME_BYTES:]
                continue
            taken = min(len(rest), FRAME_BYTES - used)
            scratch.plain[used : used + taken] = rest[:taken]
            used, rest = used + taken, rest[taken:]
            if used == FRAME_BYTES:
                yield scratch.plain[:FRAME_BYTES]
                used = 0
    yield scratch.plain[:used] if used else b""


class Frame(NamedTuple):
    """A frame as a reader meets it: where it is stored, how long it is plain, and its bytes if they were wanted."""

    offset: int
    length: int
    plain: bytes
    final: bool


class FrameReader:
    """The plain frames of one object, each verified before it is released.

    Iterate once, to the end: only then is it certain that the object is whole and nothing follows it. The chunks are
    consumed to their end, so that an error that their source reports last (GnuPG does) is heard.

    Args:
        chunks: the object's bytes in pieces of any size.
        expected_object: the logical name that it must carry.
        key_for: the data key of an id; raises `KeyMissing` when there is none.
        kind: the kind that it must be of, if that matters.

    Raises:
        Damaged: anything about the object is not what was written.
        FormatTooNew: a newer version wrote it.
        KeyMissing: from `key_for`.
    """

    def __init__(
        self, chunks: Iterable[Bytes], expected_object: str, key_for: KeySource, *, kind: str | None = None
    ) -> None:
        self._source = Source(chunks, expected_object)
        prefix = bytes(self._source.take(12))
        header = bytes(self._source.take(header_length(prefix, expected_object)))
        self.envelope = read_envelope(prefix + header, expected_object)
        refuse_other_object(self.envelope, expected_object, kind)
        self._decoder = FrameDecoder(self.envelope, key_for)
        self.frames = 0

    def __iter__(self) -> Iterator[bytes]:
        for frame in self.numbered():
            yield frame.plain
        self.tail(0)

    def numbered(self, is_wanted: Callable[[int], bool] = lambda _number: True) -> Iterator[Frame]:
        """Each frame; `tail` must be called after the last.

        Args:
            is_wanted: whether to open the frame of that number. One that is not wanted comes without its plain bytes
                and is not verified, but for the final one, which always is.
        """
        final = False
        while not final:
            offset = self._source.offset
            header = bytes(self._source.take(FRAME_HEADER.size))
            stored = self._source.take(self._decoder.stored_length(header, self.frames))
            _, length, flags = FRAME_HEADER.unpack(header)
            plain = b""
            if flags & FINAL or is_wanted(self.frames):
                plain, final = self._decoder.decode(header, self.frames, stored)
            self.frames += 1
            yield Frame(offset, length, plain, final)

    def tail(self, length: int) -> bytes:
        """The bytes after the final frame, which must be exactly `length`."""
        found = bytes(self._source.take(length))
        self._source.end()
        return found


def refuse_other_object(envelope: Envelope, expected_object: str, kind: str | None) -> None:
    """Stop at an object that lies under another one's name.

    Raises:
        Damaged: it carries another name or kind than the one expected.
    """
    if envelope.object != expected_object:
        raise Damaged(f"{expected_object} was replaced by {envelope.object!r}")
    if kind is not None and envelope.kind != kind:
        raise Damaged(f"{expected_object} is a {envelope.kind}, expected was a {kind}")


class FrameDecoder:
    """Verifies, opens and decompresses the frames of one object in any order; used by one thread at a time."""

    def __init__(self, envelope: Envelope, key_for: KeySource) -> None:
        self._envelope, self._key_for = envelope, key_for
        self._name = envelope.object
        self._codec = envelope.codec
        key = key_for(envelope.key) if envelope.seal is SealingMode.AES_256_GCM else None
        self._seal: Seal = seal_for(envelope, key)

    def twin(self) -> FrameDecoder:
        """Another one for the same object, for another thread."""
        return FrameDecoder(self._envelope, self._key_for)

    def stored_length(self, header: bytes, number: int) -> int:
        """How many bytes follow a frame header.

        Raises:
            Damaged: it is not one that a writer makes; checked before memory is spent on it.
        """
        stored, plain, flags = FRAME_HEADER.unpack(header)
        body = stored - TAG_BYTES
        right_size = body == plain if flags & RAW else 0 < body < plain
        if not right_size or plain > FRAME_BYTES or flags & ~(FINAL | RAW):
            raise Damaged(f"frame {number} of {self._name} has a malformed header")
        return int(stored)

    def decode(self, header: bytes, number: int, stored: Bytes) -> tuple[bytes, bool]:
        """Plain bytes of a frame, and whether it is the final one.

        Raises:
            Damaged: it is not what was written there.
        """
        _, plain_length, flags = FRAME_HEADER.unpack(header)
        final = bool(flags & FINAL)
        if flags & RAW:
            return self._seal.open_to_keep(header, number, final, stored), final
        body = self._seal.open(header, number, final, stored)
        try:
            return decompressor(self._codec)(body, plain_length), final
        except Damaged as error:
            raise Damaged(f"frame {number} of {self._name}: {error.message}") from error


class Source:
    """Exactly so many bytes at a time from chunks of any size, without a copy where one chunk has them all."""

    def __init__(self, chunks: Iterable[Bytes], name: str) -> None:
        self.offset = 0
        self._chunks = iter(chunks)
        self._name = name
        self._piece = memoryview(b"")
        self._joined = bytearray()

    def take(self, length: int) -> Bytes:
        """The next `length` bytes, valid until the next call.

        Raises:
            Damaged: there are fewer.
        """
        self.offset += length
        if length <= len(self._piece):
            found, self._piece = self._piece[:length], self._piece[length:]
            return found
        if len(self._joined) < length:
            self._joined = bytearray(length)
        view, have = memoryview(self._joined)[:length], 0
        while have < length:
            if not self._piece and not self._advance():
                raise Damaged(f"{self._name} ends in the middle")
            taken = min(length - have, len(self._piece))
            view[have : have + taken] = self._piece[:taken]
            self._piece, have = self._piece[taken:], have + taken
        return view

    def end(self) -> None:
        """Refuse anything that follows, and hear the source's last word."""
        if self._piece or self._advance():
            raise Damaged(f"{self._name} is followed by bytes that do not belong to it")

    def _advance(self) -> bool:
        for chunk in self._chunks:
            if len(chunk):
                self._piece = memoryview(chunk).cast("B")
                return True
        return False


def seal_bytes(
    kind: str,
    object_name: str,
    plain: Bytes,
    *,
    compression: Compression,
    level: int = 1,
    key: DataKey | None,
    randomness: Randomness = os.urandom,
    extra: Mapping[str, str | int] | None = None,
) -> bytes:
    """A whole object of something small; see `FrameWriter` for the arguments."""
    writer = FrameWriter(
        kind,
        object_name,
        compression=compression,
        level=level,
        key=key,
        randomness=randomness,
        extra=extra,
        hashed=False,
    )
    out = bytearray()
    for chunk in writer.stream([plain]):
        out += chunk
    return bytes(out)


def open_bytes(
    chunks: Iterable[Bytes] | Bytes, expected_object: str, key_for: KeySource, *, kind: str | None = None
) -> bytes:
    """The plain bytes of a whole object, none of them released before all were verified; see `FrameReader`."""
    pieces = [chunks] if isinstance(chunks, bytes | bytearray | memoryview) else chunks
    return b"".join(FrameReader(pieces, expected_object, key_for, kind=kind))
