"""Writing bundles: extents of many files in one stream of frames, with an index at the end.

The plain stream is the extents one after another, cut into frames of exactly `FRAME_BYTES` (the last may be
shorter); the final frame is the index (`seawall.codec.index`). Format v1, docs/repository-format.md.

A bundle is pulled, not pushed: `storage.put(name, writer.stream(sources))` reads, hashes, compresses and seals in
the thread that stores, with two buffers and no queue. Files are read straight into the frame's buffer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from seawall.codec.envelope import FRAME_BYTES, DataKey, Randomness
from seawall.codec.frame import PAGE_BYTES, FrameWriter, Scratch
from seawall.codec.index import TRAILER, TRAILER_MAGIC, Entry, encoded, encoded_index
from seawall.codec.runs import RunHasher, combined
from seawall.errors import UsageError
from seawall.model import Compression, Extent, StoredObject
from seawall.storage.base import Bytes

# What a bundle should hold of plain bytes; a larger file is split.
BUNDLE_BYTES = 64 * 1024 * 1024

# The index must fit into one frame: a bundle counts as full while one more entry, of the longest path, still fits.
_INDEX_RESERVE = 64 * 1024
_LONGEST_PATH = 4096
_FRAME_ROW_BYTES = 32

ReadInto: TypeAlias = Callable[[memoryview], int]
Inspect: TypeAlias = Callable[[memoryview, int], None]


@dataclass(frozen=True, slots=True)
class ExtentSource:
    """An extent to be written.

    Args:
        path: what the index and the manifest call the file.
        file_offset: where in the file the extent begins, in bytes.
        length: bytes at most; the extent ends early where the file does (it may shrink while it is read).
        readinto: fills a part of a buffer and returns how many bytes, 0 at the file's end.
        run_bytes: the length of the runs that its hash is made of; see `runs.run_bytes`.
        inspect: sees each filled part and its offset in the file, before it is hashed. Parts begin at multiples
            of 32 KiB from `file_offset`, and all but the last are multiples of 32 KiB long: pages are never cut.
    """

    path: str
    file_offset: int
    length: int
    readinto: ReadInto
    run_bytes: int
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
        self._digests: list[bytes] = []
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
    def digests(self) -> list[bytes]:
        """The digests of the runs of each extent in `entries`."""
        return list(self._digests)

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
            yield from self.add_from(source)
        yield from self.end()

    def add_from(self, source: ExtentSource) -> Iterator[Bytes]:
        """One extent, read straight into the frame's buffer; see `ExtentSource`.

        Raises:
            UsageError: the index is full (see `room`), or the bundle was ended.
        """
        yield from self._opening(source.path)
        begins, done, hasher = self.plain_bytes, 0, RunHasher(source.run_bytes)
        while done < source.length:
            region = self._region(source.length - done)
            got = _fill(region, source.readinto)
            part = region[:got]
            if source.inspect is not None and got:
                source.inspect(part, source.file_offset + done)
            hasher.update(part)
            done, self._used = done + got, self._used + got
            if self._used >= FRAME_BYTES:
                yield from self._full_frame()
            if got < len(region):
                break
        if done:
            self._note(source, begins, done, hasher.digests())

    def add(self, path: str, file_offset: int, chunks: Iterable[Bytes], run_bytes: int) -> Iterator[Bytes]:
        """One extent from chunks of any size, all of them; see `add_from`."""
        yield from self.add_from(ExtentSource(path, file_offset, 1 << 62, _reading(chunks), run_bytes))

    def end(self) -> Iterator[Bytes]:
        """The last data frame, the index and the trailer."""
        yield from self._opening("")
        if self._used:
            yield from self._data_frame(self._used)
            self._used = 0
        offset, number = self._frames.stored_bytes, self._frames.frames
        yield from self._frames.frame(encoded_index(self._table, self._entries), final=True)
        trailer = TRAILER.pack(offset, number, TRAILER_MAGIC)
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
        return [
            (e.path, e.file_offset, Extent(where, e.plain_offset, e.length, e.blake3, e.run_bytes))
            for e in self._entries
        ]

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

    def _note(self, source: ExtentSource, begins: int, length: int, digests: bytes) -> None:
        hashed = combined(digests)
        entry = Entry(source.path, source.file_offset, begins, length, hashed, source.run_bytes)
        self._entries.append(entry)
        self._digests.append(digests)
        self._index_bytes += len(encoded(entry)) + 1


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
