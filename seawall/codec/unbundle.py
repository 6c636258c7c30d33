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
from seawall.codec.frame import FrameDecoder, FrameReader, refuse_other_object
from seawall.codec.index import TRAILER, TRAILER_MAGIC, Entry, decoded_index
from seawall.codec.runs import RunHasher
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
        frames, self._index = decoded_index(plain, name)
        trailer = self._frames.tail(TRAILER.size)
        if list(frames) != seen or trailer != TRAILER.pack(offset, len(seen), TRAILER_MAGIC):
            raise Damaged(f"the index of {name} does not describe its frames")
        _refuse_strangers(self._wanted or (), self._index, name)


def _refuse_strangers(wanted: Iterable[Entry], index: Iterable[Entry], name: str) -> None:
    """Stop where a manifest names an extent that is not there; under which path it lies is the manifest's affair."""
    there = sorted(index, key=_plain_offset)
    for entry in wanted:
        place = bisect_right(there, entry.plain_offset, key=_plain_offset) - 1
        if place < 0 or not _is_part(entry, there[place]):
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


def _pieces(frames: Iterator[bytes], entries: Sequence[Entry], name: str) -> Iterator[tuple[str, int, memoryview]]:
    """Parts of the wanted extents; consumes all frames, because their end is where the bundle is proved whole."""
    at, plain = 0, memoryview(b"")
    for entry in entries:
        if entry.plain_offset < at:
            raise UsageError(f"extents of {name} overlap at {entry.path!r}", hint="This is a defect in Seawall.")
        hasher, done = RunHasher(entry.run_bytes), 0
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


def read_extent(read: RangeReader, index: Index, entry: Entry) -> Iterator[memoryview]:
    """The plain bytes of one extent, reading only the frames that hold it.

    Raises:
        Damaged: a frame or the extent is not what was written; `entry` is not in the index.
    """
    name = index.envelope.object
    _refuse_strangers([entry], index.entries, name)
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
