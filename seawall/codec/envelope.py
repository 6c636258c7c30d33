"""The clear header of a sealed object, data keys, and how one frame is authenticated.

Format v1 (docs/repository-format.md, "Sealed objects"): `SEAWALL1` | u32 BE length | canonical JSON header, then
frames. AES-256-GCM in a STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): the nonce is a 7-byte prefix,
the frame's number and its final flag, so that frames can neither be reordered nor the stream be cut. The subkey
is HKDF-SHA256 (RFC 5869) of the data key, salted for each object and bound to the object's name, so that no two
objects ever share a nonce under one key and none can take another's place.

Not guaranteed: who wrote an object. Whoever can write to the storage and knows the recipients' public keys can
make a new, valid object; the audit chain and the storage's own permissions answer that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from seawall.errors import Damaged, FormatTooNew, UsageError
from seawall.model import Compression, SealingMode
from seawall.storage.base import Bytes

MAGIC = b"SEAWALL1"
VERSION = 1
FRAME_BYTES = 2 * 1024 * 1024
TAG_BYTES = 16
FINAL = 1
RAW = 2
# Magic, length and header fit into the first 64 KiB of an object, so that one small read finds them.
MAX_HEADER_BYTES = 64 * 1024 - 12
# Stored length (with the tag), plain length, flags.
FRAME_HEADER = struct.Struct(">IIB")

Randomness: TypeAlias = Callable[[int], bytes]

_PREFIX = struct.Struct(">8sI")
_SMALL_BYTES = 64 * 1024
_kept = threading.local()
_FIELDS = frozenset({"v", "kind", "object", "codec", "seal", "key", "salt", "nonce", "extra"})
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SALT = re.compile(r"[0-9a-f]{32}")
_NONCE = re.compile(r"[0-9a-f]{14}")


@dataclass(frozen=True, slots=True)
class DataKey:
    """32 random bytes that seal one backup set or one period of WAL, and the id that headers name."""

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise ValueError("a data key has 32 bytes")
        if _KEY_ID.fullmatch(self.id) is None:
            raise ValueError(f"{self.id!r} is no id of a data key")


KeySource: TypeAlias = Callable[[str], DataKey]


def new_data_key(key_id: str, randomness: Randomness = os.urandom) -> DataKey:
    """A fresh data key under the id that the caller chose."""
    return DataKey(key_id, randomness(32))


@dataclass(frozen=True, slots=True)
class Envelope:
    """An object's header: readable without a key, authenticated with every frame.

    Args:
        object: the logical name; a reader states the one it expects.
        key: the data key's id, empty when `seal` is none.
        extra: facts that must be known without a key.
        encoded: magic, length and header as they are stored.
    """

    kind: str
    object: str
    codec: Compression
    seal: SealingMode
    key: str
    salt: bytes
    nonce: bytes
    extra: Mapping[str, str | int]
    encoded: bytes = field(repr=False)


def make_envelope(
    kind: str,
    object_name: str,
    *,
    compression: Compression,
    key: DataKey | None,
    extra: Mapping[str, str | int],
    randomness: Randomness,
) -> Envelope:
    """The header of a new object: sealed with `key`, or only protected against accidents without one.

    Raises:
        UsageError: the kind is malformed, or the header would be longer than 65,524 bytes.
    """
    seal = SealingMode.AES_256_GCM if key else SealingMode.NONE
    key_id = key.id if key else ""
    salt, nonce = (randomness(16), randomness(7)) if key else (b"", b"")
    header = {
        "v": VERSION,
        "kind": kind,
        "object": object_name,
        "codec": compression.value,
        "seal": seal.value,
        "key": key_id,
        "salt": salt.hex(),
        "nonce": nonce.hex(),
        "extra": dict(extra),
    }
    body = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if _KIND.fullmatch(kind) is None or len(body) > MAX_HEADER_BYTES:
        raise UsageError(f"no header can be made for {object_name} of kind {kind!r}", hint="This is a defect.")
    encoded = _PREFIX.pack(MAGIC, len(body)) + body
    return Envelope(kind, object_name, compression, seal, key_id, salt, nonce, dict(extra), encoded)


def header_length(prefix: bytes, name: str) -> int:
    """The header's length from an object's first 12 bytes.

    Raises:
        Damaged: these are not the first bytes of a sealed object.
        FormatTooNew: a newer version wrote it.
    """
    if len(prefix) < _PREFIX.size:
        raise Damaged(f"{name} ends inside its header")
    magic, length = _PREFIX.unpack(prefix)
    if magic[:7] != MAGIC[:7] or not magic[7:].isdigit():
        raise Damaged(f"{name} does not begin like a sealed object")
    if magic != MAGIC:
        raise FormatTooNew(f"{name} is of format {magic[7:].decode()}, known is {VERSION}")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise Damaged(f"{name} states a header of {length} bytes")
    return int(length)


def read_envelope(head: bytes, name: str = "object") -> Envelope:
    """The header from an object's first bytes (64 KiB always suffice; more are ignored).

    Raises:
        Damaged: it is no header, or is cut.
        FormatTooNew: a newer version wrote it.
    """
    end = _PREFIX.size + header_length(head[: _PREFIX.size], name)
    if len(head) < end:
        raise Damaged(f"{name} ends inside its header")
    try:
        # Recursion: a hostile header may nest brackets deeper than the parser goes.
        header = json.loads(head[_PREFIX.size : end].decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{name} has a header that is no JSON") from error
    if not isinstance(header, dict):
        raise Damaged(f"{name} has a header that is no JSON object")
    if type(header.get("v")) is int and header["v"] > VERSION:
        raise FormatTooNew(f"{name} is of format {header['v']}, known is {VERSION}")
    return _parsed(header, bytes(head[:end]), name)


def _parsed(header: Mapping[str, object], encoded: bytes, name: str) -> Envelope:
    if header.keys() != _FIELDS or header["v"] != VERSION:
        raise Damaged(f"{name} has a header with other fields than format {VERSION} has")
    kind, logical, key, salt, nonce = (_text(header[f], name) for f in ("kind", "object", "key", "salt", "nonce"))
    try:
        codec, seal = Compression(_text(header["codec"], name)), SealingMode(_text(header["seal"], name))
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from error
    sealed = seal is SealingMode.AES_256_GCM
    patterns = ((_KEY_ID, key), (_SALT, salt), (_NONCE, nonce))
    well_formed = all(p.fullmatch(text) if sealed else not text for p, text in patterns)
    if not well_formed or seal is SealingMode.OPENPGP or _KIND.fullmatch(kind) is None:
        raise Damaged(f"{name} has a malformed header")
    return Envelope(
        kind,
        logical,
        codec,
        seal,
        key,
        bytes.fromhex(salt),
        bytes.fromhex(nonce),
        _extra(header["extra"], name),
        encoded,
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Damaged(f"{name} has a malformed header")
    return value


def _extra(value: object, name: str) -> dict[str, str | int]:
    if not isinstance(value, dict) or not all(type(v) in (str, int) for v in value.values()):
        raise Damaged(f"{name} has a malformed header")
    return value


class Seal(Protocol):
    """How the frames of one object are authenticated; the frame header is part of what is authenticated."""

    def close(self, header: bytes, number: int, final: bool, body: Bytes, into: memoryview) -> None:
        """Write the sealed body and its 16-byte tag into `into`, which is exactly that long."""
        ...

    def open(self, header: bytes, number: int, final: bool, stored: Bytes) -> Bytes:
        """The body of a stored frame, valid until this thread opens another of any object.

        Raises:
            Damaged: it is not what was sealed there.
        """
        ...

    def open_to_keep(self, header: bytes, number: int, final: bool, stored: Bytes) -> bytes:
        """The same, valid as long as it is kept."""
        ...


def seal_for(envelope: Envelope, key: DataKey | None) -> Seal:
    """The seal of an object; `key` is used only when the envelope says that it is sealed.

    Raises:
        Damaged: the envelope names another key than the one that was found.
    """
    if envelope.seal is SealingMode.NONE:
        return _Checksum(envelope)
    if key is None or key.id != envelope.key:
        raise Damaged(f"{envelope.object} is sealed with key {envelope.key!r}, offered was another")
    return _AesGcm(envelope, key)


class _AesGcm:
    def __init__(self, envelope: Envelope, key: DataKey) -> None:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - only where something is sealed
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - as above

        self._invalid: type[Exception] = InvalidTag
        self._cipher = AESGCM(_subkey(key.secret, envelope.salt, envelope.object))
        self._nonce = envelope.nonce
        self._digest = hashlib.sha256(envelope.encoded).digest()
        self._name = envelope.object

    def close(self, header: bytes, number: int, final: bool, body: Bytes, into: memoryview) -> None:
        self._cipher.encrypt_into(self._nonce_of(number, final), body, self._digest + header, into)

    def open(self, header: bytes, number: int, final: bool, stored: Bytes) -> Bytes:
        body = _opened_room(len(stored) - TAG_BYTES)
        with self._refused(number):
            self._cipher.decrypt_into(self._nonce_of(number, final), stored, self._digest + header, body)
        return body

    def open_to_keep(self, header: bytes, number: int, final: bool, stored: Bytes) -> bytes:
        with self._refused(number):
            return self._cipher.decrypt(self._nonce_of(number, final), stored, self._digest + header)

    def _nonce_of(self, number: int, final: bool) -> bytes:
        # A number beyond 32 bits fails to pack: a nonce is never used twice.
        return self._nonce + struct.pack(">IB", number, final)

    @contextmanager
    def _refused(self, number: int) -> Iterator[None]:
        try:
            yield
        except self._invalid as error:
            raise Damaged(f"frame {number} of {self._name} is not what was sealed there") from error


class _Checksum:
    """Finds damage where nothing is encrypted: a truncated BLAKE3 where the tag would be. Proves no origin."""

    def __init__(self, envelope: Envelope) -> None:
        self._digest = hashlib.sha256(envelope.encoded).digest()
        self._name = envelope.object

    def close(self, header: bytes, number: int, final: bool, body: Bytes, into: memoryview) -> None:  # noqa: ARG002 - the header holds the flag
        into[:-TAG_BYTES] = body
        into[-TAG_BYTES:] = self._sum(header, number, body)

    def open(self, header: bytes, number: int, final: bool, stored: Bytes) -> Bytes:  # noqa: ARG002 - as above
        body = memoryview(stored)[:-TAG_BYTES]
        if not hmac.compare_digest(self._sum(header, number, body), bytes(stored[-TAG_BYTES:])):
            raise Damaged(f"frame {number} of {self._name} is not what was written there")
        return body

    def open_to_keep(self, header: bytes, number: int, final: bool, stored: Bytes) -> bytes:
        return bytes(self.open(header, number, final, stored))

    def _sum(self, header: bytes, number: int, body: Bytes) -> bytes:
        from blake3 import blake3  # noqa: PLC0415 - only where nothing is encrypted

        hasher = blake3(self._digest + header + struct.pack(">I", number))
        hasher.update(body)
        return hasher.digest(TAG_BYTES)


def _opened_room(length: int) -> memoryview:
    """This thread's room for an opened frame: taking and clearing new memory for each would cost as much as opening."""
    room: memoryview | None = _kept.__dict__.get("room")
    if room is None or len(room) < length:
        # Most objects are small, and most frames of the others full; an opened body is never longer than its frame.
        room = _kept.room = memoryview(bytearray(_SMALL_BYTES if length <= _SMALL_BYTES else max(length, FRAME_BYTES)))
    return room[:length]


def _subkey(secret: bytes, salt: bytes, object_name: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) for 32 bytes, which is one round of expansion; written out to spare an import."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, b"seawall/1 " + object_name.encode() + b"\x01", "sha256")
