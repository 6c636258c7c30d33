"""Everything that a scan of a data directory found, on disk: a cluster may have a million files.

Memory holds where each entry lies and nothing else. The file has no name, so nothing is left of it after a crash.
"""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

_SORTED_AT_ONCE = 50_000
_KINDS = ("file", "directory", "link")
# Kind, whether it is a relation, mode, size, mtime, first block, mtime and ctime in ns, inode, bytes of path and link.
_ROW = struct.Struct("<BBIQdQqqQII")


@dataclass(frozen=True, slots=True)
class CopyEntry:
    """One file, directory or link to copy.

    `path` is relative to the data directory, `/`-separated, perhaps below `pg_tblspc/<oid>/`; `kind` is file,
    directory or link. For a relation file `first_block` is the number of its first block within the fork.
    A file that is reached through a link inside the data directory is a file; `link` then says where it lies.
    `mtime_ns`, `ctime_ns` and `inode` are a file's, from before it was opened.
    """

    root: str
    path: str
    kind: str
    mode: int
    size: int = 0
    mtime: float = 0.0
    link: str = ""
    is_relation: bool = False
    first_block: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0

    @property
    def absolute(self) -> Path:
        """Where to read it."""
        return Path(self.place)

    @property
    def place(self) -> str:
        """The same as a text: of a million small files, each takes longer to make a `Path` of than to open."""
        return f"{self.root}/{self.path}"

    @property
    def is_control(self) -> bool:
        """Whether this is pg_control, which `control.read_control_bytes` reads and a restore writes last."""
        return self.path == "global/pg_control"


class Listing(Sequence[CopyEntry]):
    """Entries sorted by path, each made anew when it is asked for; may be read by several threads.

    Args:
        found: in any order; in that of their paths nearly always, which costs least. All have one root.
    """

    def __init__(self, found: Iterable[CopyEntry]) -> None:
        # `pread` leaves the position alone, so that threads need no lock.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when nobody needs the listing any more
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", (0,))
        self._order: Sequence[int] | None = None
        self.total_bytes = 0
        self._root = ""
        previous, is_sorted = "", True
        for entry in found:
            self._root = entry.root
            self._add(entry)
            is_sorted = is_sorted and previous <= entry.path
            previous = entry.path
        self._file.flush()
        if not is_sorted:
            # A directory comes before its files, and a name such as `a.b` between the two.
            self._order = self._sorted()

    def _sorted(self) -> array[int]:
        """All numbers in the order of their paths, of which few are in memory at once."""
        step, count = _SORTED_AT_ONCE, len(self)
        runs = [array("Q", sorted(range(count)[at : at + step], key=self._path)) for at in range(0, count, step)]
        return array("Q", heapq.merge(*runs, key=self._path))

    def _path(self, number: int) -> str:
        return self._entry(number).path

    def _add(self, entry: CopyEntry) -> None:
        path, link = _encoded(entry.path), _encoded(entry.link)
        row = _ROW.pack(
            _KINDS.index(entry.kind), entry.is_relation, entry.mode, entry.size, entry.mtime, entry.first_block,
            entry.mtime_ns, entry.ctime_ns, entry.inode, len(path), len(link),
        )  # fmt: skip
        self._ends.append(self._ends[-1] + self._file.write(row + path + link))
        self.total_bytes += entry.size

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> CopyEntry: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[CopyEntry]: ...

    def __getitem__(self, number: int | slice) -> CopyEntry | Sequence[CopyEntry]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        return self._entry(place if self._order is None else self._order[place])

    def __iter__(self) -> Iterator[CopyEntry]:
        return (self[number] for number in range(len(self)))

    @property
    def places(self) -> Sequence[int]:
        """Of each entry, which of those that were found it was."""
        return range(len(self)) if self._order is None else self._order

    def _entry(self, place: int) -> CopyEntry:
        begin = self._ends[place]
        row = os.pread(self._file.fileno(), self._ends[place + 1] - begin, begin)
        kind, is_relation, mode, size, mtime, block, mtime_ns, ctime_ns, inode, length, _ = _ROW.unpack_from(row)
        path = row[_ROW.size : _ROW.size + length]
        return CopyEntry(
            self._root, _decoded(path), _KINDS[kind], mode, size, mtime, _decoded(row[_ROW.size + length :]),
            bool(is_relation), block, mtime_ns, ctime_ns, inode,
        )  # fmt: skip


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
