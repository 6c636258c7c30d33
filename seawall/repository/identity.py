"""Who a repository is: two objects that say the same, so that losing one stops nobody.

A reader takes the first of them that is sound. What is damaged is never overwritten: `seawall.repair` plans what to
write where, and where a lock forbids to replace one, writes a sound one under `repairs/`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from seawall.errors import Damaged, NotARepository, ObjectMissing, RepositoryError, StorageError
from seawall.repository import documents
from seawall.repository.layout import FORMAT, IDENTITY, IDENTITY_COPY, REPAIRS
from seawall.storage.base import Storage, read

log = logging.getLogger(__name__)

NAMES = (IDENTITY, IDENTITY_COPY)


@dataclass(frozen=True, slots=True)
class Identity:
    """A repository's id and when it was made."""

    repository_id: str
    created_at: datetime


def create(storage: Storage, identity: Identity) -> None:
    """Write both objects; creating the first is what decides between two that try.

    Raises:
        ObjectExists: another repository began here.
    """
    for name in NAMES:
        put(storage, name, identity)


def put(storage: Storage, name: str, identity: Identity) -> None:
    """Write one of the objects.

    Raises:
        ObjectExists: something lies there.
    """
    storage.put(name, [encoded(name, identity)])


def encoded(name: str, identity: Identity) -> bytes:
    """The stored form of one of the objects."""
    document = {
        "format": FORMAT,
        "repository_id": identity.repository_id,
        "created_at": identity.created_at.isoformat(),
    }
    return documents.encode(document, name=name)


def found(storage: Storage) -> Identity:
    """Who the repository is, by the first object that tells it.

    Raises:
        NotARepository: no such object lies there.
        FormatTooNew: a later version wrote it.
        Damaged: none is what was written.
    """
    wrong: list[RepositoryError] = []
    for name, stored_as in _places():
        try:
            identity = one(storage, name, stored_as=stored_as)
        except ObjectMissing:
            continue
        except Damaged as error:
            wrong.append(error)
        else:
            if stored_as != IDENTITY:
                log.warning("%s is missing or damaged; %s tells who the repository is", IDENTITY, stored_as)
            return identity
    if wrong:
        raise Damaged(wrong[0].message, hint="`seawall repository repair --dry-run` says what can be done.")
    raise _absent(storage)


def _absent(storage: Storage) -> NotARepository:
    if storage.children("sources/"):
        return NotARepository(
            f"{storage.url} holds backups, but nothing says which repository it is",
            hint="Write its identity again with `seawall repository repair`.",
        )
    return NotARepository(f"{storage.url} holds no Seawall repository")


def one(storage: Storage, name: str, *, stored_as: str = "") -> Identity:
    """What one of the objects says.

    Args:
        stored_as: where it lies, if that is not under its own name.

    Raises:
        ObjectMissing: proved absent.
        FormatTooNew: a later version wrote it.
        Damaged: it is not what was written.
    """
    document = documents.decode(read(storage, stored_as or name, limit=documents.LIMIT_BYTES), name=name)
    documents.refuse_newer(document.get("format"), FORMAT, name=name)
    try:
        repository_id, created_at = str(document["repository_id"]), document["created_at"]
    except KeyError as error:
        raise Damaged(f"{name} has no {error}") from error
    return Identity(repository_id, documents.moment(created_at, name=name))


def known(storage: Storage) -> dict[str, Identity | RepositoryError | StorageError]:
    """What each object says, or what is wrong with it; one that a repair lies beside says what that says."""
    return {name: _told(storage, name) for name in NAMES}


def _told(storage: Storage, name: str) -> Identity | RepositoryError | StorageError:
    try:
        return one(storage, name)
    except (Damaged, ObjectMissing) as error:
        with contextlib.suppress(Damaged, ObjectMissing):
            return one(storage, name, stored_as=f"{REPAIRS}{name}")
        return error


def _places() -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in NAMES)
    yield from ((name, f"{REPAIRS}{name}") for name in NAMES)
