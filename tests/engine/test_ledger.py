"""What a copy noted of extents and files comes back as it was, in order, as often as it is asked for."""

from __future__ import annotations

import json
import random
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.backup.changes import Times
from seawall.backup.ledger import CopiedFile, Extents, Ledger, TakenFile
from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository import blocks, manifest
from seawall.repository.blocks import FileBlocks

OBJECTS = [StoredObject(f"sources/a/backups/{n}", 10, "00" * 32, 20) for n in range(3)]
INTS = st.integers(0, 2**62)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two", "caf\udce9"]),
        st.integers(0, 2**50),
        st.builds(
            Extent,
            st.sampled_from([stored.name for stored in OBJECTS]),
            st.integers(0, 2**50),
            st.integers(1, 2**40),
            HASHES,
            st.sampled_from([8192, 32768]),
        ),
        st.binary(max_size=64),
    ),
    unique_by=lambda row: (row[0], row[1]),
)


@given(rows=ROWS, seed=st.integers(0, 9))
def test_extents_come_back_in_the_order_of_their_file_whatever_order_they_were_stored_in(
    rows: list[tuple[str, int, Extent, bytes]], seed: int
) -> None:
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    with closing(Extents()) as extents:
        for row in mixed:
            extents.add(*row)
        for path in ("one", "two", "caf\udce9", "unknown"):
            expected = sorted((offset, extent, digests) for name, offset, extent, digests in rows if name == path)
            assert [tuple(row) for row in extents.of(path)] == expected


def files() -> list[CopiedFile]:
    extents = (
        Extent(OBJECTS[0].name, 0, 8192, "11" * 32, 8192),
        Extent(OBJECTS[2].name, 0, 100, "22" * 32, 8192),
    )
    known = FileBlocks("base/1/2", 8292, 1, 2, 3, 8192, bytes(32))
    return [
        CopiedFile(FileEntry("base", "directory", 0o700), None),
        CopiedFile(FileEntry("base/1/2", "file", 0o600, 8292, 1.5, extents, bad_pages=(1,)), known),
        CopiedFile(FileEntry("pg_tblspc/5", "link", 0o777, link="/srv/space"), None),
    ]


def decoded(ledger: Ledger) -> list[CopiedFile]:
    """What manifest and block map say, put together again."""
    entries = [manifest.from_row(json.loads(row.json), ledger.objects, name="it") for row in ledger.entries()]
    known = {found.path: found for found in (blocks.from_row(json.loads(m.json), name="it") for m in ledger.maps())}
    return [CopiedFile(entry, known.get(entry.path)) for entry in entries]


def test_a_ledger_gives_every_file_again_and_again_and_knows_its_sums() -> None:
    with closing(Ledger(iter(files()), OBJECTS)) as ledger:
        assert decoded(ledger) == decoded(ledger) == files()
        assert [row.counted for row in ledger.entries()] == [0, 8292, 0]
        assert [known.counted for known in ledger.maps()] == [2]
        assert (len(ledger), ledger.plain_bytes) == (3, 8292)
        assert ledger.bad_pages == {"base/1/2": (1,)}


def test_objects_of_earlier_backups_are_named_only_if_a_file_refers_to_them() -> None:
    with closing(
        Ledger(files(), OBJECTS[1:2], [OBJECTS[0], OBJECTS[2], StoredObject("unused", 1, "00" * 32, 1)])
    ) as it:
        assert it.objects == [OBJECTS[1], OBJECTS[0], OBJECTS[2]]
        assert decoded(it) == files()


def test_what_a_host_keeps_is_what_manifest_and_block_map_say() -> None:
    with closing(Ledger(files(), OBJECTS)) as ledger:
        (line,) = ledger.lines()
        path, entry, known = line.rstrip(b"\n").split(b"\t")
        assert json.loads(path) == "base/1/2"
        assert [entry] == [row.json for row in ledger.entries() if row.counted]
        assert [known] == [row.json for row in ledger.maps()]


PATHS = st.text(st.characters(codec="utf-8") | st.sampled_from('",[]:{}\\\udce9'), min_size=1).filter(
    lambda path: "/" not in path and "\0" not in path and path not in (".", "..")
)


@given(path=PATHS, rows=ROWS, digests=st.binary(max_size=10).map(lambda one: one * 16), times=st.tuples(*[INTS] * 4))
def test_a_file_that_is_taken_over_is_said_to_be_what_it_was_under_its_new_times_and_objects(
    path: str, rows: list[tuple[str, int, Extent, bytes]], digests: bytes, times: tuple[int, int, int, int]
) -> None:
    extents = tuple(extent for _, _, extent, _ in rows)
    entry = FileEntry(path, "file", 0o600, sum(each.length for each in extents), 1.25, extents)
    was = FileBlocks(path, 1, 2, 3, 4, 8192, digests)
    index = {stored.name: number for number, stored in enumerate(OBJECTS)}
    told = manifest.encoded_row(entry, index), blocks.encoded_row(was)
    assert manifest.size_of(told[0].json) == entry.size_bytes
    assert blocks.header_of(told[1].json) == (1, 2, 3, 4, 8192)
    taken = TakenFile(path, 0o640, 7.5, Times(*times), told[0].json, told[1].json)
    own = StoredObject("own", 1, "00" * 32, 1)
    with closing(Ledger([taken], [own], OBJECTS)) as ledger:
        expected = CopiedFile(replace(entry, mode=0o640, modified_at=7.5), FileBlocks(path, *times, 8192, digests))
        assert decoded(ledger) == [expected]
        assert [row.counted for row in ledger.maps()] == [was.runs]
        assert set(ledger.objects) == {own} | {OBJECTS[index[each.object]] for each in extents}
        # Bytes and not only meaning: what is taken over again and again must not drift.
        again = {stored.name: number for number, stored in enumerate(ledger.objects)}
        assert [row.json for row in ledger.entries()] == [manifest.encoded_row(expected.entry, again).json]


def test_two_go_through_a_ledger_by_turns() -> None:
    with closing(Ledger(files(), OBJECTS)) as ledger:
        turns = list(zip(ledger.entries(), ledger.entries(), strict=True))
        assert [one for one, _ in turns] == [other for _, other in turns] == list(ledger.entries())


def test_paths_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seawall.backup.places.hash", lambda _path: 7, raising=False)
    extent = Extent(OBJECTS[0].name, 0, 8192, "11" * 32, 8192)
    with closing(Extents()) as extents:
        extents.add("one", 0, extent, b"1" * 16)
        extents.add("two", 0, extent, b"2" * 16)
        assert [row.digests for row in extents.of("two")] == [b"2" * 16]
        assert extents.of("three") == []
