"""The manifest of a backup set as a stream of JSON lines, written and read without holding it in memory.

The order is: one line with the head, a line for each stored object, a line for each special text, a line for
each file in the order of paths, and one line with the counts (docs/repository-format.md, section "Manifest").
Paths that are no UTF-8 survive: they carry surrogate escapes, which ASCII JSON keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from seawall.codec.runs import checked_run_bytes
from seawall.errors import Damaged
from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository import documents, lines

MANIFEST_FORMAT = 1


def encode(
    head: Mapping[str, Any],
    objects: Sequence[StoredObject],
    specials: Mapping[str, str],
    files: Iterable[FileEntry | lines.Row],
) -> Iterator[bytes]:
    """The manifest's lines, each with its line feed.

    Args:
        head: the head's document without the members about the manifest itself.
        objects: what the set stored, in the order that extents refer to.
        specials: texts by name, such as `backup_label`.
        files: every file, directory and link, in the order of their paths; a `encoded_row` refers to `objects`.
    """
    index = {stored.name: number for number, stored in enumerate(objects)}
    yield lines.encoded({"manifest": MANIFEST_FORMAT, "head": head})
    for stored in objects:
        yield lines.encoded({"o": [stored.name, stored.stored_bytes, stored.stored_sha256, stored.plain_bytes]})
    for name, text in specials.items():
        yield lines.encoded({"s": {"name": name, "text": text}})
    count = total = 0
    for entry in files:
        encoded = encoded_row(entry, index) if isinstance(entry, FileEntry) else entry
        count += 1
        total += encoded.counted
        yield b'{"f":' + encoded.json + b"}\n"
    yield lines.encoded({"end": {"objects": len(objects), "files": count, "bytes": total}})


def encoded_row(entry: FileEntry, index: Mapping[str, int]) -> lines.Row:
    """One file as its line has it, counted by its bytes; `index` as for `row`."""
    return lines.Row(lines.compact(row(entry, index)), entry.size_bytes)


def row(entry: FileEntry, index: Mapping[str, int]) -> dict[str, Any]:
    """One file as plain JSON values; `index` has the position of each stored object."""
    value: dict[str, Any] = {
        "path": entry.path,
        "kind": entry.kind,
        "mode": entry.mode,
        "size": entry.size_bytes,
        "mtime": entry.modified_at,
    }
    if entry.extents:
        value["extents"] = [[index[e.object], e.offset, e.length, e.blake3, e.run_bytes] for e in entry.extents]
    if entry.link:
        value["link"] = entry.link
    if entry.bad_pages:
        value["bad_pages"] = list(entry.bad_pages)
    return value


def size_of(line: bytes) -> int:
    """How many bytes the file of an `encoded_row` has, without reading its extents.

    A quote inside a path is escaped, so no path contains what is looked for; the same holds for `moved_row`.

    Raises:
        ValueError: it is none.
    """
    return int(line.partition(b',"extents":')[0].rpartition(b',"size":')[2].partition(b",")[0])


def moved_row(line: bytes, mode: int, modified_at: float, number: Callable[[int], int]) -> lines.Row:
    """An `encoded_row` of a whole file whose bytes lie where they lay, in objects that have other positions.

    Most files of an incremental are such, so what does not change is neither decoded nor encoded.

    Args:
        number: the position of an object, from the one that it had.
    """
    front, found, rest = line.partition(b',"extents":[[')
    size = size_of(line)
    made = front.rpartition(b',"mode":')[0] + b',"mode":%d,"size":%d,"mtime":%b' % (
        mode,
        size,
        lines.compact(modified_at),
    )
    if not found:
        return lines.Row(made + b"}", size)
    # What was wrong with pages is said by whoever reads them: only extents are taken over.
    extents = (each.split(b",", 1) for each in rest.partition(b"]]")[0].split(b"],["))
    return lines.Row(made + found + b"],[".join(b"%d,%b" % (number(int(n)), o) for n, o in extents) + b"]]}", size)


def from_row(value: Mapping[str, Any], objects: Sequence[StoredObject], *, name: str) -> FileEntry:
    """One file from plain JSON values; `name` is the object's, for messages.

    Args:
        objects: what its extents refer to by position.

    Raises:
        Damaged: they are none, or the path leaves its root.
    """
    try:
        return FileEntry(
            path=_safe_path(value["path"]),
            kind=str(value["kind"]),
            mode=int(value["mode"]),
            size_bytes=int(value["size"]),
            modified_at=float(value["mtime"]),
            extents=_extents(value.get("extents", ()), objects),
            link=str(value.get("link", "")),
            bad_pages=tuple(int(page) for page in value.get("bad_pages", ())),
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise Damaged(f"{name} has a malformed file entry: {error}") from error


def _extents(rows: Iterable[Any], objects: Sequence[StoredObject]) -> tuple[Extent, ...]:
    found = tuple(
        [
            Extent(objects[number].name, int(offset), int(length), str(blake3), run)
            for number, offset, length, blake3, run in rows
        ]
    )
    # A file's extents have one length of runs nearly always, so that each needs no look of its own.
    for run in {extent.run_bytes for extent in found}:
        checked_run_bytes(run)
    return found


class Reader:
    """A manifest being read: head, objects and specials at once, files one by one.

    Args:
        frames: the manifest's verified plain bytes in pieces of any size.
        name: the object's name, for messages.

    Raises:
        FormatTooNew, Damaged: while reading.
    """

    def __init__(self, frames: Iterable[bytes], *, name: str) -> None:
        self._name = name
        self._lines = lines.decoded(frames, name=name)
        first = next(self._lines, None)
        if first is None or "manifest" not in first:
            raise Damaged(f"{name} is not a manifest")
        documents.refuse_newer(first["manifest"], MANIFEST_FORMAT, name=name)
        self.head_document: Mapping[str, Any] = first.get("head", {})
        self.objects: list[StoredObject] = []
        self.specials: dict[str, str] = {}
        self._pending = self._read_front()

    def files(self) -> Iterator[FileEntry]:
        """Every file, directory and link in the order of their paths; can be read once.

        Raises:
            Damaged: the manifest contradicts itself, or its end is missing.
        """
        count = total = 0
        previous = ""
        value = self._pending
        while value is not None and "f" in value:
            entry = from_row(value["f"], self.objects, name=self._name)
            if count and entry.path <= previous:
                raise Damaged(f"{self._name} lists {entry.path!r} out of order")
            previous, count, total = entry.path, count + 1, total + entry.size_bytes
            yield entry
            value = next(self._lines, None)
        self._check_end(value, count, total)

    def _read_front(self) -> Mapping[str, Any] | None:
        for value in self._lines:
            try:
                if "o" in value:
                    name, stored, sha256, plain = value["o"]
                    self.objects.append(StoredObject(str(name), int(stored), str(sha256), int(plain)))
                elif "s" in value:
                    self.specials[str(value["s"]["name"])] = str(value["s"]["text"])
                else:
                    return value
            except (ValueError, TypeError, KeyError) as error:
                raise Damaged(f"{self._name} has a malformed line: {error}") from error
        return None

    def _check_end(self, value: Mapping[str, Any] | None, files: int, total: int) -> None:
        expected = {"objects": len(self.objects), "files": files, "bytes": total}
        if value is None or value.get("end") != expected:
            raise Damaged(f"{self._name} does not end as it should: {expected} were read")
        if next(self._lines, None) is not None:
            raise Damaged(f"{self._name} goes on after its end")


def _safe_path(path: object) -> str:
    """A relative path that stays below its root, whoever wrote the manifest."""
    if not isinstance(path, str) or path.startswith("/") or "\0" in path:
        raise ValueError(f"path {path!r} is not relative")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"path {path!r} leaves its root")
    return path
