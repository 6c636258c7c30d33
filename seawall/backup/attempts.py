"""What a backup stored so far, noted on this host as it goes, so that another attempt can take it over.

A host that takes backups may hold no private key, so it cannot read what an attempt that was stopped left in the
repository. Here it keeps, for its account alone, which objects were stored and confirmed, and the digests of what is in
them: paths and digests, no data and no key. Each line carries its own hash, so whatever a crash made of the file's end,
the lines before it count and nothing behind them does. Lines are not synced: what a power failure takes from the end is
stored again.

Not guaranteed: that the objects are still there, or sound. `seawall.backup.resume` proves that before they are used.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, NamedTuple

from seawall.codec.runs import DIGEST_BYTES, checked_run_bytes
from seawall.errors import NameRefused
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Extent, StoredObject
from seawall.repository import lines

_FORMAT = 1
_SUFFIX = ".attempt"
_HASH_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Terms:
    """What must be the same for a backup to take over what an attempt stored.

    Args:
        prior: the label that it builds on; empty for a full backup.
        recipients: for whom the attempt's data key is wrapped.
    """

    source: str
    kind: str
    mode: str
    prior: str
    system_identifier: str
    major_version: int
    timeline: int
    checksums: bool
    block_bytes: int
    sealing: str
    compression: str
    level: int
    recipients: tuple[str, ...]

    def difference(self, earlier: Terms) -> str:
        """Why what an attempt with other terms stored is of no use; empty where it is."""
        for term in fields(self):
            was, is_ = getattr(earlier, term.name), getattr(self, term.name)
            if was != is_:
                return f"its {term.name.replace('_', ' ')} was {was or 'none'}, this backup's is {is_ or 'none'}"
        return ""


class NotedExtent(NamedTuple):
    """An extent of an attempt: its file, where it begins there, where it lies, and the digests of its runs."""

    path: str
    offset: int
    extent: Extent
    digests: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """A backup that was begun on this host, as far as its notes go.

    Args:
        objects: what was stored and confirmed.
        spoiled: files of which a page did not match its checksum: nothing of them is taken over.
        parts_sha256: what the storage said of the parts of objects that were sent in parts, by name.
    """

    label: BackupLabel
    terms: Terms
    path: Path
    objects: tuple[StoredObject, ...]
    spoiled: frozenset[str]
    parts_sha256: Mapping[str, str] = field(default_factory=dict)

    def extents(self) -> Iterator[tuple[StoredObject, list[NotedExtent]]]:
        """What lies in each object."""
        for note in _notes(self.path):
            if "object" in note:
                stored = _object(note)
                yield stored, [_extent(row, stored.name) for row in note["extents"]]


class AttemptLog:
    """Notes of the attempt that is under way; all its workers write here.

    A backup does not fail for want of notes: where they cannot be written, that is said, and a later attempt starts
    from what was noted before.

    Args:
        file: open for appending, or None to note nothing.
    """

    def __init__(self, file: IO[bytes] | None, observe: Observer) -> None:
        self._file, self._observe = file, observe
        self._lock = threading.Lock()

    @property
    def is_kept(self) -> bool:
        return self._file is not None

    def note(
        self,
        stored: StoredObject,
        extents: Iterable[tuple[str, int, Extent]],
        digests: Sequence[bytes],
        *,
        parts_sha256: str = "",
    ) -> None:
        """Note an object after the storage confirmed it, and never before.

        Args:
            parts_sha256: what the storage says of the parts that it was sent in (`Stat.parts_sha256`).
        """
        if self._file is None:
            return
        rows = [
            [path, offset, e.offset, e.length, e.blake3, e.run_bytes, base64.b64encode(found).decode("ascii")]
            for (path, offset, e), found in zip(extents, digests, strict=True)
        ]
        row = [stored.name, stored.stored_bytes, stored.stored_sha256, stored.plain_bytes]
        told = {"parts_sha256": parts_sha256} if parts_sha256 else {}
        self._write({"object": row, **told, "extents": rows})

    def spoil(self, path: str) -> None:
        """Have nothing of a file taken over: a page of it did not match its checksum, now or for good."""
        self._write({"spoiled": path})

    def close(self) -> None:
        """End the notes; what was written stays."""
        with self._lock:
            self._give_up()

    def _write(self, note: dict[str, Any]) -> None:
        line = _line(note)
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:
                # A line may be there in part. Nothing may follow it, because nothing behind it would be believed.
                self._give_up()
                self._observe.hear(_unnoted(error))

    def _give_up(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None


class Attempts:
    """The notes of attempts at backups of one source that did not come to their end.

    Args:
        directory: where they are kept, or None to keep none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def begin(self, label: BackupLabel, terms: Terms, observe: Observer) -> AttemptLog:
        """Begin the notes of a new attempt."""
        if self._directory is None:
            return AttemptLog(None, observe)
        path = self._directory / f"{label}{_SUFFIX}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = open(path, "xb", opener=_for_owner)  # noqa: SIM115 - the log closes it
        except OSError as error:
            observe.hear(_unnoted(error))
            return AttemptLog(None, observe)
        log = AttemptLog(file, observe)
        log._write({"attempt": _FORMAT, "label": str(label), "terms": asdict(terms)})
        return log

    def found(self) -> tuple[Attempt, ...]:
        """All attempts of which notes are kept and can be read, in the order of time."""
        read = (_attempt(path) for path in self._paths())
        return tuple(sorted((one for one in read if one is not None), key=lambda one: one.label))

    def forget(self, labels: Iterable[BackupLabel]) -> None:
        """Remove the notes of attempts, and files that are no notes.

        Raises:
            OSError: one cannot be removed.
        """
        names = {f"{label}{_SUFFIX}" for label in labels}
        for path in list(self._paths()):
            if path.name in names or _attempt(path) is None:
                path.unlink(missing_ok=True)

    def _paths(self) -> Iterator[Path]:
        if self._directory is not None and self._directory.is_dir():
            yield from self._directory.iterdir()


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _unnoted(error: OSError) -> Noticed:
    return Noticed("low", "not-resumable", f"if this backup is stopped, it cannot be resumed: {error}")


