"""Read a backup back and say how far it is proved: present → hash good → decryptable → WAL continuous → restored.

One pass over the bytes: an object is hashed as it lies in the storage while it is opened, decompressed and
compared with the manifest. Nothing is trusted that was not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest

from seawall.archive.intake import read_header, refuse_other_place
from seawall.codec import Entry
from seawall.errors import (
    BackupMissing,
    ClusterMismatch,
    Damaged,
    FormatTooNew,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageUnreachable,
)
from seawall.events import Advanced, Began, Ended, Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Finding, Head, Proof, StoredObject, Verdict
from seawall.repository import SourceArea, blocks
from seawall.repository.sealed import Counted
from seawall.repository.wanted import Wanted, refuse_holes
from seawall.wal import Segment

_WRONG = (Damaged, ObjectMissing, FormatTooNew, StorageError, ClusterMismatch)
# What the storage did not answer is not known: no verdict, and least of all "damaged", may come from an outage.
_NOT_KNOWN = (StorageUnreachable, StorageDenied)


def check(
    area: SourceArea,
    label: BackupLabel,
    ring: KeyRing,
    *,
    up_to: Proof = Proof.WAL_CONTINUOUS,
    only: Callable[[StoredObject], bool] = lambda _stored: True,
    now: datetime,
    observe: Observer,
    clock: Callable[[], datetime] | None = None,
    workers: int = 2,
) -> Verdict:
    """Verify one backup set from the storage.

    Args:
        only: whether an object shall be read; asked when its turn comes, so that a budget may run out meanwhile.
            Both copies of the manifest are read in any case.
        up_to: how far; `restored` is what `restore_test` proves and counts here as WAL continuous.
        now: when it begins.
        clock: the time when the verdict is given; `now` counts when it is omitted.

    Raises:
        BackupMissing: there is no such set.
        KeyMissing: more than hashes was asked for, and the ring has no private key that opens the set.
        StorageUnreachable, StorageDenied: nothing can be said about the set.
        Cancelled: on request.
    """
    return _Check(area, label, ring, up_to, only, observe, workers).run(clock or (lambda: now))


@dataclass
class _Check:
    area: SourceArea
    label: BackupLabel
    ring: KeyRing
    up_to: Proof
    only: Callable[[StoredObject], bool]
    observe: Observer
    workers: int
    findings: list[Finding] = field(default_factory=list)
    stored_bytes: int = 0
    plain_bytes: int = 0
    objects: int = 0
    proved: dict[str, Proof] = field(default_factory=dict)
    copy: bool = False

    def run(self, clock: Callable[[], datetime]) -> Verdict:
        begin = time.monotonic()
        reached = self._levels()
        took = time.monotonic() - begin
        self.observe.hear(Ended("verify", took))
        ordered = tuple(sorted(self.findings, key=lambda finding: (finding.subject, finding.code)))
        return Verdict(
            self.label,
            reached,
            ordered,
            self.objects,
            self.stored_bytes,
            self.plain_bytes,
            timedelta(seconds=took),
            clock(),
            self.proved,
        )

    def _levels(self) -> Proof | None:
        """Climb until something is wrong; the last level without a finding is what is proved."""
        levels = list(Proof)
        wanted = levels.index(self.up_to)
        try:
            head = self._head()
            opens = wanted >= levels.index(Proof.DECRYPTABLE)
            objects, files = self._manifest(head) if opens else (self._listed(head), Wanted())
        except (BackupMissing, *_NOT_KNOWN):
            raise
        except _WRONG as error:
            self._found("head-or-manifest", str(self.label), error)
            return None
        if not self._present(objects):
            return None
        proved = Proof.PRESENT
        if wanted >= levels.index(Proof.HASH_GOOD):
            if not self._bytes(head, objects, files, opened=opens):
                return proved
            proved = Proof.DECRYPTABLE if opens else Proof.HASH_GOOD
            if not opens:
                self._listed_wal(head)
        if wanted >= levels.index(Proof.WAL_CONTINUOUS):
            if not self._wal(head):
                return proved
            proved = Proof.WAL_CONTINUOUS
        return proved

    def _head(self) -> Head:
        """The head, from the manifest if the document is damaged; that is a finding, and no reason to stop here."""
        try:
            return self.area.head(self.label)
        except Damaged as error:
            head = self.area.head(self.label, self.ring)
            self._found("head-damaged", self.area.layout.head(self.label), error)
            return head

    def _found(self, code: str, subject: str, error: Exception) -> None:
        self.findings.append(Finding(code, subject, str(error)))

    def _manifest(self, head: Head) -> tuple[list[StoredObject], Wanted]:
        """The manifest's content, read to its end, after both copies were compared with what the head says."""
        self.copy = self._sound_copy(head)
        manifest = self.area.manifest(self.label, self.ring, copy=self.copy)
        wanted = Wanted()
        for entry in manifest.files():
            refuse_holes(entry)
            wanted.whole(entry)
        listed = self.area.stored_objects(self.label)
        # The block map is nothing that a restore needs, so only the list names it.
        if manifest.objects != [stored for stored in listed if not self._is_map(stored)]:
            raise Damaged(f"the list of stored objects of {self.label} is not that of its manifest")
        return listed, wanted

    def _is_map(self, stored: StoredObject) -> bool:
        return stored.name == self.area.layout.blocks(self.label)

    def _sound_copy(self, head: Head) -> bool:
        """Whether only the manifest's copy can be read; one that cannot is a finding, and the other one goes on.

        Raises:
            Damaged: neither can.
        """
        layout, wrong = self.area.layout, []
        for name in (layout.manifest(self.label), layout.manifest_copy(self.label)):
            try:
                self._refuse_other_hash(name, head.manifest_sha256)
                self.proved[name] = Proof.HASH_GOOD
            except _NOT_KNOWN:
                raise
            except _WRONG as error:
                wrong.append(name)
                self._found("missing" if isinstance(error, ObjectMissing) else "manifest-damaged", name, error)
        if len(wrong) == 2:
            raise Damaged(f"both copies of the manifest of {self.label} are not what was stored")
        return layout.manifest(self.label) in wrong

    def _refuse_other_hash(self, name: str, sha256: str) -> None:
        counted = Counted(self._observed(self.area.storage.get(name)))
        for _ in counted:
            pass
        if counted.sha256 != sha256:
            raise Damaged(f"{name} is not what the head says: its SHA-256 differs")

    def _listed(self, head: Head) -> list[StoredObject]:
        """What is stored, from the clear list: the host that takes backups can prove hashes without a private key."""
        self._sound_copy(head)
        return self.area.stored_objects(self.label)

    def _present(self, objects: Iterable[StoredObject]) -> bool:
        before = len(self.findings)
        for stored in filter(self.only, objects):
            self.observe.checkpoint()
            try:
                size = self.area.storage.stat(stored.name).size_bytes
                if size != stored.stored_bytes:
                    raise Damaged(f"{stored.name} has {size} bytes where {stored.stored_bytes} were stored")
            except ObjectMissing as error:
                self._found("missing", stored.name, error)
            except _NOT_KNOWN:
                raise
            except _WRONG as error:
                self._found("size", stored.name, error)
        return len(self.findings) == before

    def _bytes(self, head: Head, objects: list[StoredObject], wanted: Wanted, *, opened: bool) -> bool:
        before = len(self.findings)
        self.observe.hear(Began("verify", sum(stored.plain_bytes for stored in objects)))
        # The largest first, so that all workers end at about the same time.
        ordered = sorted(objects, key=lambda stored: -stored.stored_bytes)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="verify") as pool:
            read = pool.map(lambda s: self._object(head, s, wanted.entries(s.name), opened), ordered)
            for stored, error in filter(None, read):
                if error is None:
                    self.proved[stored.name] = Proof.DECRYPTABLE if opened else Proof.HASH_GOOD
                else:
                    self._found("missing" if isinstance(error, ObjectMissing) else "damaged", stored.name, error)
                self.objects += 1
                self.stored_bytes += stored.stored_bytes
                self.plain_bytes += stored.plain_bytes
        return len(self.findings) == before

    def _object(
        self, head: Head, stored: StoredObject, entries: list[Entry], opened: bool
    ) -> tuple[StoredObject, Exception | None] | None:
        if not self.only(stored):
            return None
        counted = Counted(self._observed(self.area.storage.get(stored.name)))
        chunks = iter(counted)
        try:
            if opened and self._is_map(stored):
                self._refuse_other_map(self.area.blocks(head, self.ring, chunks=chunks))
            elif opened:
                for _ in self.area.bundle(head, stored.name, self.ring, entries, chunks=chunks):
                    pass
            # A reader may stop at the end of what it understands; the hash is of everything that lies there.
            for _ in chunks:
                pass
            if counted.sha256 != stored.stored_sha256:
                raise Damaged(f"{stored.name} is not what was stored: its SHA-256 differs")
        except _NOT_KNOWN:
            raise
        except _WRONG as error:
            return stored, error
        self.observe.hear(Advanced("verify", stored.plain_bytes, stored.stored_bytes))
        return stored, None

    def _refuse_other_map(self, found: blocks.Reader) -> None:
        """A wrong digest in the map would have the next incremental take over what is not there."""
        entries = self.area.manifest(self.label, self.ring, copy=self.copy).files()
        for entry, file in zip_longest((e for e in entries if e.kind == "file"), found.files()):
            self.observe.checkpoint()
            if entry is None or file is None or not file.proves(entry):
                path = getattr(file or entry, "path", "")
                raise Damaged(f"the block map of {self.label} does not say of {path!r} what its manifest says")

    def _observed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.observe.checkpoint()
            yield chunk

    def _wal(self, head: Head) -> bool:
        lists = self.area.wal.known_lists()

        def prove(name: str) -> None:
            place = self.area.layout.segment(name)
            data, stored = self.area.wal.proved(place, self.ring)
            _refuse_foreign(data, name, head)
            # A message may open with one key and be damaged for the others; only its stored bytes tell.
            lists.refuse_other(place, stored.stored_bytes, stored.stored_sha256)

        return self._segments(head, prove)

    def _listed_wal(self, head: Head) -> bool:
        """What no list names yet cannot be proved without a key, but it must be there."""
        lists = self.area.wal.known_lists()

        def prove(name: str) -> None:
            place = self.area.layout.segment(name)
            if lists.find(place) is None:
                self.area.storage.stat(place)
                return
            counted = Counted(self._observed(self.area.storage.get(place)))
            for _ in counted:
                pass
            lists.refuse_other(place, counted.stored_bytes, counted.sha256)

        return self._segments(head, prove)

    def _segments(self, head: Head, prove: Callable[[str], None]) -> bool:
        before = len(self.findings)
        first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
        last = Segment.ending_at(head.stop_lsn, head.timeline, head.segment_bytes)
        names = [Segment(head.timeline, n, head.segment_bytes).name for n in range(first.number, last.number + 1)]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="verify-wal") as pool:
            for name, error in pool.map(lambda name: self._segment(name, prove), names):
                if error is not None:
                    self._found("wal-missing" if isinstance(error, ObjectMissing) else "wal-damaged", name, error)
        return len(self.findings) == before

    def _segment(self, name: str, prove: Callable[[str], None]) -> tuple[str, Exception | None]:
        self.observe.checkpoint()
        try:
            prove(name)
        except _NOT_KNOWN:
            raise
        except _WRONG as error:
            return name, error
        return name, None


def _refuse_foreign(data: bytes, name: str, head: Head) -> None:
    header = read_header(data, name)
    refuse_other_place(header, name)
    if header.system_identifier != head.cluster.system_identifier:
        raise ClusterMismatch(f"{name} is WAL of the cluster {header.system_identifier}")
