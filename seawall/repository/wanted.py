"""Which parts of which files each object holds, kept small: a manifest may name a million files.

An extent takes 64 bytes here and a path its own length, where objects of Python would take ten times as much.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

from seawall.codec import Entry
from seawall.errors import Damaged
from seawall.model import Extent, FileEntry

# Number of the file, offset in it, offset in the object's plain stream, length, length of a run, hash.
_ROW = struct.Struct("<IQQQI32s")


class Wanted:
    """Extents by the object that holds them, in the order in which they were added."""

    def __init__(self) -> None:
        self._rows: dict[str, bytearray] = {}
        self._bytes: dict[str, int] = {}
        self._paths = bytearray()
        self._ends = array("Q")
        self._modified_at = array("d")

    def file(self, entry: FileEntry) -> int:
        """Note a file, and give the number that `add` knows it by."""
        self._paths += entry.path.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._paths))
        self._modified_at.append(entry.modified_at)
        return len(self._ends) - 1

    def add(self, file: int, offset: int, extent: Extent) -> None:
        """Want an extent that begins at `offset` of a noted file."""
        row = _ROW.pack(file, offset, extent.offset, extent.length, extent.run_bytes, bytes.fromhex(extent.blake3))
        self._rows.setdefault(extent.object, bytearray()).extend(row)
        self._bytes[extent.object] = self._bytes.get(extent.object, 0) + extent.length

    def whole(self, entry: FileEntry) -> None:
        """Want all of a file."""
        file, offset = self.file(entry), 0
        for extent in entry.extents:
            self.add(file, offset, extent)
            offset += extent.length

    def objects(self) -> list[str]:
        """The objects that are wanted, most bytes first, so that all workers end at about the same time."""
        return sorted(self._rows, key=lambda name: (-self._bytes[name], name))

    def entries(self, name: str) -> list[Entry]:
        """What is wanted of one object; empty for one of which nothing is."""
        return [
            Entry(self._path(file), offset, plain_offset, length, blake3.hex(), run_bytes)
            for file, offset, plain_offset, length, run_bytes, blake3 in self._unpacked(name)
        ]

    def modified_at(self, name: str) -> dict[str, float]:
        """When the files were modified that have a part in an object, in seconds of Unix time, by path."""
        return {self._path(row[0]): self._modified_at[row[0]] for row in self._unpacked(name)}

    def _unpacked(self, name: str) -> Iterator[tuple[int, int, int, int, int, bytes]]:
        return _ROW.iter_unpack(self._rows.get(name, b""))

    def _path(self, file: int) -> str:
        begin = self._ends[file - 1] if file else 0
        return self._paths[begin : self._ends[file]].decode("utf-8", "surrogatepass")


def refuse_holes(entry: FileEntry) -> None:
    """Stop at a file that its extents do not cover.

    Raises:
        Damaged: the manifest contradicts itself.
    """
    covered = sum(extent.length for extent in entry.extents)
    if entry.kind == "file" and covered != entry.size_bytes:
        raise Damaged(f"{entry.path} has {entry.size_bytes} bytes, but its extents have {covered}")
