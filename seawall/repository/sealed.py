"""Writing and reading sealed objects: frames through the codec, whole messages through GnuPG, hashes of both.

Every read of a sealed object goes through `open_sealed`, which insists on the mode that the backup's head
states: an object that suddenly is not sealed any more is damage, not a convenience.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from seawall.codec import DataKey, FrameReader, FrameWriter, KeySource
from seawall.errors import Damaged, StorageError
from seawall.keys import KeyRing, open_ring
from seawall.model import Compression, SealingMode, StoredObject
from seawall.settings import SealingSettings
from seawall.storage.base import Bytes, Storage


@dataclass(frozen=True, slots=True)
class Sealing:
    """How new objects are compressed and sealed, and for whom.

    Args:
        recipients: full OpenPGP fingerprints, at least two for the modes that seal.
        ring: holds at least the recipients' public keys.
        wal_key_period: how long one data key seals new WAL before another is made.
    """

    mode: SealingMode
    compression: Compression
    level: int
    recipients: tuple[str, ...]
    ring: KeyRing
    wal_key_period: timedelta = timedelta(hours=24)

    @property
    def of_lines(self) -> Sealing:
        """The same for lines of JSON, nearly all of them hashes in hex or Base64, which lz4 cannot make shorter."""
        if self.compression is not Compression.LZ4:
            return self
        return replace(self, compression=Compression.GZIP, level=1)


def sealing_of(settings: SealingSettings) -> Sealing:
    """The sealing that settings ask for.

    Raises:
        KeyUnusable: the key ring cannot be opened.
    """
    return Sealing(
        settings.mode,
        settings.compression,
        settings.level,
        settings.all_recipients,
        open_ring(settings),
        timedelta(hours=max(settings.wal_key_hours, 1)),
    )


class Counted:
    """Chunks on their way to the storage, with their number of bytes and SHA-256; iterated once."""

    def __init__(self, chunks: Iterable[Bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.stored_bytes = 0

    def __iter__(self) -> Iterator[Bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.stored_bytes += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Writer(Protocol):
    """What knows, after its chunks were taken, how much they were: a frame or bundle writer, or `Counted`."""

    @property
    def stored_bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


def put_confirmed(storage: Storage, name: str, chunks: Iterable[Bytes], writer: Writer) -> tuple[int, str]:
    """Store an object and confirm what the storage says that it holds; returns size and SHA-256.

    The size is always compared, and the SHA-256 where the storage computed one itself or every object is read back
    (`[repository] confirm`).

    Raises:
        StorageError: the storage holds another number of bytes, or other bytes.
    """
    stat = storage.put(name, chunks)
    if stat.size_bytes != writer.stored_bytes:
        raise StorageError(f"{name}: {writer.stored_bytes} bytes were sent, {stat.size_bytes} are stored")
    if stat.sha256 is not None and stat.sha256 != writer.sha256:
        raise StorageError(f"{name}: what is stored is not what was sent, its SHA-256 is {stat.sha256}")
    return writer.stored_bytes, writer.sha256


def put_sealing(
    storage: Storage, name: str, chunks: Iterable[Bytes], writer: Writer, sealing: Sealing
) -> tuple[int, str]:
    """Store what a writer makes, in an OpenPGP message if that is the mode; returns stored size and SHA-256."""
    if sealing.mode is not SealingMode.OPENPGP:
        return put_confirmed(storage, name, chunks, writer)
    counted = Counted(sealing.ring.encrypt_stream(chunks, sealing.recipients))
    return put_confirmed(storage, name, counted, counted)


def put_sealed(
    storage: Storage,
    name: str,
    pieces: Iterable[Bytes],
    *,
    kind: str,
    logical: str,
    sealing: Sealing,
    key: DataKey | None,
    extra: dict[str, str | int] | None = None,
) -> StoredObject:
    """Compress, seal and store plain pieces as one object.

    Args:
        pieces: plain bytes in pieces of any size.
        kind: what it is: `manifest`, `blocks`, `wal` or `history`.
        logical: the name that is sealed in and that a reader must expect.
        key: the data key in mode aes-256-gcm, else None.
        extra: facts to state in the clear header.
    """
    writer = FrameWriter(
        kind,
        logical,
        compression=sealing.compression,
        level=sealing.level,
        key=key,
        extra=extra or {},
        hashed=sealing.mode is not SealingMode.OPENPGP,
    )
    stored_bytes, sha256 = put_sealing(storage, name, writer.stream(pieces), writer, sealing)
    return StoredObject(name, stored_bytes, sha256, writer.plain_bytes)


def plain_envelope(chunks: Iterable[Bytes], mode: SealingMode, ring: KeyRing | None, *, name: str) -> Iterator[Bytes]:
    """The envelope's bytes: as they lie there, or from within the OpenPGP message.

    Raises:
        Damaged: the object is not sealed in the mode it should be.
        KeyMissing: no key ring was given for an OpenPGP message.
    """
    if mode is not SealingMode.OPENPGP:
        return iter(chunks)
    if ring is None:
        raise Damaged(f"{name} is an OpenPGP message and no key ring was given")
    return ring.decrypt_stream(chunks)


def open_sealed(
    storage: Storage,
    name: str,
    *,
    logical: str,
    mode: SealingMode,
    ring: KeyRing,
    key_for: KeySource,
    chunks: Iterable[Bytes] | None = None,
) -> FrameReader:
    """A reader of one sealed object's plain frames.

    Args:
        chunks: the object's bytes when the caller reads them itself.

    Raises:
        ObjectMissing: proved absent.
        Damaged: it is not what was written, or not sealed in `mode`.
    """
    stored = storage.get(name) if chunks is None else chunks
    reader = FrameReader(plain_envelope(stored, mode, ring, name=name), logical, key_for)
    refuse_other_mode(reader.envelope.seal, mode, name=name)
    return reader


def refuse_other_mode(found: str, mode: SealingMode, *, name: str) -> None:
    """Stop when an object is sealed otherwise than its backup.

    Raises:
        Damaged: it is.
    """
    expected = SealingMode.AES_256_GCM if mode is SealingMode.AES_256_GCM else SealingMode.NONE
    if str(found) != expected.value:
        raise Damaged(f"{name} should be sealed as {expected.value}, but is {found}")
