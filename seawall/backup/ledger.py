"""What a copy found out about each extent and each file, on disk: a cluster may have a million files.

Memory holds where each row lies and nothing else. The files have no name, so nothing is left of them after a crash.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

from seawall.backup import prior
from seawall.backup.changes import Times
from seawall.backup.places import Places
from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository import blocks, manifest
from seawall.repository.blocks import FileBlocks
from seawall.repository.lines import Row

# Below this much nothing is written to disk.
_IN_MEMORY_BYTES = 8 * 1024 * 1024
# Number of the object, offset in the file, in the object's plain stream, length, run length, hash, bytes of path and
# digests.
_ROW = struct.Struct("<IQQQI32sII")
# Bytes of the file, its runs, then bytes of the line, and in it of the manifest's row and of the block map's.
_ENTRY = struct.Struct("<QQIII")
_NOTHING = Row(b"", 0)


class StoredExtent(NamedTuple):
    """An extent that was stored: where it begins in its file, where it lies, and the digests of its runs."""

    offset: int
    extent: Extent
    digests: bytes


class Extents:
    """What was stored of each file, in any order; one writer at a time, and no reader before the last of them.

    An extent is found by a hash of its path, and is one of the path only if it says so itself.
    """

    def __init__(self) -> None:
        self._rows: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - `close` does
        self._end = 0
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._places = Places()

    def add(self, path: str, offset: int, extent: Extent, digests: bytes) -> None:
        """Note an extent of a file."""
        number = self._numbers.setdefault(extent.object, len(self._numbers))
        if number == len(self._names):
            self._names.append(extent.object)
        name = path.encode("utf-8", "surrogatepass")
        row = _ROW.pack(
            number, offset, extent.offset, extent.length, extent.run_bytes, bytes.fromhex(extent.blake3), len(name),
            len(digests),
        )  # fmt: skip
        self._places.add(path, self._end)
        self._end += self._rows.write(row + name + digests)

    def has(self, path: str) -> bool:
        """Whether anything of a file was stored."""
        return bool(self.of(path))

    def of(self, path: str) -> list[StoredExtent]:
        """What was stored of a file, in the order of the file."""
        name = path.encode("utf-8", "surrogatepass")
        found = (self._row(place, name) for place in self._places.of(path))
        return sorted((row for row in found if row is not None), key=lambda row: row.offset)

    def _row(self, place: int, name: bytes) -> StoredExtent | None:
        self._rows.seek(place)
        number, offset, at, length, run_bytes, blake3, path, size = _ROW.unpack(self._rows.read(_ROW.size))
        if self._rows.read(path) != name:
            return None
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


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A file that is taken over as a whole: as it is listed now, and what was said of it before (`Known.rows`)."""

    path: str
    mode: int
    modified_at: float
    times: Times
    entry: bytes
    blocks: bytes


class Ledger:
    """The files of a backup in the order of their paths, encoded once: as manifest, block map and host copy have them.

    Args:
        files: as they are found, in the order of paths.
        own: the objects that this backup stored.
        earlier: those of the backups that it builds on.
    """

    def __init__(
        self, files: Iterable[CopiedFile | TakenFile], own: Sequence[StoredObject], earlier: Sequence[StoredObject] = ()
    ) -> None:
        self.objects = list(own)
        self._earlier = earlier
        self._numbers = _Numbers(self.objects, earlier)
        self._rows: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - `close` does
        self._count = 0
        self.plain_bytes = 0
        self.bad_pages: dict[str, tuple[int, ...]] = {}
        for file in files:
            if isinstance(file, TakenFile):
                self._note_taken(file)
            else:
                self._note_copied(file)

    def _note_copied(self, file: CopiedFile) -> None:
        entry = manifest.encoded_row(file.entry, self._numbers)
        known = _NOTHING if file.blocks is None else blocks.encoded_row(file.blocks)
        self._note(file.entry.path, entry, known)
        if file.entry.bad_pages:
            self.bad_pages[file.entry.path] = file.entry.bad_pages

    def _note_taken(self, file: TakenFile) -> None:
        """Most files of an incremental are such: to decode their extents and encode them again takes far longer."""
        entry = manifest.moved_row(file.entry, file.mode, file.modified_at, self._moved)
        self._note(file.path, entry, blocks.with_times(file.blocks, *file.times))

    def _moved(self, number: int) -> int:
        return self._numbers[self._earlier[number].name]

    def _note(self, path: str, entry: Row, known: Row) -> None:
        line = prior.map_line(path, entry, known)
        self._rows.write(_ENTRY.pack(entry.counted, known.counted, len(line), len(entry.json), len(known.json)))
        self._rows.write(line)
        self._count += 1
        self.plain_bytes += entry.counted

    def __len__(self) -> int:
        return self._count

    def _read(self) -> Iterator[tuple[Row, Row, bytes]]:
        place = 0
        for _ in range(self._count):
            # Two may go through it by turns.
            self._rows.seek(place)
            size, runs, length, entry, known = _ENTRY.unpack(self._rows.read(_ENTRY.size))
            line = self._rows.read(length)
            place += _ENTRY.size + length
            # At the end of the line, before its line feed: entry, tab, map.
            begin = length - 1 - known
            yield Row(line[begin - 1 - entry : begin - 1], size), Row(line[begin:-1], runs), line

    def entries(self) -> Iterator[Row]:
        """What the manifest says of each."""
        return (entry for entry, _, _ in self._read())

    def maps(self) -> Iterator[Row]:
        """What the block map says of those that are files."""
        return (known for _, known, _ in self._read() if known.json)

    def lines(self) -> Iterator[bytes]:
        """What the host keeps of those that are files (`prior.map_line`)."""
        return (line for _, known, line in self._read() if known.json)

    def close(self) -> None:
        self._rows.close()


class _Numbers(dict[str, int]):
    """The position of each object; one of an earlier backup gets the next when something first refers to it."""

    def __init__(self, objects: list[StoredObject], earlier: Sequence[StoredObject]) -> None:
        super().__init__((stored.name, number) for number, stored in enumerate(objects))
        self._objects = objects
        self._earlier = {stored.name: stored for stored in earlier}

    def __missing__(self, name: str) -> int:
        self._objects.append(self._earlier[name])
        self[name] = len(self._objects) - 1
        return self[name]
