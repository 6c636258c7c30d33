"""Bundles: extents of many files in one stream of frames, with an index at the end.

The plain stream is the extents one after another, cut into frames of exactly `FRAME_BYTES` (the last may be
shorter); the final frame is the index; a clear trailer of 24 bytes tells where it begins and its number (u64 BE,
u32 BE, `SEAWALL1IDX` and a line feed), so that it can be read alone. Format v1, docs/repository-format.md.

A bundle is pulled, not pushed: `storage.put(name, writer.stream(sources))` reads, hashes, compresses and seals in
the thread that stores, with two buffers and no queue. Files are read straight into the frame's buffer.

Not guaranteed while iterating: an extent's own BLAKE3 is compared when its last byte was released, and that the
bundle is whole is known at the end. Every frame was verified before, so what comes is what was written there.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from seawall.codec.envelope import (
    FRAME_BYTES,
    FRAME_HEADER,
    MAX_HEADER_BYTES,
    TAG_BYTES,
    DataKey,
    Envelope,
    KeySource,
    Randomness,
    read_envelope,
)
from seawall.codec.frame import PAGE_BYTES, FrameDecoder, FrameReader, FrameWriter, Scratch, refuse_other_object
from seawall.errors import Damaged, UsageError
from seawall.model import Compression, Extent, StoredObject
from seawall.storage.base import Bytes

# What a bundle should hold of plain bytes; a larger file is split.
BUNDLE_BYTES = 64 * 1024 * 1024

_TRAILER = struct.Struct(">QI12s")
_TRAILER_MAGIC = b"SEAWALL1IDX\n"
# The index must fit into one frame: a bundle counts as full while one more entry, of the longest path, still fits.
_INDEX_RESERVE = 64 * 1024
_LONGEST_PATH = 4096
_FRAME_ROW_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}")

# `(offset, length) -> chunks`, such as `partial(storage.get, name)`.
RangeReader: TypeAlias = Callable[[int, int], Iterable[Bytes]]
ReadInto: TypeAlias = Callable[[memoryview], int]
Inspect: TypeAlias = Callable[[memoryview, int], None]


class Entry(NamedTuple):
    """One extent as the index has it: `length` bytes of `path` at `file_offset`, at `plain_offset` of the stream."""

    path: str
    file_offset: int
    plain_offset: int
    length: int
    blake3: str


@dataclass(frozen=True, slots=True)
class ExtentSource:
    """An extent to be written.

    Args:
        path: what the index and the manifest call the file.
        file_offset: where in the file the extent begins, in bytes.
        length: bytes at most; the extent ends early where the file does (it may shrink while it is read).
        readinto: fills a part of a buffer and returns how many bytes, 0 at the file's end.
        inspect: sees each filled part and its offset in the file, before it is hashed. Parts begin at multiples
            of 32 KiB from `file_offset`, and all but the last are multiples of 32 KiB long: pages are never cut.
    """

    path: str
    file_offset: int
    length: int
    readinto: ReadInto
    inspect: Inspect | None = None


class BundleWriter:
    """Makes one bundle.

    Either `storage.put(name, writer.stream(sources))`, or any chain of `add_from` and `add` closed by `end`: all are
    generators of stored chunks, each valid until the next is asked for, and do nothing unless iterated. Afterwards
    `finish` tells what was stored. Put relation files before files of odd size, so that pages lie aligned.

    Args: as for `FrameWriter`.
    """

    def __init__(
        self,
        object_name: str,
        *,
        compression: Compression,
        level: int = 1,
        key: DataKey | None,
        randomness: Randomness = os.urandom,
        hashed: bool = True,
        scratch: Scratch | None = None,
    ) -> None:
        self._frames = FrameWriter(
            "bundle",
            object_name,
            compression=compression,
            level=level,
            key=key,
            randomness=randomness,
            hashed=hashed,
            scratch=scratch,
        )
        self._buffer = self._frames.scratch.plain
        self._used = 0
        self._table: list[tuple[int, int]] = []
        self._entries: list[Entry] = []
        self._index_bytes = 0
        self._ended = False

    @property
    def object_name(self) -> str:
        return self._frames.envelope.object

    @property
    def plain_bytes(self) -> int:
        """Bytes of extents taken in so far; the index is not counted."""
        return sum(length for _, length in self._table) + self._used

    @property
    def stored_bytes(self) -> int:
        return self._frames.stored_bytes

    @property
    def sha256(self) -> str:
        """The hash, in hex, of everything emitted so far."""
        return self._frames.sha256

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The extents that are complete."""
        return tuple(self._entries)

    @property
    def room(self) -> int:
        """Plain bytes that should still go into this bundle; 0 also where its index has no room for an entry."""
        return 0 if self._index_is_full else max(0, BUNDLE_BYTES - self.plain_bytes)

    @property
    def _index_is_full(self) -> bool:
        return self._index_bytes + len(self._table) * _FRAME_ROW_BYTES > FRAME_BYTES - _INDEX_RESERVE

    def stream(self, sources: Iterable[ExtentSource]) -> Iterator[Bytes]:
        """The whole bundle; `sources` may be a generator that looks at `room` to know when to stop."""
        for source in sources:
            yield from self.add_from(source.path, source.file_offset, source.readinto, source.length, source.inspect)
        yield from self.end()

    def add_from(
        self, path: str, file_offset: int, readinto: ReadInto, length: int, inspect: Inspect | None = None
    ) -> Iterator[Bytes]:
        """One extent, read straight into the frame's buffer; see `ExtentSource`.

        Raises:
            UsageError: the index is full (see `room`), or the bundle was ended.
        """
        from blake3 import blake3  # noqa: PLC0415 - segments of WAL never come here

        yield from self._opening(path)
        begins, done, hasher = self.plain_bytes, 0, blake3()
        while done < length:
            region = self._region(length - done)
            got = _fill(region, readinto)
            part = region[:got]
            if inspect is not None and got:
                inspect(part, file_offset + done)
            hasher.update(part)
            done, self._used = done + got, self._used + got
            if self._used >= FRAME_BYTES:
                yield from self._full_frame()
            if got < len(region):
                break
        if done:
            self._note(Entry(path, file_offset, begins, done, hasher.hexdigest()))

    def add(self, path: str, file_offset: int, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
        """One extent from chunks of any size, all of them; see `add_from`."""
        yield from self.add_from(path, file_offset, _reading(chunks), 1 << 62)

    def end(self) -> Iterator[Bytes]:
        """The last data frame, the index and the trailer."""
        yield from self._opening("")
        if self._used:
            yield from self._data_frame(self._used)
            self._used = 0
        offset, number = self._frames.stored_bytes, self._frames.frames
        yield from self._frames.frame(_encoded_index(self._table, self._entries), final=True)
        trailer = _TRAILER.pack(offset, number, _TRAILER_MAGIC)
        self._frames.count(trailer)
        self._ended = True
        yield trailer

    def finish(self, name: str | None = None) -> tuple[StoredObject, list[tuple[str, int, Extent]]]:
        """What was stored, and each extent as a manifest refers to it: path, offset in the file, extent.

        Args:
            name: the object's name in the storage; the logical name when omitted.

        Raises:
            UsageError: the bundle was not iterated to its end.
        """
        if not self._ended:
            raise UsageError(f"bundle {self.object_name} is not complete", hint="This is a defect in Seawall.")
        return StoredObject(name or self.object_name, self.stored_bytes, self.sha256, self.plain_bytes), self.extents(
            name
        )

    def extents(self, name: str | None = None) -> list[tuple[str, int, Extent]]:
        """Each complete extent as a manifest refers to it; `name` as for `finish`."""
        where = name or self.object_name
        return [(e.path, e.file_offset, Extent(where, e.plain_offset, e.length, e.blake3)) for e in self._entries]

    def _opening(self, path: str) -> Iterator[Bytes]:
        too_long = len(path.encode("utf-8", "surrogateescape")) > _LONGEST_PATH
        if self._ended or too_long or (path and self._index_is_full):
            raise UsageError(
                f"bundle {self.object_name} cannot take {path!r}: it is full or ended, or the path is too long",
                hint="This is a defect in Seawall.",
            )
        if not self._frames.stored_bytes:
            yield self._frames.begin()

    def _region(self, wanted: int) -> memoryview:
        """Where to read next: to the frame's end and on to the end of the page, so that no page is cut."""
        left = FRAME_BYTES - self._used
        pages = -(-left // PAGE_BYTES) * PAGE_BYTES
        return self._buffer[self._used : self._used + min(wanted, pages)]

    def _full_frame(self) -> Iterator[Bytes]:
        yield from self._data_frame(FRAME_BYTES)
        beyond = self._used - FRAME_BYTES
        self._buffer[:beyond] = self._buffer[FRAME_BYTES : self._used]
        self._used = beyond

    def _data_frame(self, length: int) -> Iterator[Bytes]:
        offset = self._frames.stored_bytes
        chunks = self._frames.frame(self._buffer[:length])
        self._table.append((offset, length))
        yield from chunks

    def _note(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._index_bytes += len(_json(entry)) + 1


def _fill(region: memoryview, readinto: ReadInto) -> int:
    """Read until the region is full or the file ends; a single read may stop anywhere."""
    have = 0
    while have < len(region):
        got = readinto(region[have:] if have else region)
        if got <= 0:
            break
        have += got
    return have


def _reading(chunks: Iterable[Bytes]) -> ReadInto:
    source = iter(chunks)
    rest = memoryview(b"")

    def readinto(view: memoryview) -> int:
        nonlocal rest
        while not rest:
            chunk = next(source, None)
            if chunk is None:
                return 0
            rest = memoryview(chunk).cast("B")
        taken = min(len(view), len(rest))
        view[:taken] = rest[:taken]
        rest = rest[taken:]
        return taken

    return readinto


def _json(value: object) -> bytes:
    # A file's name need not be UTF-8; its bytes survive as they are.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _encoded_index(table: Sequence[tuple[int, int]], entries: Sequence[Entry]) -> bytes:
    return _json({"frames": table, "entries": entries})


@dataclass(frozen=True, slots=True)
class Index:
    """What is in a bundle: its header, where its data frames begin and how long they are plain, its extents."""

    envelope: Envelope
    frames: tuple[tuple[int, int], ...]
    entries: tuple[Entry, ...]
    end: int
    decoder: FrameDecoder


def _decoded_index(plain: bytes, name: str) -> tuple[tuple[tuple[int, int], ...], tuple[Entry, ...]]:
    """Frames and entries of an index.

    Raises:
        Damaged: it is no index, or contradicts itself.
    """
    try:
        document = json.loads(plain.decode("utf-8", "surrogateescape"))
        frames = tuple((_count(offset), _count(length)) for offset, length in document["frames"])
        entries = tuple(
            Entry(_path(path), _count(at), _count(plain_at), _count(length), _hash(digest))
            for path, at, plain_at, length, digest in document["entries"]
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


class BundleReader:
    """Iterates (path, offset in the file, bytes) over the extents of one bundle, in the order they were written.

    Iterate once, to the end. The bytes are valid as long as they are kept.

    Args:
        chunks: the object's bytes in pieces of any size.
        expected_object: the logical name that it must carry.
        key_for: the data key of an id.
        entries: the extents that are wanted, as a manifest has them; others are passed over. Then memory holds a
            frame at a time. Without them the index decides, which comes last, so that the whole bundle is held.

    Raises:
        Damaged: the bundle, or an extent in it, is not what was written, or a wanted extent is not in it.
        FormatTooNew: a newer version wrote it.
        KeyMissing: from `key_for`.
    """

    def __init__(
        self,
        chunks: Iterable[Bytes],
        expected_object: str,
        key_for: KeySource,
        entries: Iterable[Entry] | None = None,
    ) -> None:
        self._frames = FrameReader(chunks, expected_object, key_for, kind="bundle")
        self._wanted = None if entries is None else sorted(entries, key=lambda entry: entry.plain_offset)
        self._index: tuple[Entry, ...] = ()

    @property
    def envelope(self) -> Envelope:
        return self._frames.envelope

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The index; known once the bundle was iterated."""
        return self._index

    def __iter__(self) -> Iterator[tuple[str, int, memoryview]]:
        if self._wanted is not None:
            yield from _pieces(self._data(), self._wanted, self.envelope.object)
            return
        held = list(self._data())
        yield from _pieces(iter(held), self._index, self.envelope.object)

    def _data(self) -> Iterator[bytes]:
        """Data frames; what follows them is verified before the iterator ends."""
        seen: list[tuple[int, int]] = []
        for offset, plain, final in self._frames.numbered():
            if final:
                self._close(seen, offset, plain)
                return
            seen.append((offset, len(plain)))
            yield plain

    def _close(self, seen: list[tuple[int, int]], offset: int, plain: bytes) -> None:
        name = self.envelope.object
        frames, self._index = _decoded_index(plain, name)
        trailer = self._frames.tail(_TRAILER.size)
        if list(frames) != seen or trailer != _TRAILER.pack(offset, len(seen), _TRAILER_MAGIC):
            raise Damaged(f"the index of {name} does not describe its frames")
        strangers = set(self._wanted or ()) - set(self._index)
        if strangers:
            raise Damaged(f"{name} does not hold the extent of {min(strangers).path!r} that its manifest names")


def _pieces(frames: Iterator[bytes], entries: Sequence[Entry], name: str) -> Iterator[tuple[str, int, memoryview]]:
    """Parts of the wanted extents; consumes all frames, because their end is where the bundle is proved whole."""
    from blake3 import blake3  # noqa: PLC0415 - segments of WAL never come here

    at, plain = 0, memoryview(b"")
    for entry in entries:
        if entry.plain_offset < at:
            raise UsageError(f"extents of {name} overlap at {entry.path!r}", hint="This is a defect in Seawall.")
        hasher, done = blake3(), 0
        while done < entry.length:
            if not plain:
                found = next(frames, None)
                if found is None:
                    raise Damaged(f"{name} ends before the extent of {entry.path!r} does")
                plain = memoryview(found)
            skipped = min(len(plain), entry.plain_offset + done - at)
            part = plain[skipped : skipped + entry.length - done]
            plain, at = plain[skipped + len(part) :], at + skipped + len(part)
            if part:
                hasher.update(part)
                yield entry.path, entry.file_offset + done, part
                done += len(part)
        if hasher.hexdigest() != entry.blake3:
            raise Damaged(f"the extent of {entry.path!r} in {name} is not what its hash says")
    for _ in frames:
        pass


def read_index(read: RangeReader, size_bytes: int, expected_object: str, key_for: KeySource) -> Index:
    """A bundle's index by three or four range reads, without its data.

    Args:
        read: reads a range of the object, such as `partial(storage.get, name)`.
        size_bytes: the object's size.
        expected_object: the logical name that it must carry.

    Raises:
        Damaged: the object is not what was written, as far as was read.
        FormatTooNew: a newer version wrote it.
        KeyMissing: from `key_for`.
    """
    name = expected_object
    if size_bytes < _TRAILER.size:
        raise Damaged(f"{name} is too short for a bundle")
    head = _joined(read(0, min(size_bytes, MAX_HEADER_BYTES + 12)))
    envelope = read_envelope(head, name)
    refuse_other_object(envelope, name, "bundle")
    end = size_bytes - _TRAILER.size
    offset, number, magic = _TRAILER.unpack(_exactly(read, end, _TRAILER.size, name))
    length = end - offset
    if magic != _TRAILER_MAGIC or not FRAME_HEADER.size <= length <= FRAME_HEADER.size + FRAME_BYTES + TAG_BYTES:
        raise Damaged(f"{name} does not end like a bundle")
    decoder = FrameDecoder(envelope, key_for)
    plain, final = _one_frame(decoder, _exactly(read, offset, length, name), number, name)
    frames, entries = _decoded_index(plain, name)
    if not final or number != len(frames):
        raise Damaged(f"the index of {name} does not describe its frames")
    return Index(envelope, frames, entries, offset, decoder)


def read_extent(read: RangeReader, index: Index, entry: Entry) -> Iterator[memoryview]:
    """The plain bytes of one extent, reading only the frames that hold it.

    Raises:
        Damaged: a frame or the extent is not what was written; `entry` is not in the index.
    """
    name = index.envelope.object
    if entry not in index.entries:
        raise Damaged(f"{name} does not hold the extent of {entry.path!r} that its manifest names")
    first, last = entry.plain_offset // FRAME_BYTES, (entry.plain_offset + entry.length - 1) // FRAME_BYTES
    moved = entry._replace(plain_offset=entry.plain_offset - first * FRAME_BYTES)
    for _, _, part in _pieces(_frames(read, index, first, last), [moved], name):
        yield part


def _frames(read: RangeReader, index: Index, first: int, last: int) -> Iterator[bytes]:
    offsets = [offset for offset, _ in index.frames] + [index.end]
    for number in range(first, last + 1):
        name = index.envelope.object
        stored = _exactly(read, offsets[number], offsets[number + 1] - offsets[number], name)
        plain, final = _one_frame(index.decoder, stored, number, name)
        if final or len(plain) != index.frames[number][1]:
            raise Damaged(f"frame {number} of {name} is not the one its index describes")
        yield plain


def _one_frame(decoder: FrameDecoder, stored: bytes, number: int, name: str) -> tuple[bytes, bool]:
    header = stored[: FRAME_HEADER.size]
    if len(header) < FRAME_HEADER.size or decoder.stored_length(header, number) != len(stored) - FRAME_HEADER.size:
        raise Damaged(f"frame {number} of {name} does not lie where its index says")
    return decoder.decode(header, number, memoryview(stored)[FRAME_HEADER.size :])


def _exactly(read: RangeReader, offset: int, length: int, name: str) -> bytes:
    if length < 0:
        raise Damaged(f"the index of {name} contradicts itself")
    found = _joined(read(offset, length))
    if len(found) != length:
        raise Damaged(f"{name} ends in the middle")
    return found


def _joined(chunks: Iterable[Bytes]) -> bytes:
    return b"".join(chunks)
