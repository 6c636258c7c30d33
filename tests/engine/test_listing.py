"""What a scan found comes back as it was, sorted by path, however it was found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.postgres import listing as listing_module
from seawall.postgres.listing import CopyEntry, Listing

NAMES = st.text(st.sampled_from("a.-/z\udce9\u00e9"), min_size=1, max_size=8)
COUNTS = st.integers(0, 2**60)
ENTRIES = st.lists(
    st.builds(
        CopyEntry,
        st.just("/data"),
        NAMES,
        st.sampled_from(["file", "directory", "link"]),
        st.integers(0, 0o777),
        COUNTS,
        st.floats(0, 2e9),
        st.sampled_from(["", "/srv/space"]),
        is_relation=st.booleans(),
        first_block=COUNTS,
        mtime_ns=COUNTS,
        ctime_ns=COUNTS,
        inode=st.integers(0, 2**64 - 1),
    ),
    unique_by=lambda entry: entry.path,
    max_size=12,
)


@pytest.mark.parametrize("at_once", [1, 3, 50_000])
@given(found=ENTRIES)
def test_entries_come_back_sorted_by_path_one_by_one_and_all(at_once: int, found: list[CopyEntry]) -> None:
    with mock.patch.object(listing_module, "_SORTED_AT_ONCE", at_once):
        listing = Listing(iter(found))
    assert [found[place] for place in listing.places] == list(listing)
    expected = sorted(found, key=lambda entry: entry.path)
    assert list(listing) == list(listing) == [listing[number] for number in range(len(found))] == expected
    assert list(listing[1:3]) == expected[1:3]
    assert (len(listing), listing.total_bytes) == (len(found), sum(entry.size for entry in found))


def test_several_threads_read_a_listing_at_once() -> None:
    found = [CopyEntry("/data", f"base/1/{n:05}", "file", 0o600, n) for n in range(500)]
    listing = Listing(found)
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: list(listing), range(4)):
            assert read == found
