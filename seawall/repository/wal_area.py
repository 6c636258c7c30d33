"""WAL of one source in a repository: segments, histories, closed partials and the open segment's tail.

A segment is stored once. The same content again is success; other content under the same name is never
stored and never hidden: two servers write the same names, and only a person can say which is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

from seawall.codec import DataKey, FrameReader, read_envelope
from seawall.errors import Damaged, ObjectExists, ObjectMissing, StorageDenied, WalConflict
from seawall.keys import KeyRing
from seawall.model import SealingMode, StoredObject
from seawall.repository import documents, sealed
from seawall.repository.keychain import Keychain
from seawall.repository.layout import SourceLayout
from seawall.repository.wal_lists import How, WalLists
from seawall.storage.base import Bytes, Storage
from seawall.wal import Lsn, Segment, TimelineHistory

Put = Literal["stored", "identical"]
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_TAIL = re.compile(r"([0-9A-F]{24})\.tail-([0-9A-F]{16})")
_HEADER_BYTES = 64 * 1024
_CLAIMED = {"sha256": "content_sha256"}


class WalArea:
    """WAL of one source."""

    def __init__(
        self,
        storage: Storage,
        layout: SourceLayout,
        keychain: Keychain,
    ) -> None:
        self.layout = layout
        self.lists = WalLists(storage, layout)
        self._storage = storage
        self._keychain = keychain
        self._key: tuple[datetime, tuple[str, ...], DataKey] | None = None
        self._lock = threading.Lock()

    # ---- what is there

    def timelines(self) -> tuple[int, ...]:
        """Every timeline of which a segment is stored."""
        return tuple(int(child, 16) for child in self._storage.children(self.layout.wal) if child != "history")

    def names(self, timeline: int | None = None) -> frozenset[str]:
        """Names of all complete segments, of one timeline or of all."""
        prefix = self.layout.wal if timeline is None else f"{self.layout.wal}{timeline:08X}/"
        return frozenset(leaf for leaf in self._leaves(prefix) if _SEGMENT.fullmatch(leaf))

    def objects(self, timeline: int | None = None) -> Iterator[tuple[str, str]]:
        """Everything that is stored of segments, of one timeline or of all: the segment's name, and the object's.

        Of one segment, the object comes before its claim: a cleanup that is interrupted leaves no content unclaimed.
        """
        prefix = self.layout.wal if timeline is None else f"{self.layout.wal}{timeline:08X}/"
        for stat in self._storage.list(prefix):
            leaf = stat.name.rsplit("/", 1)[1]
            if _SEGMENT.match(leaf):
                yield leaf[:24], stat.name

    def segments(self) -> frozenset[str]:
        """Names of all segments of which anything is stored: whole, as a tail, as a partial, or only claimed."""
        return frozenset(segment for segment, _ in self.objects())

    def stored(self, name: str) -> bool:
        """Whether a complete segment or a history file of this name is stored."""
        try:
            self._storage.stat(self._object(name))
        except ObjectMissing:
            return False
        return True

    def tails(self, segment: Segment) -> tuple[Lsn, ...]:
        """Up to where the open segment was saved, ascending."""
        found = (_TAIL.fullmatch(leaf) for leaf in self._leaves(f"{self.layout.segment(segment.name)}.tail-"))
        return tuple(Lsn(int(match[2], 16)) for match in found if match)

    def superseded_tails(self) -> tuple[str, ...]:
        """Objects of tails that say nothing new: their segment is stored whole, or a longer tail of it is."""
        found: dict[str, list[str]] = {}
        for segment, name in self.objects():
            found.setdefault(segment, []).append(name)
        return tuple(name for names in found.values() for name in _superseded(names))

    def histories(self) -> dict[int, TimelineHistory]:
        """The ancestry of every timeline whose history file is stored, by timeline.

        History files are clear in their object's name and sealed in content; parsing needs a key, see `history`.
        """
        return {
            int(stat.name.rsplit("/", 1)[1].removesuffix(".history"), 16): self._stated_history(stat.name)
            for stat in self._storage.list(self.layout.histories)
            if stat.name.endswith(".history")
        }

    def stored_bytes(self) -> int:
        return sum(stat.size_bytes for stat in self._storage.list(self.layout.wal))

    def _leaves(self, prefix: str) -> Iterator[str]:
        return (stat.name.rsplit("/", 1)[1] for stat in self._storage.list(prefix))

    def _object(self, name: str) -> str:
        return self.layout.history(int(name[:8], 16)) if name.endswith(".history") else self.layout.segment(name)

    # ---- putting

    def put_segment(self, name: str, data: Bytes, sealing: sealed.Sealing) -> Put:
        """Store a complete segment.

        Args:
            name: 24 hexadecimal digits.
            data: all its bytes.

        Raises:
            WalConflict: a segment of this name with other content is stored.
            StorageError: it is not stored.
        """
        if not _SEGMENT.fullmatch(name):
            raise ValueError(f"{name!r} is no WAL segment name")
        return self._put(self.layout.segment(name), "wal", data, sealing)

    def put_history(self, name: str, data: bytes, sealing: sealed.Sealing) -> Put:
        """Store a timeline's history file, named such as `00000002.history`.

        Raises:
            WalConflict: another history of the same timeline is stored.
        """
        timeline = int(name.removesuffix(".history"), 16)
        TimelineHistory.parse(timeline, data.decode())
        return self._put(self.layout.history(timeline), "history", data, sealing, clear=data.decode())

    def put_partial(self, name: str, data: Bytes, sealing: sealed.Sealing) -> Put:
        """Store the last, incomplete segment of a timeline that was left.

        Raises:
            WalConflict: another one of the same name is stored.
        """
        return self._put(self.layout.partial(name.removesuffix(".partial")), "wal", data, sealing)

    def put_tail(self, segment: Segment, end: Lsn, data: Bytes, sealing: sealed.Sealing) -> Put:
        """Store the open segment from its start up to `end`, then forget shorter tails of it.

        A tail gives the seconds since the last complete segment back when the source's host is lost.
        """
        done = self._put(self.layout.tail(segment, end.value), "wal", data, sealing, listed=False)
        for older in self.tails(segment):
            if older < end:
                self._forget_tail(segment, older)
        return done

    def forget_tails(self, segment: Segment) -> None:
        """Remove the tails of a segment that is stored complete; does nothing while it is not."""
        if self.stored(segment.name):
            for end in self.tails(segment):
                self._forget_tail(segment, end)

    def _forget_tail(self, segment: Segment, end: Lsn) -> None:
        # A storage may lock whatever is put, or admit this host only to write: then a tail stays until a cleanup finds
        # it, and misleads nobody meanwhile.
        with contextlib.suppress(StorageDenied):
            self._storage.delete(self.layout.tail(segment, end.value))

    def _put(
        self, name: str, kind: str, data: Bytes, sealing: sealed.Sealing, *, clear: str = "", listed: bool = True
    ) -> Put:
        sha256 = hashlib.sha256(data).hexdigest()
        extra: dict[str, str | int] = {"sha256": sha256, "bytes": len(data)}
        if clear:
            extra["history"] = clear
        if sealing.mode is SealingMode.OPENPGP:
            # Nothing of an OpenPGP message is clear to the host that only has public keys. So the content is
            # claimed in a document of its own first; creating that is what decides between two writers.
            claim = self._claim(f"{name}.claim.json", extra)
            if claim["sha256"] != sha256:
                raise _conflict(name, str(claim["sha256"]), sha256)
        key = self._sealing_key(sealing)
        logical = self.layout.logical(name)
        try:
            stored = sealed.put_sealed(
                self._storage, name, [data], kind=kind, logical=logical, sealing=sealing, key=key, extra=extra
            )
        except ObjectExists:
            stated = self._stated(name)
            if stated.get("sha256") != sha256:
                raise _conflict(name, str(stated.get("sha256")), sha256) from None
            return "identical"
        if listed:
            self.lists.note(stored)
        return "stored"

    def write_list(self) -> None:
        """List what was stored through this area and is not listed yet; for a writer that stops."""
        self.lists.flush()

    def known_lists(self) -> WalLists:
        """The lists as they are now; what is written later is not seen through them."""
        return WalLists(self._storage, self.layout)

    def list_unlisted(self, segments: Iterable[str]) -> None:
        """List segments that no list names yet, by reading them back; one that is not there is left out.

        Raises:
            StorageError: the storage does not answer.
        """
        lists = self.known_lists()
        names = [name for name in map(self.layout.segment, segments) if lists.find(name) is None]
        self.lists.write([found for found in map(self._read_back, names) if found], How.READ)

    def _read_back(self, name: str) -> StoredObject | None:
        counted = sealed.Counted(self._storage.get(name))
        try:
            for _ in counted:
                pass
        except ObjectMissing:
            return None
        return StoredObject(name, counted.stored_bytes, counted.sha256, 0)

    def _claim(self, name: str, extra: dict[str, str | int]) -> dict[str, str | int]:
        # `sha256` is every document's own hash, so the content's has another name there.
        claim = {_CLAIMED.get(member, member): value for member, value in extra.items()}
        try:
            documents.put(self._storage, name, claim)
        except ObjectExists:
            return self._claimed(name)
        return extra

    def _claimed(self, name: str) -> dict[str, str | int]:
        found = documents.get(self._storage, name)
        return {
            member: found[_CLAIMED.get(member, member)]
            for member in ("sha256", "bytes", "history")
            if _CLAIMED.get(member, member) in found
        }

    def _sealing_key(self, sealing: sealed.Sealing) -> DataKey | None:
        if sealing.mode is not SealingMode.AES_256_GCM:
            return None
        with self._lock:
            now = self._storage.now()
            if self._key is not None:
                made_at, recipients, key = self._key
                if recipients == sealing.recipients and now < made_at + sealing.wal_key_period:
                    return key
            key_id = f"wal-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
            key = self._keychain.create(key_id, sealing, now)
            self._key = (now, sealing.recipients, key)
            return key

    # ---- fetching

    def fetch(self, name: str, ring: KeyRing) -> bytes:
        """A whole segment, history file or `.partial`, proved against its hash.

        Raises:
            ObjectMissing: proved absent.
            Damaged: it is not what was written.
            StorageError: the storage did not answer; absent or not is unknown.
        """
        target = self.layout.partial(name.removesuffix(".partial")) if name.endswith(".partial") else self._object(name)
        return self._fetch(target, ring)

    def fetch_tail(self, segment: Segment, ring: KeyRing) -> tuple[Lsn, bytes] | None:
        """The longest saved beginning of a segment and where it ends, or None."""
        ends = self.tails(segment)
        if not ends:
            return None
        return ends[-1], self._fetch(self.layout.tail(segment, ends[-1].value), ring)

    def opened(self, name: str, ring: KeyRing, chunks: Iterable[Bytes]) -> bytes:
        """What is in an object of WAL whose bytes the caller reads, proved against its hash.

        Args:
            name: the object's, not the segment's.

        Raises:
            Damaged: it is not what was written.
            KeyMissing: the ring does not open it.
        """
        return self._opened(name, ring, iter(chunks))

    def proved(self, name: str, ring: KeyRing) -> tuple[bytes, StoredObject]:
        """What is in an object of WAL, proved against its hash, and what is stored of it, for comparing with a list.

        Raises:
            ObjectMissing, Damaged, KeyMissing: as named.
        """
        counted = sealed.Counted(self._storage.get(name))
        chunks = iter(counted)
        data = self._opened(name, ring, chunks)
        # A reader may stop at the end of what it understands; the hash is of everything that lies there.
        for _ in chunks:
            pass
        return data, StoredObject(name, counted.stored_bytes, counted.sha256, len(data))

    def _fetch(self, name: str, ring: KeyRing) -> bytes:
        return self._opened(name, ring, self._storage.get(name))

    def _opened(self, name: str, ring: KeyRing, chunks: Iterator[Bytes]) -> bytes:
        first = bytes(next(chunks, b""))
        mode = SealingMode.OPENPGP if not first.startswith(b"SEAWALL") else None
        chunks = _again(first, chunks)
        if mode is SealingMode.OPENPGP:
            chunks = ring.decrypt_stream(chunks)
        reader = FrameReader(chunks, self.layout.logical(name), self._keychain.source(ring))
        data = b"".join(reader)
        stated = reader.envelope.extra
        if len(data) != stated.get("bytes") or hashlib.sha256(data).hexdigest() != stated.get("sha256"):
            raise Damaged(f"{name} does not hold what its header states")
        return data

    def _stated(self, name: str) -> dict[str, str | int]:
        """What an object's header states of its content, readable without a key."""
        head = b"".join(self._storage.get(name, 0, min(_HEADER_BYTES, self._storage.stat(name).size_bytes)))
        if not head.startswith(b"SEAWALL"):
            return self._claimed(f"{name}.claim.json")
        envelope = read_envelope(head)
        if envelope.object != self.layout.logical(name):
            raise Damaged(f"{name} holds what belongs to {envelope.object!r}")
        return dict(envelope.extra)

    def key_of(self, name: str) -> str:
        """The id of the key that seals an object of WAL, by its header; empty if it is not sealed so."""
        head = b"".join(self._storage.get(name, 0, min(_HEADER_BYTES, self._storage.stat(name).size_bytes)))
        return read_envelope(head).key if head.startswith(b"SEAWALL") else ""

    def _stated_history(self, name: str) -> TimelineHistory:
        timeline = int(name.rsplit("/", 1)[1].removesuffix(".history"), 16)
        try:
            return TimelineHistory.parse(timeline, str(self._stated(name)["history"]))
        except (ValueError, KeyError) as error:
            raise Damaged(f"{name} states no history of timeline {timeline}") from error


def _superseded(names: list[str]) -> list[str]:
    """The tails among the objects of one segment that another of these objects continues."""
    tails = sorted(name for name in names if _TAIL.fullmatch(name.rsplit("/", 1)[1]))
    whole = any(_SEGMENT.fullmatch(name.rsplit("/", 1)[1]) for name in names)
    return tails if whole else tails[:-1]


def _again(first: bytes, rest: Iterator[Bytes]) -> Iterator[Bytes]:
    if first:
        yield first
    yield from rest


def _conflict(name: str, stored: str, offered: str) -> WalConflict:
    segment = name.rsplit("/", 1)[1]
    return WalConflict(
        f"{segment} is stored with other content (SHA-256 {stored[:16]}…, offered {offered[:16]}…); nothing was changed"
    )
