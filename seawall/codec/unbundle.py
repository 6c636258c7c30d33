"""Reading bundles: all of one in order, or single extents by their ranges.

Not guaranteed while iterating: an extent's own hash is compared when its last byte was released, and that the
bundle is whole is known at the end. Every frame was verified before, so what comes is what was written there.
A manifest may refer to a part of an extent, from one of its runs to the end of another: the rest is superseded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from seawall.codec.envelope import (
    FRAME_BYTES,
    FRAME_HEADER,
    MAX_HEADER_BYTES,
    TAG_BYTES,
    Envelope,
    KeySource,
    read_envelope,
)
from seawall.codec.frame import FrameDecoder, FrameReader, Source, refuse_other_object
from seawall.codec.index import TRAILER, TRAILER_MAGIC, Entry, decoded_index
from seawall.codec.runs import RunHasher, combined, digests_of
from seawall.errors import Damaged, UsageError
from seawall.storage.base import Bytes

# `(offset, length) -> chunks`, such as `partial(storage.get, name)`.
RangeReader: TypeAlias = Callable[[int, int], Iterable[Bytes]]


@dataclass(frozen=True, slots=True)
class Index:
    """What is in a bundle: its header, where its data frames begin and how long they are plain, its extents."""

    envelope: Envelope
    frames: tuple[tuple[int, int], ...]
    entries: tuple[Entry, ...]
    end: int
    decoder: FrameDecoder


class BundleReader:
    """Iterates (path, offset in the file, bytes) over the extents of one bundle, in the order they were written.

    Iterate once, to the end. The bytes are valid as long as they are kept.

    Args:
        chunks: the object's bytes in pieces of any size.
        expected_object: the logical name that it must carry.
        key_for: the data key of an id.
        entries: the extents that are wanted, as a manifest has them; others are passed over. Then memory holds a
            frame at a time. Without them the index decides, which comes last, so that the whole bundle is held.
        sparing: leave frames closed in which nothing of `entries` lies. What is handed out is proved all the same, and
            that the bundle is whole, but damage of a frame that nobody wants is not found.

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
        *,
        sparing: bool = False,
    ) -> None:
        self._frames = FrameReader(chunks, expected_object, key_for, kind="bundle")
        self._wanted = None if entries is None else sorted(entries, key=_plain_offset)
        self._sparing = sparing
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
            frames = self._data(self._wanted)
            yield from _pieces(frames, self._wanted, self.envelope.object)
            # Their end is where the bundle is proved whole.
            for _ in frames:
                pass
            return
        held = list(self._data(()))
        yield from _pieces(iter(held), self._index, self.envelope.object)

    def _data(self, wanted: Sequence[Entry]) -> Iterator[tuple[int, bytes]]:
        """Plain offset and bytes of the data frames; what follows them is verified before the iterator ends."""
        opened = frozenset(_numbers(wanted)) if self._sparing else None
        seen: list[tuple[int, int]] = []
        begin = 0
        for frame in self._frames.numbered(lambda number: opened is None or number in opened):
            if frame.final:
                self._close(seen, frame.offset, frame.plain)
                return
            seen.append((frame.offset, frame.length))
            if frame.plain:
                yield begin, frame.plain
            begin += frame.length

    def _close(self, seen: list[tuple[int, int]], offset: int, plain: bytes) -> None:
        name = self.envelope.object
        frames, self._index = decoded_index(plain, name)
        trailer = self._frames.tail(TRAILER.size)
        if list(frames) != seen or trailer != TRAILER.pack(offset, len(seen), TRAILER_MAGIC):
            raise Damaged(f"the index of {name} does not describe its frames")
        _refuse_strangers(self._wanted or (), self._index, name)


def _refuse_strangers(wanted: Iterable[Entry], index: Sequence[Entry], name: str) -> None:
    """Stop where a manifest names an extent that is not there; under which path it lies is the manifest's affair.

    Args:
        index: follows the plain stream, as `decoded_index` makes sure.
    """
    offsets = [entry.plain_offset for entry in index]
    for entry in wanted:
        place = bisect_right(offsets, entry.plain_offset) - 1
        if place < 0 or not _is_part(entry, index[place]):
            raise Damaged(f"{name} does not hold the extent of {entry.path!r} that its manifest names")


def _plain_offset(entry: Entry) -> int:
    return entry.plain_offset


def _is_part(entry: Entry, whole: Entry) -> bool:
    """Whether an extent that a manifest names is one of the index, or a part of it that begins and ends at runs.

    The bytes of a part are proved by its own hash, like those of a whole.
    """
    if (entry.plain_offset, entry.length) == (whole.plain_offset, whole.length):
        return (entry.blake3, entry.run_bytes) == (whole.blake3, whole.run_bytes)
    begin = entry.plain_offset - whole.plain_offset
    end = begin + entry.length
    at_runs = begin % whole.run_bytes == 0 and (end % whole.run_bytes == 0 or end == whole.length)
    return at_runs and entry.length > 0 and end <= whole.length and entry.run_bytes == whole.run_bytes


