"""Packing files into bundles: every byte once, no bundle too large, and work that can be shared out."""

from __future__ import annotations

from array import array
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from seawall.backup.load import Part, Pieces, WholeFiles, pack
from seawall.codec import BUNDLE_BYTES, FRAME_BYTES
from seawall.postgres.scan import CopyEntry

MIB = 1024 * 1024
SIZES = st.one_of(
    st.integers(0, 3 * 8192),
    st.integers(0, 40 * MIB),
    st.sampled_from([4 * MIB, 64 * MIB, 64 * MIB - 1, 64 * MIB + 1, 1024 * MIB]),
)


def files_of(sizes: list[int], *, relations: bool = True) -> list[CopyEntry]:
    return [
        CopyEntry("/data", f"base/1/{n:06d}", "file", 0o600, size, is_relation=relations and n % 3 != 0)
        for n, size in enumerate(sizes)
    ]


def loads_of(sizes: list[int], workers: int = 2) -> list[tuple[Part, ...]]:
    files = files_of(sizes)
    return [tuple(load) for load in pack(WholeFiles(files, array("Q", range(len(files)))), workers)]


@given(st.lists(SIZES, max_size=60), st.integers(1, 16))
def test_every_byte_of_every_file_is_in_exactly_one_part(sizes: list[int], workers: int) -> None:
    covered: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for load in loads_of(sizes, workers):
        for part in load:
            assert part.length > 0
            covered[part.entry.path].append((part.offset, part.length))
    for file in files_of(sizes):
        position = 0
        for offset, length in sorted(covered.pop(file.path, [])):
            assert offset == position
            position += length
        assert position == file.size
    assert not covered


@given(st.lists(SIZES, max_size=60), st.integers(1, 16))
def test_no_load_is_empty_or_larger_than_a_bundle_and_the_largest_come_first(sizes: list[int], workers: int) -> None:
    lengths = [sum(part.length for part in load) for load in loads_of(sizes, workers)]
    assert all(0 < length <= BUNDLE_BYTES for length in lengths)
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(SIZES, max_size=60), st.integers(1, 16))
def test_a_file_is_cut_only_where_a_frame_ends_so_that_no_page_is_cut(sizes: list[int], workers: int) -> None:
    for load in loads_of(sizes, workers):
        for part in load:
            assert part.offset % FRAME_BYTES == 0


@given(st.lists(st.integers(1, 3 * 8192), max_size=60))
def test_relation_files_come_before_others_in_a_load(sizes: list[int]) -> None:
    for load in loads_of(sizes):
        kinds = [part.entry.is_relation for part in load]
        assert kinds == sorted(kinds, reverse=True)


def test_files_without_bytes_need_no_part() -> None:
    assert loads_of([0, 0, 0]) == []


def test_a_small_cluster_is_shared_out_to_all_workers() -> None:
    assert len(loads_of([8 * MIB] * 8, workers=4)) >= 4


def test_a_hundred_thousand_small_files_stay_within_the_index_of_a_bundle() -> None:
    loads = loads_of([100] * 100_000)
    assert max(len(load) for load in loads) <= 2000
    assert sum(len(load) for load in loads) == 100_000


def test_pieces_come_in_the_order_of_their_files_whatever_order_they_were_found_in() -> None:
    entries = [CopyEntry("/data", f"base/1/{n}", "file", 0o600, 100) for n in range(3)]
    pieces = Pieces(entries)
    for number, offset, length in ((2, 0, 100), (0, 50, 10), (1, 0, 1), (0, 0, 20)):
        pieces.add(number, offset, length)
    pieces.sort()
    expected = [Part(entries[0], 0, 20), Part(entries[0], 50, 10), Part(entries[1], 0, 1), Part(entries[2], 0, 100)]
    assert list(pieces) == [pieces[n] for n in range(4)] == pieces[0:4] == expected
    assert list(Pieces(entries)) == []


def test_nothing_to_store_is_sorted_too() -> None:
    pieces = Pieces([])
    pieces.sort()
    assert len(pieces) == 0
