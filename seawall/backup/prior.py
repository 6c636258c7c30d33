"""What is known of the backup that the next one builds on: where each file's bytes lie, and its digests.

The host that takes backups may hold no private key, so it cannot read its own backups. It keeps what the next one
needs in a directory of its own, bound to the manifest by its hash; a file of that kind that is damaged, missing or of
another manifest is made again from the repository where a private key is, and otherwise there is no prior.

Files are looked up one by one in the file, so memory holds where they lie and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO

from seawall.backup.changes import PriorFile, Seen, Times
from seawall.backup.places import Places
from seawall.errors import Damaged
from seawall.keys import KeyRing
from seawall.model import Head, StoredObject
from seawall.repository import SourceArea, blocks, manifest
from seawall.repository.blocks import FileBlocks
from seawall.repository.lines import Row, compact

_FORMAT = 1
_SUFFIX = ".map"
_END = b'{"sha256":'
# What is read for a line at first, and at most at once: a large file's line has a digest for each of its runs.
_PIECE_BYTES, _LONG_BYTES = 4096, 1024 * 1024


class Prior:
    """The backup that the next one builds on. `get` may be called from several threads.

    Args:
        head: of that backup.
        path: the file that `Maps` keeps of it.

    Raises:
        Damaged: the file is not what was written, or not of this backup.
        OSError: it cannot be read.
    """

    def __init__(self, head: Head, path: Path) -> None:
        self.head = head
        self._name = str(path)
        # Read, not mapped: what is mapped and was looked at counts as this process's memory.
        self._file = path.open("rb")
        try:
            self._places = self._proved(head)
        except BaseException:
            self._file.close()
            raise

    def get(self, path: str) -> PriorFile | None:
        """A file of that backup, or None if it had none of that path whose parts can be told apart."""
        line = self._line(path)
        if line is None:
            return None
        _, entry, block = line
        found = PriorFile(
            manifest.from_row(json.loads(entry), self.objects, name=self._name),
            blocks.from_row(json.loads(block), name=self._name),
        )
        return found if found.blocks.describes(found.entry) else None

    def seen(self, path: str) -> Seen | None:
        """How a file was found, or None if there is none of that path.

        Raises:
            Damaged: its line is none.
        """
        line = self._line(path)
        if line is None:
            return None
        try:
            *times, _ = blocks.header_of(line[2])
            return Seen(Times(*times), manifest.size_of(line[1]))
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{self._name} has a malformed line for {path!r}") from error

    def rows(self, path: str) -> tuple[bytes, bytes] | None:
        """What the manifest and the block map say of a file, in their own bytes; None if there is none of that path."""
        line = self._line(path)
        return None if line is None else (line[1], line[2])

    def blocks(self, path: str) -> FileBlocks:
        """Only the digests of a file that `get` finds: the many extents of a large file take long to read.

        Raises:
            KeyError: there is no such file.
        """
        found = self.rows(path)
        if found is None:
            raise KeyError(path)
        return blocks.from_row(json.loads(found[1]), name=self._name)

    def _line(self, path: str) -> list[bytes] | None:
        begins = compact(path) + b"\t"
        for place in self._places.of(path):
            line = self._read(place)
            if line.startswith(begins):
                return line.split(b"\t")
        return None

    def _read(self, place: int) -> bytes:
        """The line that begins there, without its end; by `pread`, so that threads need no lock."""
        pieces, length = [], _PIECE_BYTES
        while True:
            piece = os.pread(self._file.fileno(), length, place)
            end = piece.find(b"\n")
            if end >= 0 or not piece:
                pieces.append(piece[: max(end, 0)])
                return b"".join(pieces)
            pieces.append(piece)
            place, length = place + len(piece), min(length * 8, _LONG_BYTES)

    def paths(self) -> Iterator[str]:
        """The paths of all its files."""
        return (json.loads(self._read(place).partition(b"\t")[0]) for place in self._places)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Prior:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _proved(self, head: Head) -> Places:
        """Where each file's line begins, after every byte was hashed."""
        end = os.fstat(self._file.fileno()).st_size - len(_end_line("0" * 64))
        # One pass over all of it, before anything is believed.
        if end < 0 or _end_line(self._hash(end)) != self._file.read():
            raise Damaged(f"{self._name} is not what was written")
        self._file.seek(0)
        line = self._file.readline()
        first = json.loads(line)
        if (first["map"], first["label"], first["manifest_sha256"]) != (_FORMAT, str(head.label), head.manifest_sha256):
            raise Damaged(f"{self._name} is not of the manifest of {head.label}")
        self.listed_at_ns = int(first["listed_at_ns"])
        self.objects = [StoredObject(*values) for values in first["objects"]]
        places = Places()
        begin = len(line)
        while begin < end:
            line = self._file.readline()
            places.add(json.loads(line.partition(b"\t")[0]), begin)
            begin += len(line)
        return places

    def _hash(self, length: int) -> str:
        """The hash of so many bytes from the beginning; what follows them is read next."""
        hasher = hashlib.sha256()
        while length:
            piece = self._file.read(min(length, _LONG_BYTES))
            if not piece:
                break
            hasher.update(piece)
            length -= len(piece)
        return hasher.hexdigest()


