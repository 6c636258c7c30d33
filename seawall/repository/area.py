"""One source's part of a repository: who it is, its backup sets, keys, holds and leases.

A backup set exists from the moment its manifest does, and not before. `BackupSetWriter.commit` keeps the order
that makes this true: bundles, block map, list of objects, copy of the manifest, head, manifest.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial

from seawall.codec import BundleReader, DataKey, Entry, Index, read_index
from seawall.errors import (
    BackupMissing,
    ClusterMismatch,
    Damaged,
    FormatTooNew,
    NameRefused,
    ObjectExists,
    ObjectMissing,
    RepositoryError,
)
from seawall.keys import KeyRing
from seawall.model import BackupLabel, ClusterIdentity, Head, Hold, SealingMode, StoredObject
from seawall.repository import blocks, documents, heads, lease, manifest, sealed
from seawall.repository.keychain import Keychain
from seawall.repository.layout import SourceLayout
from seawall.repository.set_writer import BackupSetWriter
from seawall.repository.wal_area import WalArea
from seawall.storage.base import Bytes, Storage


class SourceArea:
    """One source's part of a repository.

    Args:
        storage: where the repository lies.
        name: the source's name; it need not exist yet.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = name
        self.storage = storage
        self.layout = SourceLayout(name)
        self.keychain = Keychain(storage, self.layout)
        self.wal = WalArea(storage, self.layout, self.keychain)

    # ---- identity

    def identity(self) -> ClusterIdentity | None:
        """The cluster that this source was made for, or None while nothing was stored."""
        names = [stat.name for stat in self.storage.list(self.layout.identities)]
        return self._identity(names[-1]) if names else None

    def _identity(self, name: str) -> ClusterIdentity:
        document = documents.get(self.storage, name)
        try:
            return ClusterIdentity(
                int(document["system_identifier"]), int(document["major_version"]), tuple(document["timelines"])
            )
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"{name} is no identity record") from error

    def claim(self, identity: ClusterIdentity, now: datetime) -> None:
        """Record whose source this is, or prove that it is still the same cluster.

        Raises:
            ClusterMismatch: the source belongs to a cluster with another system identifier, or an older
                major version than the recorded one shows up.
        """
        names = [stat.name for stat in self.storage.list(self.layout.identities)]
        # One more than the last, not than there are: a record may be lost, and its successor must still find a place.
        number = 1 + max((int(name[-9:-5]) for name in names if name[-9:-5].isdigit()), default=0)
        known = self._identity(names[-1]) if names else None
        while (wanted := _to_record(self.name, known, identity)) is not None:
            try:
                self._record_identity(number, wanted, now)
            except ObjectExists:
                # Another writer recorded at the same moment, or the list lags; whatever lies there must agree.
                known, number = self._identity(self.layout.identity(number)), number + 1
            else:
                return

    def _record_identity(self, number: int, identity: ClusterIdentity, now: datetime) -> None:
        document = {
            "system_identifier": str(identity.system_identifier),
            "major_version": identity.major_version,
            "timelines": list(identity.timelines),
            "recorded_at": now.isoformat(),
        }
        documents.put(self.storage, self.layout.identity(number), document)

    # ---- backup sets

    def labels(self, *, with_expired: bool = False) -> tuple[BackupLabel, ...]:
        """Labels of the sets that are committed, in the order of time."""
        committed = []
        for child in self.storage.children(self.layout.backups):
            label = BackupLabel.parse(child)
            if self._exists(self.layout.manifest(label)) and (with_expired or not self.is_expired(label)):
                committed.append(label)
        return tuple(sorted(committed, key=lambda label: label.begun_at))

    def is_committed(self, label: BackupLabel) -> bool:
        """Whether that is a backup set, listed or marked."""
        return self._exists(self.layout.manifest(label))

    def begun(self) -> tuple[BackupLabel, ...]:
        """Labels of everything that was ever begun and still has an object, committed or not."""
        return tuple(sorted((BackupLabel.parse(c) for c in self.storage.children(self.layout.backups)), key=str))

    def heads(self, *, with_expired: bool = False) -> tuple[Head, ...]:
        """The heads of all committed sets, in the order of time.

        Raises:
            Damaged: a head is not what was written; `seawall verify` names what else is wrong.
        """
        return tuple(self.head(label) for label in self.labels(with_expired=with_expired))

    def head(self, label: BackupLabel, ring: KeyRing | None = None) -> Head:
        """The head of one committed set.

        Args:
            ring: what opens the manifest, which repeats a head that cannot be read; without it nothing stands in.

        Raises:
            BackupMissing: there is no such set, or it was never committed.
            Damaged: it is not what was written, and neither is the manifest, or the ring does not open that.
        """
        if not self._exists(self.layout.manifest(label)):
            lost = self._exists(self.layout.manifest_copy(label)) and self._exists(self.layout.head(label))
            raise BackupMissing(
                f"{self.name} has no backup {label}" + (": its manifest is missing, while its copy is there" * lost),
                hint="It was stopped just before its commit, or the manifest was lost: see docs/how-to/retention.md."
                if lost
                else None,
            )
        try:
            return heads.read(self.storage, self.layout, label)
        except Damaged as error:
            if ring is None:
                raise
            return heads.recovered(self.storage, self.layout, self.keychain, label, ring, instead=error)

    def readable_heads(
        self, *, with_expired: bool = False
    ) -> tuple[tuple[Head, ...], dict[BackupLabel, RepositoryError]]:
        """The heads of all committed sets that can be read, in the order of time, and why others cannot be."""
        found: list[Head] = []
        wrong: dict[BackupLabel, RepositoryError] = {}
        for label in self.labels(with_expired=with_expired):
            try:
                found.append(self.head(label))
            except (Damaged, FormatTooNew) as error:
                wrong[label] = error
        return tuple(found), wrong

    def unfinished(self) -> tuple[Head, ...]:
        """Sets that have a head and the manifest's copy but no manifest: stopped before the commit, or it was lost."""
        found = []
        for label in self.begun():
            lacks = not self._exists(self.layout.manifest(label)) and self._exists(self.layout.manifest_copy(label))
            if lacks and self._exists(self.layout.head(label)) and not self.is_expired(label):
                with contextlib.suppress(Damaged, FormatTooNew):
                    found.append(heads.read(self.storage, self.layout, label))
        return tuple(found)

    def manifest(self, label: BackupLabel, ring: KeyRing, *, copy: bool = False) -> manifest.Reader:
        """The manifest of a set, proved against its head; `copy` reads the second one.

        Raises:
            BackupMissing, Damaged, KeyMissing: as named.
        """
        head = self.head(label, ring)
        name = self.layout.manifest_copy(label) if copy else self.layout.manifest(label)
        reader = sealed.open_sealed(
            self.storage,
            name,
            logical=self.layout.logical(self.layout.manifest(label)),
            mode=head.sealing,
            ring=ring,
            key_for=self.keychain.source(ring, head.key_id),
        )
        result = manifest.Reader(reader, name=name)
        _refuse_other_head(head, result.head_document, name=name)
        return result

    def stored_objects(self, label: BackupLabel) -> list[StoredObject]:
        """All objects with data that a set needs, from its clear list: names, sizes and hashes as stored.

        These are its bundles, those of earlier sets that its files refer to, and its block map.

        Raises:
            Damaged: the list is missing or is not what was written.
        """
        name = self.layout.objects(label)
        try:
            rows = documents.get(self.storage, name, limit=documents.LIST_LIMIT_BYTES)["objects"]
            return [StoredObject(str(n), int(stored), str(sha256), int(plain)) for n, stored, sha256, plain in rows]
        except ObjectMissing as error:
            raise Damaged(f"{name} is missing, but the manifest beside it is there") from error
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"{name} is no list of objects") from error

    def needed_objects(self, label: BackupLabel) -> frozenset[str]:
        """The names of all objects with data that a set needs, those of earlier sets that it builds on included.

        Known as soon as the set's clear list is there, which is before its manifest commits it.

        Raises:
            Damaged: the list is missing or is not what was written.
        """
        return frozenset(stored.name for stored in self.stored_objects(label))

    def bundle(
        self,
        head: Head,
        name: str,
        ring: KeyRing,
        entries: Iterable[Entry] | None = None,
        *,
        chunks: Iterable[Bytes] | None = None,
        sparing: bool = False,
    ) -> BundleReader:
        """A reader of one bundle's extents, in the order they were written.

        Args:
            head: of the set that needs it; the bundle may be of an earlier one that this builds on.
            entries: the wanted ones; all when omitted.
            chunks: the object's bytes when the caller reads them itself.
            sparing: leave closed what holds nothing wanted; see `BundleReader`.

        Raises:
            ObjectMissing, Damaged, KeyMissing: as named.
        """
        stored = self.storage.get(name) if chunks is None else chunks
        plain = sealed.plain_envelope(stored, head.sealing, ring, name=name)
        key_for = self.keychain.source(ring, self._key_id(head, name))
        reader = BundleReader(plain, self.layout.logical(name), key_for, entries, sparing=sparing)
        sealed.refuse_other_mode(reader.envelope.seal, head.sealing, name=name)
        return reader

    def index(self, head: Head, name: str, ring: KeyRing) -> Index:
        """What is in a bundle, by ranges; `read_extents` reads some of it. Not for a bundle within an OpenPGP message.

        Raises:
            ObjectMissing, Damaged, KeyMissing: as named.
        """
        key_for = self.keychain.source(ring, self._key_id(head, name))
        size = self.storage.stat(name).size_bytes
        found = read_index(partial(self.storage.get, name), size, self.layout.logical(name), key_for)
        sealed.refuse_other_mode(found.envelope.seal, head.sealing, name=name)
        return found

    def open_keys(self, head: Head, objects: Iterable[StoredObject], ring: KeyRing) -> Iterator[Callable[[], object]]:
        """For each data key that objects are sealed with, what opens it; a later reader then finds it open.

        Args:
            head: of the set that needs the objects; they may be of earlier ones.
        """
        if head.sealing is SealingMode.AES_256_GCM:
            for key_id in dict.fromkeys(self._key_id(head, stored.name) for stored in objects):
                yield partial(self.keychain.unwrap, key_id, ring)

    def _key_id(self, head: Head, name: str) -> str:
        """The one data key that a bundle may be sealed with: that of the set whose name it carries."""
        if head.sealing is not SealingMode.AES_256_GCM or self.layout.is_own(name, head.label):
            return head.key_id
        try:
            return str(self.layout.label_of(name))
        except NameRefused as error:
            raise Damaged(f"{head.source} {head.label} refers to {name!r}, which is no bundle of its source") from error

    def blocks(self, head: Head, ring: KeyRing, *, chunks: Iterable[Bytes] | None = None) -> blocks.Reader:
        """The block map of a set; `chunks` are the object's bytes when the caller reads them itself.

        Raises:
            ObjectMissing: it has none.
            Damaged, KeyMissing: as named.
        """
        name = self.layout.blocks(head.label)
        reader = sealed.open_sealed(
            self.storage,
            name,
            logical=self.layout.logical(name),
            mode=head.sealing,
            ring=ring,
            key_for=self.keychain.source(ring, head.key_id),
            chunks=chunks,
        )
        result = blocks.Reader(reader, name=name)
        if result.label != str(head.label):
            raise Damaged(f"{name} is the block map of {result.label!r}")
        return result

    def prove_present(self, objects: Iterable[StoredObject]) -> None:
        """Confirm that objects of sets are there, with as many bytes as were stored.

        Raises:
            ObjectMissing, Damaged: the first that is not; the message names it.
        """
        found: dict[str, dict[str, int]] = {}
        for stored in objects:
            folder = stored.name.rpartition("/")[0] + "/"
            if folder not in found:
                found[folder] = {stat.name: stat.size_bytes for stat in self.storage.list(folder)}
            # A list may lag behind; what it does not show is asked for by name.
            size = found[folder].get(stored.name) or self._size(stored.name)
            if size != stored.stored_bytes:
                raise Damaged(f"{stored.name} has {size} bytes where {stored.stored_bytes} were stored")

    def _size(self, name: str) -> int:
        try:
            return self.storage.stat(name).size_bytes
        except ObjectMissing as error:
            raise ObjectMissing(f"{name} is not there any more") from error

    def begin(self, label: BackupLabel, sealing: sealed.Sealing, now: datetime) -> BackupSetWriter:
        """Start a set: make its data key and store it wrapped, so that no bundle is ever without its key.

        Raises:
            KeyMissing, KeyUnusable: a recipient cannot be sealed for.
            ObjectExists: the label was used before.
        """
        key: DataKey | None = None
        if sealing.mode is SealingMode.AES_256_GCM:
            key = self.keychain.create(str(label), sealing, now)
        return BackupSetWriter(self.storage, self.layout, label, sealing, key, prove_present=self.prove_present)

    # ---- marks, holds, leases

    def is_expired(self, label: BackupLabel) -> bool:
        return self._exists(self.layout.expiry(label))

    def holds(self, now: datetime) -> tuple[Hold, ...]:
        """The holds in force at `now`."""
        names = {stat.name for stat in self.storage.list(self.layout.holds)}
        live = [name for name in sorted(names) if not name.endswith(".released.json")]
        held = [self._hold(name) for name in live if f"{name.removesuffix('.json')}.released.json" not in names]
        return tuple(hold for hold in held if hold.until is None or hold.until > now)

    def ended_holds(self, now: datetime) -> tuple[Hold, ...]:
        """The holds that were released, or whose time is over at `now`."""
        names = sorted(stat.name for stat in self.storage.list(self.layout.holds))
        every = [self._hold(name) for name in names if not name.endswith(".released.json")]
        live = {hold.id for hold in self.holds(now)}
        return tuple(hold for hold in every if hold.id not in live)

    def _hold(self, name: str) -> Hold:
        document = documents.get(self.storage, name)
        try:
            until = document["until"]
            return Hold(
                id=str(document["id"]),
                label=BackupLabel.parse(str(document["label"])),
                reason=str(document["reason"]),
                owner=str(document["owner"]),
                placed_at=documents.moment(document["placed_at"], name=name),
                until=None if until is None else documents.moment(until, name=name),
                through=str(document.get("through", "")),
            )
        except (KeyError, NameRefused) as error:
            raise Damaged(f"{name} is no hold: {error}") from error

    def place_hold(
        self,
        label: BackupLabel,
        *,
        reason: str,
        owner: str,
        now: datetime,
        until: datetime | None = None,
        through: str = "",
        hold_id: str = "",
    ) -> Hold:
        """Keep a set, and all that it needs, without regard to policy.

        Args:
            hold_id: made before by `new_hold_id`, so that the audit could name it; a new one if it is omitted.
            through: a segment; WAL from the set's start to it is kept too. Empty for the set's own WAL.

        Raises:
            BackupMissing: there is no such set.
        """
        if not self._exists(self.layout.manifest(label)):
            raise BackupMissing(f"{self.name} has no backup {label}")
        hold = Hold(hold_id or new_hold_id(now), label, reason, owner, now, until, through)
        document = {
            "id": hold.id,
            "label": str(label),
            "reason": reason,
            "owner": owner,
            "placed_at": now.isoformat(),
            "until": until.isoformat() if until else None,
            "through": through,
        }
        documents.put(self.storage, self.layout.hold(hold.id), document)
        return hold

    def release_hold(self, hold_id: str, *, owner: str, now: datetime) -> None:
        """End a hold; ending it twice is an error.

        Raises:
            ObjectMissing: there is no such hold.
            ObjectExists: it was released before.
        """
        self.storage.stat(self.layout.hold(hold_id))
        documents.put(self.storage, self.layout.hold_release(hold_id), {"owner": owner, "released_at": now.isoformat()})

    def lease(
        self,
        holder: str,
        purpose: str,
        *,
        ttl: timedelta = lease.DEFAULT_TTL,
        patience: timedelta = timedelta(0),
        wait: Callable[[float], object] = time.sleep,
    ) -> lease.Lease:
        """Become the one writer of this source; use it as a context manager. The arguments are those of `acquire`.

        Raises:
            LeaseHeld: another writer's lease still runs.
        """
        return lease.acquire(
            self.storage, self.name, holder=holder, purpose=purpose, ttl=ttl, patience=patience, wait=wait
        )

    def _exists(self, name: str) -> bool:
        try:
            self.storage.stat(name)
        except ObjectMissing:
            return False
        return True


