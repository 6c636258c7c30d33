"""A backup set being written: its bundles, then what says what they are, and the manifest last.

The order is bundles → block map → list of objects → copy of the manifest → head → manifest. The manifest is the commit
point: before it, everything that was stored is garbage; after it, the set is listed.

Not guaranteed here: that what was stored opens with the keys at hand (`seawall.verify`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from seawall.codec import BundleWriter, DataKey, Scratch
from seawall.errors import Damaged
from seawall.model import BackupLabel, FileEntry, Head, SealingMode, StoredObject
from seawall.repository import documents, heads, lease, manifest, sealed
from seawall.repository.layout import SourceLayout
from seawall.repository.lines import Row
from seawall.storage.base import Bytes, Storage


class BackupSetWriter:
    """A set being written; `commit` makes it exist. Until then everything it stored is garbage.

    `put_bundle` may be called from several threads at once.

    Args:
        key: the data key, stored already, or None where a set has none.
        prove_present: raises if an object of an earlier set is not what it was.
    """

    def __init__(
        self,
        storage: Storage,
        layout: SourceLayout,
        label: BackupLabel,
        sealing: sealed.Sealing,
        key: DataKey | None,
        *,
        prove_present: Callable[[Iterable[StoredObject]], None],
    ) -> None:
        self.label = label
        self.sealing = sealing
        self.key_id = key.id if key else ""
        self._storage, self._layout = storage, layout
        self._key = key
        self._prove_present = prove_present

    def bundle_writer(self, number: int, scratch: Scratch | None = None) -> tuple[str, BundleWriter]:
        """A new bundle's object name, and the writer to fill it with; `scratch` belongs to the calling thread."""
        name = self._layout.bundle(self.label, number, secrets.token_hex(4))
        writer = BundleWriter(
            self._layout.logical(name),
            compression=self.sealing.compression,
            level=self.sealing.level,
            key=self._key,
            hashed=self.sealing.mode is not SealingMode.OPENPGP,
            scratch=scratch,
        )
        return name, writer

    def put_bundle(self, name: str, writer: BundleWriter, chunks: Iterable[Bytes]) -> StoredObject:
        """Store a bundle while `writer` produces its chunks.

        Raises:
            StorageError: it is not there, or not with the size that was sent.
        """
        stored_bytes, sha256 = sealed.put_sealing(self._storage, name, chunks, writer, self.sealing)
        return StoredObject(name, stored_bytes, sha256, writer.plain_bytes)

    def parts_sha256(self, stored: StoredObject) -> str:
        """What the storage says of the parts that a bundle was sent in (`Stat.parts_sha256`); empty if nothing.

        Raises:
            StorageError: it does not answer.
        """
        has_sums = self._storage.capabilities.checksums
        return self._storage.stat(stored.name).parts_sha256 if has_sums else ""

    def commit(
        self,
        facts: Head,
        *,
        objects: Sequence[StoredObject],
        specials: dict[str, str],
        files: Iterable[FileEntry | Row],
        held: lease.Lease,
        block_map: Iterable[Bytes] | None = None,
    ) -> Head:
        """Make the set exist.

        Args:
            facts: the head without what only the manifest's writing tells (key id, hash, size).
            objects: every bundle that was stored, then every bundle of earlier sets that a file refers to.
            specials: `backup_label` and the like, byte for byte.
            files: in the order of their paths, perhaps as `manifest.encoded_row` has made them.
            held: the lease under which all this was written.
            block_map: its lines (`blocks.encode`), where incrementals shall build on this set.

        Raises:
            LeaseLost: another writer took over; nothing was committed.
            ObjectMissing, Damaged: a bundle of an earlier set is not what it was; nothing was committed.
        """
        layout, storage = self._layout, self._storage
        facts = replace(facts, key_id=self.key_id, sealing=self.sealing.mode, compression=self.sealing.compression)
        name = layout.manifest(self.label)
        needed = list(objects)
        # What this set takes from earlier ones was looked at when it began; that may be hours ago.
        self._prove_present(o for o in needed if not layout.is_own(o.name, self.label))
        if block_map is not None:
            stored = self._put_blocks(block_map)
            needed.append(stored)
            facts = replace(
                facts, stored_bytes=facts.stored_bytes + stored.stored_bytes, object_count=facts.object_count + 1
            )
        # In clear, so that a host without private keys, or a mirror, can prove what lies in the storage.
        listed = [[o.name, o.stored_bytes, o.stored_sha256, o.plain_bytes] for o in needed]
        documents.put(storage, layout.objects(self.label), {"objects": listed})
        # The copy comes first and the manifest is made from reading it back: what commits was read once already.
        copy = sealed.put_sealed(
            storage,
            layout.manifest_copy(self.label),
            manifest.encode(heads.sealed_part(facts), objects, specials, files),
            kind="manifest",
            logical=layout.logical(name),
            sealing=self.sealing.of_lines,
            key=self._key,
        )
        head = replace(facts, manifest_sha256=copy.stored_sha256, manifest_bytes=copy.stored_bytes)
        documents.put(storage, layout.head(self.label), heads.to_document(head))
        # The last look at the lease: from here to the commit point there is one write.
        held.check()
        self._put_manifest(name, head)
        return head

    def _put_blocks(self, block_map: Iterable[Bytes]) -> StoredObject:
        name = self._layout.blocks(self.label)
        logical = self._layout.logical(name)
        return sealed.put_sealed(
            self._storage,
            name,
            block_map,
            kind="blocks",
            logical=logical,
            sealing=self.sealing.of_lines,
            key=self._key,
        )

    def _put_manifest(self, name: str, head: Head) -> None:
        storage, layout = self._storage, self._layout
        counted = sealed.Counted(storage.get(layout.manifest_copy(self.label)))
        storage.put(name, _refusing_other(counted, head.manifest_sha256, layout.manifest_copy(self.label)))


def _refusing_other(counted: sealed.Counted, sha256: str, name: str) -> Iterator[Bytes]:
    """The chunks, and an error before the last of them is accepted if they are not what was written."""
    yield from counted
    if counted.sha256 != sha256:
        raise Damaged(f"{name} came back with other content than was written")
