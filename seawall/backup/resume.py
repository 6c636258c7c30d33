"""Resuming: what attempts that were stopped had stored is taken over, where it is still what the cluster holds.

Content decides, as for an incremental: every byte of the cluster is read again between this backup's own start and
stop, and a run is taken over only if its digest is that of what was stored. So a resumed backup is as consistent as
any other; what is spared is compressing, sealing and sending. Each object is proved by its hash before it is used.

The objects stay where the attempt put them, sealed with the attempt's own data key. The set names them, and from its
commit on that keeps a collection of garbage from removing them. Until then the lease does.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain

from seawall.backup.attempts import Attempt, Attempts, Terms
from seawall.backup.changes import (
    UNKNOWN,
    Known,
    PriorFile,
    Seen,
    Span,
    Times,
    complement,
    digests_between,
    kept_extents,
)
from seawall.backup.ledger import Extents, StoredExtent
from seawall.backup.plan import BackupPlan
from seawall.codec import combined
from seawall.errors import Damaged, FormatTooNew, NameRefused, ObjectMissing, ObjectTruncated
from seawall.events import Advanced, Began, Noticed, Observer, Resumed
from seawall.model import BackupLabel, Extent, FileEntry, SealingMode, StoredObject
from seawall.repository import Sealing, SourceArea
from seawall.repository.blocks import FileBlocks

# Garbage goes when its newest object is 24 hours old. An attempt that is nearly so old is not worth a race.
RESUME_WITHIN = timedelta(hours=18)
_NOT_AS_STORED = (Damaged, ObjectMissing, ObjectTruncated)
_UNREADABLE = (Damaged, FormatTooNew, NameRefused, ObjectMissing)
_UNTELLING = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What a backup may take over, before any of it was proved or compared.

    Args:
        attempts: in the order of time.
        objects: theirs that are there with their size.
        over: attempts that no backup can take over any more, each with the reason.
        unfit: attempts that this backup cannot take over, each with the reason.
    """

    attempts: tuple[Attempt, ...] = ()
    objects: tuple[StoredObject, ...] = ()
    over: tuple[tuple[BackupLabel, str], ...] = ()
    unfit: tuple[tuple[BackupLabel, str], ...] = ()

    @property
    def labels(self) -> tuple[BackupLabel, ...]:
        return tuple(attempt.label for attempt in self.attempts)

    @property
    def stored_bytes(self) -> int:
        return sum(stored.stored_bytes for stored in self.objects)


def terms_of(chosen: BackupPlan, sealing: Sealing) -> Terms:
    """What an attempt must have had in common with a backup."""
    cluster = chosen.cluster
    return Terms(
        source=chosen.source,
        kind=chosen.kind.value,
        mode=chosen.mode.value,
        prior="" if chosen.prior is None else str(chosen.prior.label),
        system_identifier=str(cluster.system_identifier),
        major_version=cluster.major_version,
        timeline=cluster.timeline,
        checksums=cluster.checksums,
        block_bytes=cluster.block_bytes,
        sealing=sealing.mode.value,
        compression=sealing.compression.value,
        level=sealing.level,
        recipients=tuple(sorted(sealing.recipients)),
    )


_TOLD = "the server sends nothing but what changed since the prior, and says nothing of what an attempt stored"


def plan(area: SourceArea, attempts: Attempts, terms: Terms, *, is_told: bool = False) -> ResumePlan:
    """Which attempts fit, and which of their objects are there; nothing is read of these.

    Args:
        terms: of the backup that may take them over.
        is_told: whether it leaves to the server what changed since its prior.

    Raises:
        StorageUnreachable, StorageDenied: the storage does not answer.
    """
    chosen: list[Attempt] = []
    objects: list[StoredObject] = []
    over: list[tuple[BackupLabel, str]] = []
    unfit: list[tuple[BackupLabel, str]] = []
    for attempt in attempts.found():
        there, newest = _there(area, attempt)
        if reason := _why_over(area, attempt, there, newest):
            over.append((attempt.label, reason))
        # One with other terms may still fit the backup after this one.
        elif reason := terms.difference(attempt.terms) or _why_closed(area, attempt) or (_TOLD if is_told else ""):
            unfit.append((attempt.label, reason))
        else:
            chosen.append(attempt)
            objects += there
    return ResumePlan(tuple(chosen), tuple(objects), tuple(over), tuple(unfit))


def _there(area: SourceArea, attempt: Attempt) -> tuple[list[StoredObject], datetime | None]:
    """The objects that lie there with their size, and when the newest was stored, by the storage's clock."""
    stats = {stat.name: stat for stat in area.storage.list(area.layout.backup(attempt.label))}
    there = [
        stored
        for stored in attempt.objects
        if area.layout.is_own(stored.name, attempt.label)
        and stored.name in stats
        and stats[stored.name].size_bytes == stored.stored_bytes
    ]
    return there, max((stat.modified_at for stat in stats.values()), default=None)