def new_hold_id(now: datetime) -> str:
    """The id of a hold that is placed at `now`."""
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _to_record(source: str, known: ClusterIdentity | None, found: ClusterIdentity) -> ClusterIdentity | None:
    """What is to be recorded of a cluster, with the timelines that are known; None if nothing is new.

    Raises:
        ClusterMismatch: it is another one than the known one.
    """
    if known is None:
        return found
    _refuse_other_cluster(source, known, found)
    if known.major_version == found.major_version and set(found.timelines) <= set(known.timelines):
        return None
    timelines = tuple(sorted({*found.timelines, *known.timelines}))
    return ClusterIdentity(found.system_identifier, found.major_version, timelines)


def _refuse_other_cluster(source: str, known: ClusterIdentity, found: ClusterIdentity) -> None:
    if known.system_identifier != found.system_identifier:
        raise ClusterMismatch(
            f"source {source} belongs to the cluster with system identifier {known.system_identifier}, "
            f"but this one has {found.system_identifier}"
        )
    if found.major_version < known.major_version:
        raise ClusterMismatch(
            f"source {source} was last seen with PostgreSQL {known.major_version}, but this is {found.major_version}"
        )


def _refuse_other_head(head: Head, sealed_head: object, *, name: str) -> None:
    """The head is readable without a key and so can be forged; the manifest repeats it under seal."""
    if heads.sealed_part(head) != sealed_head:
        raise Damaged(f"the head beside {name} does not say what the manifest says")
