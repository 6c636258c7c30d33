"""Clear lists of stored WAL: what they say, who finds them, and what they never make of sound WAL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import StorageDenied
from seawall.model import Compression, SealingMode, StoredObject
from seawall.repository import Repository, Sealing, documents
from seawall.repository.layout import SourceLayout
from seawall.repository.wal_lists import LISTED_TOGETHER, How, WalLists, spans
from seawall.storage.base import Bytes
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper
from seawall.wal import Segment

LAYOUT = SourceLayout("shop")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def stored(timeline: int, number: int, sha256: str = "a" * 64, suffix: str = "") -> StoredObject:
    return StoredObject(LAYOUT.segment(Segment(timeline, number).name) + suffix, 100, sha256, 200)


def listed(storage: MemoryStorage) -> list[str]:
    return [stat.name for stat in storage.list(LAYOUT.wal_lists)]


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def plain() -> Any:
    return Sealing(SealingMode.NONE, Compression.LZ4, 1, (), None)  # type: ignore[arg-type] # nothing is sealed


@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(0, 600)), min_size=1, max_size=40), min_size=1, max_size=8
    ),
    other=st.tuples(st.integers(1, 3), st.integers(0, 600)),
)
def test_what_any_list_names_is_found_and_nothing_else(
    batches: list[list[tuple[int, int]]], other: tuple[int, int]
) -> None:
    storage = MemoryStorage()
    writer = WalLists(storage, LAYOUT)
    for batch in batches:
        writer.write([stored(*one) for one in batch], How.WRITTEN)
    known, reader = {one for batch in batches for one in batch}, WalLists(storage, LAYOUT)
    for one in known:
        assert reader.find(stored(*one).name) is not None
    assert (reader.find(stored(*other).name) is not None) == (other in known)


def test_many_segments_cost_one_list_and_a_writer_that_stops_lists_the_rest(storage: MemoryStorage, plain: Any) -> None:
    area = Repository.create(storage, now=NOW).source("shop")
    for number in range(LISTED_TOGETHER + 3):
        area.wal.put_segment(Segment(1, number).name, bytes(100), plain)
    assert len(listed(storage)) == 1
    area.wal.write_list()
    area.wal.write_list()
    assert len(listed(storage)) == 2
    for stat in storage.list(LAYOUT.wal):
        found = area.wal.known_lists().find(stat.name)
        assert found is not None
        assert found.stored_bytes == stat.size_bytes


def test_a_tail_is_never_listed_and_partials_and_histories_are(storage: MemoryStorage, plain: Any) -> None:
    area, segment = Repository.create(storage, now=NOW).source("shop"), Segment(1, 8)
    area.wal.put_tail(segment, segment.start + 10, b"w" * 10, plain)
    area.wal.put_partial(f"{segment.name}.partial", b"w" * 20, plain)
    area.wal.put_history("00000002.history", b"1\t0/8000014\tno reason\n", plain)
    area.wal.write_list()
    known = area.wal.known_lists()
    assert known.find(LAYOUT.tail(segment, segment.start.value + 10)) is None
    assert known.find(LAYOUT.partial(segment.name)) is not None
    assert known.find(LAYOUT.history(2)) is not None
    assert known.find(LAYOUT.history(1)) is None


def test_what_was_counted_or_opened_wins_over_what_was_only_read_back(storage: MemoryStorage) -> None:
    lists = WalLists(storage, LAYOUT)
    lists.write([stored(1, 5, "b" * 64)], How.READ)
    assert [found.how for found in [WalLists(storage, LAYOUT).find(stored(1, 5).name)] if found] == [How.READ]
    lists.write([stored(1, 5, "a" * 64)], How.OPENED)
    lists.write([stored(1, 5, "c" * 64)], How.READ)
    found = WalLists(storage, LAYOUT).find(stored(1, 5).name)
    assert found is not None
    assert (found.how, found.sha256) == (How.OPENED, "a" * 64)


@pytest.mark.parametrize("wrong", [b"{}", b"no document", None])
def test_a_list_that_cannot_be_read_makes_no_sound_segment_look_damaged(
    storage: MemoryStorage, wrong: bytes | None
) -> None:
    WalLists(storage, LAYOUT).write([stored(1, 5)], How.WRITTEN)
    (name,) = listed(storage)
    data = wrong if wrong is not None else documents.encode({"how": "guessed", "objects": [["x"]]}, name=name)
    storage.delete(name)
    storage.put(name, [data])
    lists = WalLists(storage, LAYOUT)
    assert lists.find(stored(1, 5).name) is None
    lists.refuse_other(stored(1, 5).name, 7, "f" * 64)


def test_a_storage_that_takes_no_list_keeps_no_segment_from_being_stored(storage: MemoryStorage, plain: Any) -> None:
    class TakesNoLists(Wrapper):
        refuses = True

        def put(self, name: str, chunks: Any) -> Any:
            if self.refuses and name.startswith(LAYOUT.wal_lists):
                raise StorageDenied(name)
            return super().put(name, chunks)

    refusing = TakesNoLists(storage)
    area = Repository.create(refusing, now=NOW).source("shop")
    names = [Segment(1, number).name for number in range(LISTED_TOGETHER + 1)]
    assert {area.wal.put_segment(name, bytes(10), plain) for name in names} == {"stored"}
    assert listed(storage) == []
    refusing.refuses = False
    area.wal.write_list()
    assert all(area.wal.known_lists().find(LAYOUT.segment(name)) for name in names)


def test_a_backup_reads_back_only_what_is_not_listed_and_passes_over_what_is_gone(
    storage: MemoryStorage, plain: Any
) -> None:
    got: list[str] = []

    class Heard(Wrapper):
        def get(self, name: str, offset: int = 0, length: int | None = None) -> Any:
            got.append(name)
            return super().get(name, offset, length)

        def put(self, name: str, chunks: Any) -> Any:
            content: list[Bytes] = list(chunks)
            return super().put(name, content)

    area = Repository.create(Heard(storage), now=NOW).source("shop")
    names = [Segment(1, number).name for number in range(4)]
    area.wal.put_segment(names[0], b"listed", plain)
    area.wal.write_list()
    for name in names[1:3]:
        area.wal.put_segment(name, b"not listed", plain)
    got.clear()
    area.wal.list_unlisted(names)
    # The last one was never stored.
    assert [name for name in got if name.startswith(LAYOUT.wal)] == [LAYOUT.segment(name) for name in names[1:]]
    assert [area.wal.known_lists().find(LAYOUT.segment(name)) is not None for name in names] == [True] * 3 + [False]
    area.wal.list_unlisted(names[:3])
    assert len(listed(storage)) == 2


def test_a_name_tells_what_a_list_spans() -> None:
    first, last = Segment(1, 4).name, Segment(1, 9).name
    assert spans(f"{LAYOUT.wal_lists}00000001/{first}-{last}-0123abcd.json") == (first, last)
    assert spans(f"{LAYOUT.wal_lists}00000002/history-0123abcd.json") is None
    assert spans(LAYOUT.segment(first)) is None