def _line(note: dict[str, Any]) -> bytes:
    text = lines.encoded(note)
    return hashlib.sha256(text).hexdigest().encode("ascii") + b" " + text


def _notes(path: Path) -> Iterator[dict[str, Any]]:
    """Every note up to the first that is not what was written."""
    with path.open("rb") as file:
        for line in file:
            text = line[_HASH_CHARACTERS + 1 :]
            if line[: _HASH_CHARACTERS + 1] != hashlib.sha256(text).hexdigest().encode("ascii") + b" ":
                return
            yield json.loads(text)


def _attempt(path: Path) -> Attempt | None:
    """An attempt from its notes; None where they do not tell what it was."""
    objects: list[StoredObject] = []
    spoiled: set[str] = set()
    parts: dict[str, str] = {}
    try:
        notes = _notes(path)
        first = next(notes, {})
        if first.get("attempt") != _FORMAT or path.name != f"{first['label']}{_SUFFIX}":
            return None
        terms = Terms(**{**first["terms"], "recipients": tuple(first["terms"]["recipients"])})
        for note in notes:
            if "object" in note:
                objects.append(_object(note))
                parts[objects[-1].name] = str(note.get("parts_sha256", ""))
            else:
                spoiled.add(str(note["spoiled"]))
        return Attempt(BackupLabel.parse(first["label"]), terms, path, tuple(objects), frozenset(spoiled), parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NameRefused):
        return None


def _object(note: dict[str, Any]) -> StoredObject:
    name, stored_bytes, sha256, plain_bytes = note["object"]
    return StoredObject(str(name), int(stored_bytes), str(sha256), int(plain_bytes))


def _extent(row: Sequence[Any], name: str) -> NotedExtent:
    path, offset, at, length, blake3, run_bytes, text = row
    try:
        digests = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{path!r} has malformed digests") from error
    if len(digests) != -(-length // checked_run_bytes(run_bytes)) * DIGEST_BYTES:
        raise ValueError(f"{len(digests)} bytes of digests do not describe {length} bytes of {path!r}")
    return NotedExtent(str(path), int(offset), Extent(name, int(at), int(length), str(blake3), run_bytes), digests)
