"""Which parts of which files each object holds, kept small: a manifest may name a million files.

An extent takes 68 bytes here and a path its own length, where objects of Python would take ten times as much.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seawall.codec import Entry
from seawall.errors import Damaged
from seawall.model import Extent, FileEntry

_HASH_BYTES = 32


class Part(NamedTuple):
    """An extent, and the object that holds it."""

    object: str
    entry: Entry


class _Columns:
    """Extents: number of the file, of the object, offset in the file, in the plain stream, length, run, hash."""

    __slots__ = ("files", "hashes", "lengths", "numbers", "offsets", "plain_offsets", "run_bytes")

    def __init__(self) -> None:
        self.files, self.numbers, self.run_bytes = array("I"), array("I"), array("I")
        self.offsets, self.plain_offsets, self.lengths = array("Q"), array("Q"), array("Q")
        self.hashes = bytearray()


class Wanted:
    """Extents by the object that holds them, or by another one with which they are read, in the order of adding."""

    def __init__(self) -> None:
        self._columns: dict[str, _Columns] = {}
        self._numbers: dict[str, int] = {}
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

    def add(self, file: int, extents: Sequence[tuple[int, Extent]], under: str) -> None:
        """Want extents of a noted file, each with its offset in the file, with the object under which they are read."""
        offsets, found = zip(*extents, strict=True)
        names, plain_offsets, lengths, hashes, run_bytes = zip(*found, strict=True)
        for name in names:
            if name not in self._numbers:
                self._numbers[name] = len(self._numbers)
        columns = self._columns.get(under)
        if columns is None:
            columns = self._columns[under] = _Columns()
        columns.files.extend([file] * len(names))
        columns.numbers.extend([self._numbers[name] for name in names])
        columns.offsets.extend(offsets)
        columns.plain_offsets.extend(plain_offsets)
        columns.lengths.extend(lengths)
        columns.run_bytes.extend(run_bytes)
        columns.hashes += bytes.fromhex("".join(hashes))
        self._bytes[under] = self._bytes.get(under, 0) + sum(lengths)

    def whole(self, entry: FileEntry) -> None:
        """Want all of a file."""
        file = self.file(entry)
        for offset, extent in extents_of(entry):
            self.add(file, [(offset, extent)], extent.object)

    def objects(self) -> list[str]:
        """The objects under which something is wanted, most bytes first, so that all workers end at about one time."""
        return sorted(self._columns, key=lambda name: (-self._bytes[name], name))

    def runs(self, workers: int) -> list[list[str]]:
        """The same objects in the order of adding, as runs for workers that each take the next when they are free.

        The first runs are long, so that neighbours stay together; the last are short, so that all end at about one
        time.
        """
        left, room = sum(self._bytes.values()), 0.0
        runs: list[list[str]] = []
        for name in self._columns:
            size = self._bytes[name]
            if room < size / 2:
                runs.append([])
                room = left / (2 * workers)
            runs[-1].append(name)
            left, room = left - size, room - size
        return runs

    def entries(self, name: str) -> list[Entry]:
        """What is wanted under one object; empty for one of which nothing is."""
        return [part.entry for part in self.parts(name)]

    def parts(self, name: str) -> list[Part]:
        """The same with the objects that hold it."""
        columns = self._columns.get(name, _Columns())
        names, paths = tuple(self._numbers), self._paths_of(columns)
        hashes = columns.hashes.hex()
        length = 2 * _HASH_BYTES
        entries = map(
            Entry,
            [paths[file] for file in columns.files],
            columns.offsets,
            columns.plain_offsets,
            columns.lengths,
            [hashes[at : at + length] for at in range(0, len(hashes), length)],
            columns.run_bytes,
        )
        return list(map(Part, [names[number] for number in columns.numbers], entries))

    def modified_at(self, name: str) -> dict[str, float]:
        """When the files were modified that have a part under an object, in seconds of Unix time, by path."""
        columns = self._columns.get(name, _Columns())
        return {path: self._modified_at[file] for file, path in self._paths_of(columns).items()}

    def _paths_of(self, columns: _Columns) -> dict[int, str]:
        return {file: self._path(file) for file in dict.fromkeys(columns.files)}

    def _path(self, file: int) -> str:
        begin = self._ends[file - 1] if file else 0
        return self._paths[begin : self._ends[file]].decode("utf-8", "surrogatepass")


def extents_of(entry: FileEntry) -> Iterator[tuple[int, Extent]]:
    """(offset in the file, extent) over all extents of a file."""
    offset = 0
    for extent in entry.extents:
        yield offset, extent
        offset += extent.length


def refuse_holes(entry: FileEntry) -> None:
    """Stop at a file that its extents do not cover.

    Raises:
        Damaged: the manifest contradicts itself.
    """
    covered = sum(extent.length for extent in entry.extents)
    if entry.kind == "file" and covered != entry.size_bytes:
        raise Damaged(f"{entry.path} has {entry.size_bytes} bytes, but its extents have {covered}")
