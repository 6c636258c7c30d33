"""What is wanted of each object comes back as it was noted, whatever the paths are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from seawall.codec import Entry
from seawall.model import Extent, FileEntry
from seawall.repository.wanted import Wanted

HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
EXTENTS = st.builds(
    Extent,
    st.sampled_from(["sources/a/1", "sources/a/2", "sources/b/1"]),
    st.integers(0, 2**63),
    st.integers(0, 2**40),
    HASHES,
    st.sampled_from([8192, 16384, 32768]),
)
FILES = st.lists(
    st.builds(
        FileEntry,
        path=st.text(min_size=1),
        kind=st.just("file"),
        mode=st.just(0o600),
        modified_at=st.floats(0, 2e9),
        extents=st.lists(EXTENTS, max_size=5).map(tuple),
    ),
    max_size=20,
    unique_by=lambda entry: entry.path,
)


@given(files=FILES)
def test_every_extent_comes_back_once_under_its_object_with_its_path_and_offset(files: list[FileEntry]) -> None:
    wanted = Wanted()
    expected: dict[str, list[Entry]] = {}
    for entry in files:
        wanted.whole(entry)
        offset = 0
        for extent in entry.extents:
            row = Entry(entry.path, offset, extent.offset, extent.length, extent.blake3, extent.run_bytes)
            expected.setdefault(extent.object, []).append(row)
            offset += extent.length
    assert {name: wanted.entries(name) for name in wanted.objects()} == expected


@given(files=FILES)
def test_times_are_those_of_the_files_that_have_a_part_in_the_object(files: list[FileEntry]) -> None:
    wanted = Wanted()
    for entry in files:
        wanted.whole(entry)
    for name in wanted.objects():
        expected = {e.path: e.modified_at for e in files if any(extent.object == name for extent in e.extents)}
        assert wanted.modified_at(name) == expected


def test_objects_come_with_most_bytes_first_and_an_unknown_one_has_nothing() -> None:
    wanted = Wanted()
    small = Extent("sources/a/1", 0, 10, "00" * 32, 8192)
    large = Extent("sources/a/2", 0, 20, "00" * 32, 8192)
    wanted.whole(FileEntry("one", "file", 0o600, extents=(small, large)))
    assert wanted.objects() == ["sources/a/2", "sources/a/1"]
    assert wanted.entries("sources/a/3") == []


def test_a_name_that_is_no_utf_8_comes_back_byte_for_byte() -> None:
    wanted = Wanted()
    path = b"caf\xe9".decode("utf-8", "surrogateescape")
    wanted.whole(FileEntry(path, "file", 0o600, extents=(Extent("sources/a/1", 0, 1, "00" * 32, 8192),)))
    assert [entry.path for entry in wanted.entries("sources/a/1")] == [path]