def _why_over(area: SourceArea, attempt: Attempt, there: Sequence[StoredObject], newest: datetime | None) -> str:
    if area.is_committed(attempt.label):
        return "it became a backup"
    if area.is_expired(attempt.label):
        return "it is marked for removal"
    if not there or newest is None:
        return "nothing of it is there"
    if area.storage.now() - newest > RESUME_WITHIN:
        return f"it was stopped more than {RESUME_WITHIN // timedelta(hours=1)} hours ago"
    spent = _spent_by(area, attempt)
    return f"{spent} took it over" if spent else ""


def _spent_by(area: SourceArea, attempt: Attempt) -> str:
    """The backup that has an attempt's objects already, or whose list cannot be read.

    Two full backups that share objects would both be lost with one of these.
    """
    own = area.layout.backup(attempt.label)
    for label in area.begun():
        if label.begun_at > attempt.label.begun_at and area.is_committed(label):
            try:
                needed = area.needed_objects(label)
            except _UNREADABLE:
                return str(label)
            if any(name.startswith(own) for name in needed):
                return str(label)
    return ""


def _why_closed(area: SourceArea, attempt: Attempt) -> str:
    """Why those for whom the backup is sealed could not open what the attempt sealed; empty where they can."""
    if attempt.terms.sealing != SealingMode.AES_256_GCM.value:
        return ""
    try:
        opens = area.keychain.is_wrapped_for(str(attempt.label), attempt.terms.recipients)
    except (*_UNREADABLE, KeyError) as error:
        return f"its data key cannot be read: {error}"
    return "" if opens else "its data key is not there, or is wrapped for others"


# ---- proof


def prove(area: SourceArea, chosen: ResumePlan, *, workers: int, observe: Observer) -> frozenset[str]:
    """The names of those objects that hold what was stored: by the storage's own SHA-256, or else by reading them.

    Where the storage has one over the parts of an object, that proves it if it is the one that was noted.

    Raises:
        StorageUnreachable, StorageDenied: nothing can be said.
        Cancelled: on request.
    """
    observe.hear(Began("resume", chosen.stored_bytes))
    noted = {name: told for attempt in chosen.attempts for name, told in attempt.parts_sha256.items()}

    def look(stored: StoredObject) -> str:
        observe.checkpoint()
        try:
            _refuse_other(area, stored, noted.get(stored.name, ""), observe)
        except _NOT_AS_STORED as error:
            observe.hear(Noticed("medium", "not-resumed", f"{stored.name} is stored again: {error.message}"))
            return ""
        observe.hear(Advanced("resume", stored.stored_bytes))
        return stored.name

    with ThreadPoolExecutor(workers, thread_name_prefix="resume") as pool:
        return frozenset(pool.map(look, chosen.objects)) - {""}


def _refuse_other(area: SourceArea, stored: StoredObject, noted: str, observe: Observer) -> None:
    stat = area.storage.stat(stored.name)
    if noted and (stat.parts_sha256, stat.size_bytes) == (noted, stored.stored_bytes):
        return
    # Another one may only tell of other parts, such as those of a copy that the service made; the bytes decide.
    sha256, size = stat.sha256, stat.size_bytes
    if sha256 is None:
        digest, size = hashlib.sha256(), 0
        for piece in area.storage.get(stored.name):
            observe.checkpoint()
            digest.update(piece)
            size += len(piece)
        sha256 = digest.hexdigest()
    if (sha256, size) != (stored.stored_sha256, stored.stored_bytes):
        raise Damaged(f"{stored.name} is not what was stored: its SHA-256 differs")


# ---- what is known of files


