"""Hashes by runs: the same however the bytes arrive, and a part's hash follows from the digests alone."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.codec.runs import DIGEST_BYTES, RunHasher, checked_run_bytes, combined, digests_of, run_bytes

MIB = 1024 * 1024
runs = st.sampled_from([4096, 8192, 16384])
sizes = st.one_of(st.integers(0, 100_000), st.sampled_from([4096, 8192, 16384, 32768, 32767, 32769]))


def content(size: int) -> bytes:
    return hashlib.shake_128(size.to_bytes(4)).digest(size)


@given(size=sizes, run=runs, cuts=st.lists(st.integers(0, 100_000), max_size=6))
@settings(deadline=None)
def test_any_split_gives_the_same_digests(size: int, run: int, cuts: list[int]) -> None:
    data = content(size)
    hasher = RunHasher(run)
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    for begin, end in itertools.pairwise(edges):
        hasher.update(memoryview(data)[begin:end])
        assert hasher.hexdigest() == combined(digests_of(data[:end], run))
    assert hasher.digests() == digests_of(data, run)
    assert hasher.hexdigest() == combined(digests_of(data, run))


@given(size=st.integers(1, 200_000), run=runs, first=st.integers(0, 60), count=st.integers(1, 60))
@settings(deadline=None)
def test_the_hash_of_whole_runs_follows_from_their_digests(size: int, run: int, first: int, count: int) -> None:
    data = content(size)
    first = first % -(-size // run)
    there = RunHasher(run)
    there.update(data[first * run : (first + count) * run])
    digests = digests_of(data, run)
    assert there.hexdigest() == combined(digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES])


def test_a_hash_is_made_as_the_description_of_the_format_says() -> None:
    data = content(20_000)
    digests = [blake3(part).digest()[:16] for part in (data[:8192], data[8192:16384], data[16384:])]
    hasher = RunHasher(8192)
    hasher.update(data)
    assert hasher.digests() == b"".join(digests)
    assert hasher.hexdigest() == blake3(b"".join(digests)).hexdigest()


def test_bytes_that_trade_places_or_runs_change_the_hash() -> None:
    a, b = content(8192), content(8191) + b"!"
    hashes = {combined(digests_of(data, run)) for data in (a + b, b + a, a + a) for run in (4096, 8192, 16384)}
    assert len(hashes) == 9


@pytest.mark.parametrize(
    ("file_bytes", "expected"),
    [(0, 8192), (MIB - 1, 8192), (MIB, 16384), (64 * MIB - 1, 16384), (64 * MIB, 16384), (1 << 40, 16384)],
)
def test_the_larger_a_file_the_longer_its_runs(file_bytes: int, expected: int) -> None:
    assert run_bytes(file_bytes) == expected
    assert checked_run_bytes(expected) == expected


@pytest.mark.parametrize("value", [0, -8192, 1, 2048, 8191, 12288, 2 * MIB, 8192.0, "8192", True, None])
def test_no_reader_accepts_runs_of_odd_length(value: object) -> None:
    with pytest.raises(ValueError, match="no length of a run"):
        checked_run_bytes(value)
