"""Indexes of the objects that others lead: each read once for all workers, and no more kept than has room."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from seawall.codec import BundleWriter, DataKey, ExtentSource, Index, RangeReader, read_extent, read_index
from seawall.model import Compression
from seawall.restore import patches
from seawall.restore.patches import Indexes

KEY = DataKey("key-1", bytes(range(32)))
RUN = 8192
FILES = 5


def bundle(name: str) -> bytes:
    writer = BundleWriter(name, compression=Compression.LZ4, key=KEY)
    sources = (
        ExtentSource(f"{name}/{n}", 0, 100_000, io.BytesIO(content(name, n)).readinto, RUN) for n in range(FILES)
    )
    return b"".join(bytes(chunk) for chunk in writer.stream(sources))


def content(name: str, number: int) -> bytes:
    return f"{name} {number} ".encode() * 1000


def ranges(stored: bytes) -> RangeReader:
    def read(offset: int, length: int) -> Iterator[bytes]:
        yield stored[offset : offset + length]

    return read


class Stored:
    """Bundles in memory, and how often each index was read."""

    def __init__(self, *names: str) -> None:
        self.objects = {name: bundle(name) for name in names}
        self.asked: list[str] = []

    def read(self, name: str) -> Index:
        self.asked.append(name)
        data = self.objects[name]
        return read_index(ranges(data), len(data), name, lambda _key: KEY)

    def all_of(self, name: str, index: Index) -> list[bytes]:
        return [b"".join(read_extent(ranges(self.objects[name]), index, entry)) for entry in index.entries]


def test_an_index_is_read_once_and_serves_several_threads_at_a_time() -> None:
    stored = Stored("a")
    indexes = Indexes(stored.read)
    indexes.take("a")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _turn: stored.all_of("a", indexes.take("a")), range(40)))
    assert found == [[content("a", n) for n in range(FILES)]] * 40
    assert stored.asked == ["a"]


def test_each_taker_has_a_decoder_of_its_own() -> None:
    stored = Stored("a")
    indexes = Indexes(stored.read)
    one, other = indexes.take("a"), indexes.take("a")
    assert one.decoder is not other.decoder
    assert one.entries is other.entries


def test_what_was_asked_for_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_KEPT_EXTENTS", 2 * FILES)
    stored = Stored("a", "b", "c")
    indexes = Indexes(stored.read)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert stored.all_of(name, indexes.take(name))[0] == content(name, 0)
    assert stored.asked == ["a", "b", "c", "b"]


def test_an_index_larger_than_the_room_is_kept_until_another_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_KEPT_EXTENTS", 1)
    stored = Stored("a", "b")
    indexes = Indexes(stored.read)
    for name in ("a", "a", "b", "a"):
        indexes.take(name)
    assert stored.asked == ["a", "b", "a"]
