"""What a copy found out about each extent and each file, on disk: a cluster may have a million files.

Memory holds where each row lies and nothing else. The files have no name, so nothing is left of them after a crash.
"""

from __future__ import annotations

import json
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository import blocks, manifest
from seawall.repository.blocks import FileBlocks

# Below this much nothing is written to disk.
_IN_MEMORY_BYTES = 8 * 1024 * 1024
# Number of the object, offset in the file, in the object's plain stream, length, run length, hash, bytes of digests.
_ROW = struct.Struct("<IQQQI32sI")


class StoredExtent(NamedTuple):
    """An extent that was stored: where it begins in its file, where it lies, and the digests of its runs."""

    offset: int
    extent: Extent
    digests: bytes


class Extents:
    """What was stored of each file, in any order; one writer at a time, and no reader before the last of them."""

    def __init__(self) -> None:
        self._rows: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - `close` does
        self._end = 0
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._places: dict[str, array[int]] = {}

    def add(self, path: str, offset: int, extent: Extent, digests: bytes) -> None:
        """Note an extent of a file."""
        number = self._numbers.setdefault(extent.object, len(self._numbers))
        if number == len(self._names):
            self._names.append(extent.object)
        row = _ROW.pack(
            number, offset, extent.offset, extent.length, extent.run_bytes, bytes.fromhex(extent.blake3), len(digests)
        )
        self._places.setdefault(path, array("Q")).append(self._end)
        self._end += self._rows.write(row + digests)

    def of(self, path: str) -> list[StoredExtent]:
        """What was stored of a file, in the order of the file."""
        return sorted((self._row(place) for place in self._places.get(path, ())), key=lambda row: row.offset)

    def _row(self, place: int) -> StoredExtent:
        self._rows.seek(place)
        number, offset, at, length, run_bytes, blake3, size = _ROW.unpack(self._rows.read(_ROW.size))
        return StoredExtent(
            offset, Extent(self._names[number], at, length, blake3.hex(), run_bytes), self._rows.read(size)
        )

    def close(self) -> None:
        self._rows.close()


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file, directory or link of a manifest; `blocks` is None for what is no file."""

    entry: FileEntry
    blocks: FileBlocks | None


class Ledger:
    """The files of a backup in the order of their paths; can be gone through as often as needed.

    Args:
        files: as they are found, in the order of paths.
        objects: all that they may refer to.
    """

    def __init__(self, files: Iterable[CopiedFile], objects: Sequence[StoredObject]) -> None:
        self._objects = objects
        self._rows: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - `close` does
        self._count = 0
        self.plain_bytes = 0
        self.bad_pages: dict[str, tuple[int, ...]] = {}
        self.used: set[str] = set()
        index = {stored.name: number for number, stored in enumerate(objects)}
        for file in files:
            self._note(file, index)

    def _note(self, file: CopiedFile, index: dict[str, int]) -> None:
        known = None if file.blocks is None else blocks.row(file.blocks)
        self._rows.write(json.dumps([manifest.row(file.entry, index), known]).encode("ascii") + b"\n")
        self._count += 1
        self.plain_bytes += file.entry.size_bytes
        self.used.update(extent.object for extent in file.entry.extents)
        if file.entry.bad_pages:
            self.bad_pages[file.entry.path] = file.entry.bad_pages

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[CopiedFile]:
        place = 0
        while True:
            # Two may go through it by turns.
            self._rows.seek(place)
            line = self._rows.readline()
            if not line:
                return
            place += len(line)
            entry, known = json.loads(line)
            yield CopiedFile(
                manifest.from_row(entry, self._objects, name="the ledger"),
                None if known is None else blocks.from_row(known, name="the ledger"),
            )

    def entries(self) -> Iterator[FileEntry]:
        """What the manifest says of each."""
        return (file.entry for file in self)

    def maps(self) -> Iterator[FileBlocks]:
        """What the block map says of those that are files."""
        return (file.blocks for file in self if file.blocks is not None)

    def close(self) -> None:
        self._rows.close()
