"""Engine values as JSON documents, fit for both databases and free of secrets.

PostgreSQL's text cannot hold NUL and its JSONB no lone surrogates: error texts of foreign programs may have
either, and a failure that cannot be recorded would be lost, so they become U+FFFD.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import PurePath
from uuid import UUID

from seawall.errors import UsageError
from seawall.model import BackupLabel, Head
from seawall.wal import Lsn

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SECRET_KEY = re.compile(
    r"(?i)(pass(word|wd|phrase)?|pwd|secret|(secret|account|private|api)_?key|secret_?access_?key|connection_?string"
    r"|((access|auth|session|refresh|sas|bearer)_?)?token)"
)
_SECRET_TEXT = re.compile(r"(?i)\bpassword\s*=\s*\S|://[^/\s:@]*:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY")


def clean(text: str) -> str:
    """`text` with U+FFFD for every character that a database text cannot hold."""
    return _UNSTORABLE.sub("\ufffd", text)


def as_document(value: Mapping[str, object]) -> dict[str, object]:
    """A mapping of engine values as plain JSON.

    Dataclasses become objects, enumerations their value, times ISO 8601 in UTC, spans seconds, and LSNs, labels,
    paths, UUIDs and numbers that are none (NaN, infinities) text.

    Raises:
        UsageError: something in it has no JSON form, such as bytes.
    """
    return {clean(str(key)): _plain(item) for key, item in value.items()}


def head_document(head: Head) -> dict[str, object]:
    """A backup set's head as plain JSON."""
    return as_document({f.name: getattr(head, f.name) for f in fields(head)})


def configuration(value: Mapping[str, object], what: str) -> dict[str, object]:
    """`value` as plain JSON, once it is sure that no secret is in it.

    Raises:
        UsageError: a key or text in it looks like a password, token or private key.
    """
    document = as_document(value)
    _refuse_secrets(document, what)
    return document


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, datetime | timedelta):
        return _plain_time(value)
    if isinstance(value, str | Lsn | BackupLabel | UUID | PurePath):
        return clean(str(value))
    return _plain_group(value)


def _plain_time(value: datetime | timedelta) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value.utcoffset() is None:
        raise UsageError(f"the time {value.isoformat()} has no offset from UTC")
    return value.astimezone(UTC).isoformat()


def _plain_group(value: object) -> object:
    if isinstance(value, Mapping):
        return as_document(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Set):
        return sorted((_plain(item) for item in value), key=str)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    raise UsageError(f"a {type(value).__name__} cannot be kept in the catalog")


def _refuse_secrets(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{where}.{key}"
            if _SECRET_KEY.fullmatch(str(key)) and isinstance(item, str) and item:
                raise _secret(inner)
            _refuse_secrets(item, inner)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_secrets(item, f"{where}[{number}]")
    elif isinstance(value, str) and _SECRET_TEXT.search(value):
        raise _secret(where)


def _secret(where: str) -> UsageError:
    return UsageError(
        f"{where} looks like a secret, and the catalog keeps none",
        hint="Name the Prefect block, file or environment variable that holds it instead.",
    )