class Maps:
    """The files with what is known of the newest backups of one source.

    Args:
        directory: where they are kept, or None to keep none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def open(self, area: SourceArea, head: Head, ring: KeyRing) -> Prior:
        """What is known of a backup, from this host, or else from the repository.

        Raises:
            KeyMissing: it is not known here, and the ring has no private key that opens the backup.
            ObjectMissing, Damaged, FormatTooNew: the repository does not tell it.
        """
        path = self._path(head)
        if path is not None:
            with contextlib.suppress(OSError, Damaged, ValueError, KeyError, TypeError):
                return Prior(head, path)
        return self._fetched(area, head, ring)

    def keep(self, head: Head, objects: Sequence[StoredObject], listed_at_ns: int, lines: Iterable[bytes]) -> None:
        """Keep what is known of a backup that was just committed.

        Args:
            objects: all that its files refer to.
            lines: a `map_line` for each file with a block map, in any order; positions are those in `objects`.

        Raises:
            OSError: it cannot be written.
        """
        if self._directory is None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _written_whole(self._directory / f"{head.label}{_SUFFIX}") as file:
            _write(file, head, objects, listed_at_ns, lines)

    def forget_all_but(self, labels: Iterable[str]) -> None:
        """Remove the files of all other backups, and what an interruption left.

        Raises:
            OSError: one cannot be removed.
        """
        kept = {f"{label}{_SUFFIX}" for label in labels}
        for path in self._directory.iterdir() if self._directory is not None and self._directory.is_dir() else ():
            if path.name not in kept and not path.is_dir():
                path.unlink()

    def _path(self, head: Head) -> Path | None:
        return None if self._directory is None else self._directory / f"{head.label}{_SUFFIX}"

    def _fetched(self, area: SourceArea, head: Head, ring: KeyRing) -> Prior:
        reader = area.manifest(head.label, ring)
        found = area.blocks(head, ring)
        with tempfile.TemporaryDirectory(prefix="seawall-map-") as place:
            path = Path(place, "map")
            with path.open("wb") as file:
                index = {stored.name: number for number, stored in enumerate(reader.objects)}
                lines = (
                    map_line(each.entry.path, manifest.encoded_row(each.entry, index), blocks.encoded_row(each.blocks))
                    for each in _paired(reader, found)
                )
                _write(file, head, reader.objects, found.listed_at_ns, lines)
            # Mapped into memory, it needs no name any more.
            return Prior(head, path)


def _paired(reader: manifest.Reader, found: blocks.Reader) -> Iterator[PriorFile]:
    """Files of a manifest and of its block map, which both are in the order of paths."""
    waiting = found.files()
    block = next(waiting, None)
    for entry in reader.files():
        if block is not None and block.path == entry.path:
            yield PriorFile(entry, block)
            block = next(waiting, None)
    if block is not None:
        raise Damaged(f"the block map of {reader.head_document.get('label')} has {block.path!r}, its manifest has not")


def map_line(path: str, entry: Row, known: Row) -> bytes:
    """One file as a host keeps it: its path, what the manifest says of it, and what the block map does."""
    return b"\t".join((compact(path), entry.json, known.json)) + b"\n"


def _write(
    file: IO[bytes], head: Head, objects: Sequence[StoredObject], listed_at_ns: int, lines: Iterable[bytes]
) -> None:
    hasher = hashlib.sha256()
    rows = [[o.name, o.stored_bytes, o.stored_sha256, o.plain_bytes] for o in objects]
    first = {"map": _FORMAT, "label": str(head.label), "manifest_sha256": head.manifest_sha256}
    front = compact(first | {"listed_at_ns": listed_at_ns, "objects": rows}) + b"\n"
    for line in chain((front,), lines):
        hasher.update(line)
        file.write(line)
    file.write(_end_line(hasher.hexdigest()))


def _end_line(sha256: str) -> bytes:
    return _END + f'"{sha256}"}}\n'.encode("ascii")


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that has its name only when it is whole."""
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