def _numbers(entries: Sequence[Entry]) -> list[int]:
    """Which frames hold the extents, which come in the order of the plain stream."""
    found: list[int] = []
    for entry in entries:
        first, end = entry.plain_offset // FRAME_BYTES, -(-(entry.plain_offset + entry.length) // FRAME_BYTES)
        found += range(max(first, found[-1] + 1) if found else first, end)
    return found


def _pieces(
    frames: Iterator[tuple[int, bytes]], entries: Sequence[Entry], name: str
) -> Iterator[tuple[str, int, memoryview]]:
    """Parts of the wanted extents, from (plain offset, plain bytes) of at least those frames that hold them."""
    begin, plain, passed = 0, memoryview(b""), 0
    for entry in entries:
        path, file_offset, at, length, blake3, run_bytes = entry
        end = at + length
        if at < passed:
            raise UsageError(f"extents of {name} overlap at {path!r}", hint="This is a defect in Seawall.")
        passed = end
        if begin <= at and end <= begin + len(plain):
            # A changed run of some ten KiB nearly always lies within one frame.
            part = plain[at - begin : end - begin]
            found = combined(digests_of(part, run_bytes))
            if length:
                yield path, file_offset, part
        else:
            hasher = RunHasher(run_bytes)
            while at < end:
                while at >= begin + len(plain):
                    begin, frame = next(frames, (end, b""))
                    if begin > at:
                        raise Damaged(f"{name} ends before the extent of {path!r} does")
                    plain = memoryview(frame)
                part = plain[at - begin : end - begin]
                hasher.update(part)
                yield path, file_offset + at - entry.plain_offset, part
                at += len(part)
            found = hasher.hexdigest()
        if found != blake3:
            raise Damaged(f"the extent of {path!r} in {name} is not what its hash says")


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
    if size_bytes < TRAILER.size:
        raise Damaged(f"{name} is too short for a bundle")
    head = _joined(read(0, min(size_bytes, MAX_HEADER_BYTES + 12)))
    envelope = read_envelope(head, name)
    refuse_other_object(envelope, name, "bundle")
    end = size_bytes - TRAILER.size
    offset, number, magic = TRAILER.unpack(_exactly(read, end, TRAILER.size, name))
    length = end - offset
    if magic != TRAILER_MAGIC or not FRAME_HEADER.size <= length <= FRAME_HEADER.size + FRAME_BYTES + TAG_BYTES:
        raise Damaged(f"{name} does not end like a bundle")
    decoder = FrameDecoder(envelope, key_for)
    plain, final = _one_frame(decoder, _exactly(read, offset, length, name), number, name)
    frames, entries = decoded_index(plain, name)
    if not final or number != len(frames):
        raise Damaged(f"the index of {name} does not describe its frames")
    return Index(envelope, frames, entries, offset, decoder)


def read_extents(read: RangeReader, index: Index, entries: Iterable[Entry]) -> Iterator[tuple[str, int, memoryview]]:
    """(path, offset in the file, bytes) over some extents, in the order of the bundle, reading only their frames.

    Frames that follow each other are read in one range, and each is opened once.

    Raises:
        Damaged: a frame or an extent is not what was written; one of `entries` is not in the index.
    """
    name, wanted = index.envelope.object, sorted(entries, key=_plain_offset)
    _refuse_strangers(wanted, index.entries, name)
    yield from _pieces(_frames(read, index, _numbers(wanted)), wanted, name)


def read_extent(read: RangeReader, index: Index, entry: Entry) -> Iterator[memoryview]:
    """The plain bytes of one extent; see `read_extents`."""
    for _, _, part in read_extents(read, index, [entry]):
        yield part


def _frames(read: RangeReader, index: Index, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    offsets = [offset for offset, _ in index.frames] + [index.end]
    for first, end in _consecutive(numbers):
        source = Source(read(offsets[first], _length(index, offsets[first], offsets[end])), index.envelope.object)
        for number in range(first, end):
            stored = source.take(_length(index, offsets[number], offsets[number + 1]))
            plain, final = _one_frame(index.decoder, stored, number, index.envelope.object)
            if final or len(plain) != index.frames[number][1]:
                raise Damaged(f"frame {number} of {index.envelope.object} is not the one its index describes")
            yield number * FRAME_BYTES, plain
        source.end()


def _consecutive(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges (first, end)."""
    begin = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[begin], numbers[place - 1] + 1
            begin = place


def _length(index: Index, begin: int, end: int) -> int:
    if end < begin:
        raise Damaged(f"the index of {index.envelope.object} contradicts itself")
    return end - begin


def _one_frame(decoder: FrameDecoder, stored: Bytes, number: int, name: str) -> tuple[bytes, bool]:
    header = bytes(stored[: FRAME_HEADER.size])
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
