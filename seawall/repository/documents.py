"""Small JSON documents that prove themselves: identity, heads, keys, leases, holds and marks.

Each carries `sha256`, the hash of its own canonical form without that member, so that a flip in any byte is
found without a key, and `object`, its own name, so that one which lies in another's place is found as well. That
guards against damage, not against a forger: who can write to the storage can write a new document. What must
withstand a forger is sealed (see docs/threat-model.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from seawall.errors import Damaged, FormatTooNew
from seawall.storage.base import Storage, read

LIMIT_BYTES = 4 * 1024 * 1024
LIST_LIMIT_BYTES = 256 * 1024 * 1024


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one byte form of a JSON object: sorted keys, no spaces, UTF-8 (after RFC 8785, for our value types)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode(document: Mapping[str, Any], *, name: str) -> bytes:
    """The stored form of a document, with its name and its hash.

    Raises:
        ValueError: it has a member of one of these names already, which its reader would take for them.
    """
    if taken := {"sha256", "object"} & document.keys():
        raise ValueError(f"{name}: a document cannot have a member {min(taken)!r} of its own")
    named = {**document, "object": name}
    return canonical({**named, "sha256": hashlib.sha256(canonical(named)).hexdigest()})


def decode(data: bytes, *, name: str) -> dict[str, Any]:
    """A document from its stored form, without its hash and name; `name` is the object's.

    Raises:
        Damaged: it is no JSON object, its hash is wrong, or it is another object's content.
    """
    try:
        document = json.loads(data)
        claimed = document.pop("sha256")
        actual = hashlib.sha256(canonical(document)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{name} is not a Seawall document") from error
    if claimed != actual:
        raise Damaged(f"{name} is damaged: its content does not match its hash")
    place = document.pop("object", None)
    if place != name:
        raise Damaged(f"{name} holds what belongs to {place!r}")
    return dict(document)


def put(storage: Storage, name: str, document: Mapping[str, Any]) -> None:
    """Store a new document.

    Raises:
        ObjectExists: one lies there already.
    """
    storage.put(name, [encode(document, name=name)])


def get(storage: Storage, name: str, *, limit: int = LIMIT_BYTES) -> dict[str, Any]:
    """Read a document of at most `limit` bytes.

    Raises:
        ObjectMissing: proved absent.
        Damaged: its content does not match its hash, or belongs elsewhere.
    """
    return decode(read(storage, name, limit=limit), name=name)


def refuse_newer(found: object, known: int, *, name: str) -> None:
    """Stop before misreading what a later version wrote.

    Raises:
        FormatTooNew: `found` is a later format.
        Damaged: `found` is no format number at all.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Damaged(f"{name} states no format version")
    if found > known:
        raise FormatTooNew(f"{name} has format {found}, this Seawall reads up to {known}")


def moment(text: object, *, name: str) -> datetime:
    """An aware time from a document.

    Raises:
        Damaged: it is none.
    """
    try:
        value = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise Damaged(f"{name} has {text!r} where a time belongs") from error
    if value.tzinfo is None:
        raise Damaged(f"{name} has a time without offset: {text!r}")
    return value
