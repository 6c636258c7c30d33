"""The block map of a backup set as a stream of JSON lines: what was known of each file, and a digest for each run.

The next incremental backup compares with it, and nothing else does: a restore never reads it. The order is one line
with the set's label and the time of its listing, a line for each file in the order of paths, and one line with the
counts (docs/repository-format.md, section "Block map").
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from seawall.codec.runs import DIGEST_BYTES, checked_run_bytes, combined
from seawall.errors import Damaged
from seawall.model import FileEntry
from seawall.repository import documents, lines

BLOCKS_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileBlocks:
    """One file as a backup found it.

    Args:
        path: as in the manifest.
        size: bytes when it was listed; what was stored of it may have another length.
        mtime_ns, ctime_ns: when it was listed, in nanoseconds of Unix time; 0 where nobody can know.
        inode: the same; 0 where nobody can know.
        run_bytes: how long its runs are; all its extents are made of these.
        digests: 16 bytes for each run of what was stored.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    run_bytes: int
    digests: bytes

    @property
    def runs(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def describes(self, entry: FileEntry) -> bool:
        """Whether the digests are those of a manifest's entry: as many as its bytes need, cut at the same places."""
        if self.path != entry.path or self.runs != -(-entry.size_bytes // self.run_bytes):
            return False
        offset = 0
        for extent in entry.extents:
            if extent.run_bytes != self.run_bytes or offset % self.run_bytes:
                return False
            offset += extent.length
        return offset == entry.size_bytes

    def proves(self, entry: FileEntry) -> bool:
        """Whether the hashes of a manifest's extents follow from the digests."""
        if not self.describes(entry):
            return False
        begin = 0
        for extent in entry.extents:
            end = begin + -(-extent.length // self.run_bytes) * DIGEST_BYTES
            if combined(self.digests[begin:end]) != extent.blake3:
                return False
            begin = end
        return True


def encode(label: str, listed_at_ns: int, files: Iterable[FileBlocks | lines.Row]) -> Iterator[bytes]:
    """The map's lines, each with its line feed.

    Args:
        label: of the set that it describes.
        listed_at_ns: when its files were listed, by the clock that their times come from; 0 where nobody can know.
        files: in the order of their paths, perhaps as `encoded_row` has made them.
    """
    yield lines.encoded({"blocks": BLOCKS_FORMAT, "label": label, "listed_at_ns": listed_at_ns})
    count = runs = 0
    for file in files:
        encoded = encoded_row(file) if isinstance(file, FileBlocks) else file
        count += 1
        runs += encoded.counted
        yield b'{"b":' + encoded.json + b"}\n"
    yield lines.encoded({"end": {"files": count, "runs": runs}})


def encoded_row(file: FileBlocks) -> lines.Row:
    """One file as its line has it, counted by its runs."""
    return lines.Row(lines.compact(row(file)), file.runs)


def row(file: FileBlocks) -> list[Any]:
    """One file as plain JSON values."""
    digests = base64.b64encode(file.digests).decode("ascii")
    return [file.path, file.size, file.mtime_ns, file.ctime_ns, file.inode, file.run_bytes, digests]


def header_of(line: bytes) -> tuple[int, int, int, int, int]:
    """Size, mtime, ctime, inode and length of runs from an `encoded_row`, without its digests.

    These are last and in Base64, so the last comma with a quote behind it is the one before them.

    Raises:
        ValueError: it is none.
    """
    _, *numbers = line[: line.rindex(b',"')].rsplit(b",", 5)
    size, mtime_ns, ctime_ns, inode, run_bytes = map(int, numbers)
    return size, mtime_ns, ctime_ns, inode, run_bytes


def with_times(line: bytes, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> lines.Row:
    """An `encoded_row` under other times; its digests are not decoded, of which a large file has many."""
    front, quote, digests = line.rpartition(b',"')
    path, *_, run_bytes = front.rsplit(b",", 5)
    text = digests.removesuffix(b'"]')
    runs = (len(text) // 4 * 3 - text.count(b"=")) // DIGEST_BYTES
    times = b",%d,%d,%d,%d," % (size, mtime_ns, ctime_ns, inode)
    return lines.Row(path + times + run_bytes + quote + digests, runs)


def from_row(value: Any, *, name: str) -> FileBlocks:
    """One file from plain JSON values; `name` is the object's, for messages.

    Raises:
        Damaged: they are none.
    """
    try:
        path, size, mtime_ns, ctime_ns, inode, run_bytes, text = value
        digests = base64.b64decode(text, validate=True)
        if len(digests) % DIGEST_BYTES:
            raise ValueError(f"{len(digests)} bytes are no digests")
        return FileBlocks(
            str(path), int(size), int(mtime_ns), int(ctime_ns), int(inode), checked_run_bytes(run_bytes), digests
        )
    except (ValueError, TypeError, binascii.Error) as error:
        raise Damaged(f"{name} has a malformed file: {error}") from error


class Reader:
    """A block map being read: label and time at once, files one by one.

    Args:
        frames: the map's verified plain bytes in pieces of any size.
        name: the object's name, for messages.

    Raises:
        FormatTooNew, Damaged: while reading.
    """

    def __init__(self, frames: Iterable[bytes], *, name: str) -> None:
        self._name = name
        self._lines = lines.decoded(frames, name=name)
        first = next(self._lines, {})
        documents.refuse_newer(first.get("blocks"), BLOCKS_FORMAT, name=name)
        try:
            self.label, self.listed_at_ns = str(first["label"]), int(first["listed_at_ns"])
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"{name} does not begin like a block map") from error

    def files(self) -> Iterator[FileBlocks]:
        """Every file in the order of paths; can be read once.

        Raises:
            Damaged: the map contradicts itself, or its end is missing.
        """
        count = runs = 0
        previous = ""
        for value in self._lines:
            if "b" not in value:
                self._check_end(value, count, runs)
                return
            file = from_row(value["b"], name=self._name)
            if count and file.path <= previous:
                raise Damaged(f"{self._name} lists {file.path!r} out of order")
            previous, count, runs = file.path, count + 1, runs + file.runs
            yield file
        raise Damaged(f"{self._name} has no end")

    def _check_end(self, value: dict[str, Any], files: int, runs: int) -> None:
        if value.get("end") != {"files": files, "runs": runs}:
            raise Damaged(f"{self._name} does not end as it should: {files} files were read")
        if next(self._lines, None) is not None:
            raise Damaged(f"{self._name} goes on after its end")
