"""What was just written is confirmed before a backup that needs it can commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from seawall.errors import StorageError
from seawall.repository.sealed import Counted, put_confirmed
from seawall.settings import Confirm, RepositorySettings, parse
from seawall.storage import open_storage
from seawall.storage.base import Bytes, Stat
from seawall.storage.confirm import Confirming
from seawall.storage.memory import MemoryStorage

CONTENT = [b"sealed" * 1000, b"bytes" * 3000]


class Mangling(MemoryStorage):
    """Stores one bit otherwise than it was sent."""

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        first, *rest = [bytes(chunk) for chunk in chunks]
        return super().put(name, [bytes([first[0] ^ 1]) + first[1:], *rest])


class Checksumming(MemoryStorage):
    """Computes a checksum of what it stores, as object stores do."""

    reads = 0

    def put(self, name: str, chunks: Iterable[Bytes]) -> Stat:
        stat = super().put(name, chunks)
        return replace(stat, sha256=hashlib.sha256(b"".join(super().get(name))).hexdigest())

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.reads += 1
        return super().get(name, offset, length)


class ManglingChecksumming(Checksumming, Mangling):
    """Tells by its checksum what it did."""


def test_what_came_otherwise_than_it_was_sent_is_found_by_reading_it_back() -> None:
    counted = Counted(CONTENT)
    with pytest.raises(StorageError, match="not what was sent"):
        put_confirmed(Confirming(Mangling()), "bundle", counted, counted)


def test_the_size_alone_does_not_find_it() -> None:
    counted = Counted(CONTENT)
    assert put_confirmed(Mangling(), "bundle", counted, counted) == (counted.stored_bytes, counted.sha256)


def test_a_storages_own_checksum_is_compared_and_spares_the_reading() -> None:
    counted = Counted(CONTENT)
    with pytest.raises(StorageError, match="not what was sent"):
        put_confirmed(ManglingChecksumming(), "bundle", counted, counted)
    sound, counted = Checksumming(), Counted(CONTENT)
    put_confirmed(Confirming(sound), "bundle", counted, counted)
    assert sound.reads == 0


def test_what_came_whole_is_confirmed() -> None:
    counted = Counted(CONTENT)
    stored_bytes, sha256 = put_confirmed(Confirming(MemoryStorage()), "bundle", counted, counted)
    assert (stored_bytes, sha256) == (21000, hashlib.sha256(b"".join(CONTENT)).hexdigest())


def test_the_setting_decides() -> None:
    assert parse({"repository": {"confirm": "hash"}}).repository.confirm is Confirm.HASH
    assert isinstance(open_storage(RepositorySettings("memory:", confirm=Confirm.HASH)), Confirming)
    assert not isinstance(open_storage(RepositorySettings("memory:")), Confirming)