class Unfinished:
    """What attempts stored of each file, over what the prior has of it. `get` may be called from several threads.

    Files of which an attempt stored something are always read and compared: their times say nothing here.

    Args:
        base: the prior of an incremental; None for a full backup.
        sound: the names of the objects that were proved.
    """

    def __init__(self, base: Known | None, chosen: ResumePlan, sound: frozenset[str]) -> None:
        self._base = base
        self._lock = threading.Lock()
        self.taken = {stored.name: stored for stored in chosen.objects if stored.name in sound}
        self.labels = chosen.labels
        self.listed_at_ns = 0 if base is None else base.listed_at_ns
        self.objects = [*(() if base is None else base.objects), *self.taken.values()]
        self._noted: list[Extents] = []
        self._open = ExitStack()
        for attempt in chosen.attempts:
            noted = Extents()
            self._open.callback(noted.close)
            # Notes that cannot be read any more are of no use, and of no harm: what was read of them holds.
            with contextlib.suppress(*_UNTELLING):
                self._read(attempt, noted)
            self._noted.append(noted)

    def _read(self, attempt: Attempt, noted: Extents) -> None:
        for stored, extents in attempt.extents():
            if stored == self.taken.get(stored.name):
                for found in extents:
                    if found.path not in attempt.spoiled:
                        noted.add(*found)

    def get(self, path: str) -> PriorFile | None:
        """What is known of a file; where nothing is, its digests say so."""
        known = None if self._base is None else self._base.get(path)
        with self._lock:
            noted = [extents.of(path) for extents in self._noted]
        for rows in noted:
            known = overlaid(known, path, rows)
        return known

    def seen(self, path: str) -> Seen | None:
        """How a file was found; of one that an attempt stored something of, no times are known."""
        if self._base is not None and not self._is_noted(path):
            return self._base.seen(path)
        known = self.get(path)
        return None if known is None else Seen(Times(known.blocks.size, 0, 0, 0), known.entry.size_bytes)

    def rows(self, path: str) -> tuple[bytes, bytes] | None:
        """What the prior's manifest and block map say of a file of which no attempt stored anything."""
        return None if self._base is None or self._is_noted(path) else self._base.rows(path)

    def _is_noted(self, path: str) -> bool:
        with self._lock:
            return any(extents.has(path) for extents in self._noted)

    def blocks(self, path: str) -> FileBlocks:
        """Only the digests of a file that `get` finds.

        Raises:
            KeyError: there is no such file.
        """
        if self._base is not None and not self._is_noted(path):
            return self._base.blocks(path)
        known = self.get(path)
        if known is None:
            raise KeyError(path)
        return known.blocks

    def resumed(self, used: Iterable[StoredObject]) -> Resumed:
        """What of the attempts became part of a backup.

        Args:
            used: the objects that it needs.
        """
        reused = [stored for stored in used if stored.name in self.taken]
        return Resumed(
            tuple(str(label) for label in self.labels),
            len(reused),
            len(self.taken),
            sum(stored.stored_bytes for stored in reused),
            sum(stored.stored_bytes for stored in self.taken.values()),
        )

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def overlaid(known: PriorFile | None, path: str, rows: Sequence[StoredExtent]) -> PriorFile | None:
    """A file as far as an attempt stored it, and where it did not, as it was known before; pure.

    Args:
        known: what was known before, or None.
        rows: what the attempt stored of it, in the order of the file.

    Returns:
        The file up to the last piece that was stored; the digests of what is not known are `UNKNOWN`.
    """
    noted = list(_usable(known, rows))
    if not noted:
        return known
    run_bytes = noted[0].extent.run_bytes
    pieces = sorted(chain(noted, _rest(known, noted)), key=lambda piece: piece.offset)
    end, whole = 0, []
    for piece in pieces:
        # A short run ends its file: what would follow it was part of another state.
        if piece.offset < end or end % run_bytes:
            break
        if piece.offset > end:
            whole.append(_hole(end, piece.offset - end, run_bytes))
        whole.append(piece)
        end = piece.offset + piece.extent.length
    entry = FileEntry(path, "file", 0, end, extents=tuple(piece.extent for piece in whole))
    digests = b"".join(piece.digests for piece in whole)
    return PriorFile(entry, FileBlocks(path, end, 0, 0, 0, run_bytes, digests))


def _hole(offset: int, length: int, run_bytes: int) -> StoredExtent:
    """A part that nobody stored. It lies in no object, so nothing could refer to it even by a defect."""
    digests = UNKNOWN * (length // run_bytes)
    return StoredExtent(offset, Extent("", 0, length, combined(digests), run_bytes), digests)


def _usable(known: PriorFile | None, rows: Sequence[StoredExtent]) -> Iterator[StoredExtent]:
    """Those rows that can stand beside each other and beside what was known: cut into the same runs."""
    run_bytes = known.blocks.run_bytes if known is not None else rows[0].extent.run_bytes if rows else 0
    for row in rows:
        if row.extent.run_bytes != run_bytes or row.offset % run_bytes:
            return
        yield row
        if row.extent.length % run_bytes:
            return


def _rest(known: PriorFile | None, noted: Sequence[StoredExtent]) -> Iterator[StoredExtent]:
    """What was known of the parts that an attempt did not store."""
    if known is None:
        return
    last = noted[-1]
    is_short = last.extent.length % known.blocks.run_bytes
    size = last.offset + last.extent.length if is_short else known.entry.size_bytes
    spans = complement([Span(row.offset, row.extent.length) for row in noted], min(size, known.entry.size_bytes))
    for offset, extent in kept_extents(known, spans):
        yield StoredExtent(offset, extent, digests_between(known, offset, offset + extent.length))
