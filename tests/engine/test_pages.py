"""Page checksums: the vectorised computation against the algorithm written out one step at a time."""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from threading import Lock
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.backup.direct import _Pages
from seawall.postgres.pages import BLOCK_BYTES, FRAME_BYTES, PageChecker, page_lsn, recheck
from seawall.postgres.scan import CopyEntry
from seawall.wal import Lsn

OFFSETS = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
]  # fmt: skip


def step(checksum: int, value: int) -> int:
    mixed = checksum ^ value
    return (mixed * 16777619 ^ mixed >> 17) & 0xFFFFFFFF


def checksum(page: bytes, block: int) -> int:
    """`pg_checksum_page` of checksum_impl.h, in the order of its source."""
    words = list(struct.unpack(f"=2I{len(page) // 4 - 2}I", page[:8] + b"\0\0" + page[10:]))
    sums = list(OFFSETS)
    for row in range(len(words) // 32):
        for lane in range(32):
            sums[lane] = step(sums[lane], words[row * 32 + lane])
    folded = block
    for value in sums:
        folded ^= step(step(value, 0), 0)
    return folded % 65535 + 1


def page(seed: bytes, block: int, lsn: int = 0x1000, size: int = BLOCK_BYTES) -> bytes:
    """A page with the right checksum: LSN, checksum, flags, lower, upper (never zero), then noise."""
    body = struct.pack("=IIHHHH", lsn >> 32, lsn & 0xFFFFFFFF, 0, 4, 24, 8192) + seed * size
    whole = body[:size]
    return whole[:8] + struct.pack("=H", checksum(whole, block)) + whole[10:]


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=3), st.integers(0, 2**32 - 4))
@settings(max_examples=25, deadline=None)
def test_right_checksums_are_right_at_every_block_number(seeds, first):
    data = b"".join(page(seed, first + n) for n, seed in enumerate(seeds))
    assert PageChecker().check(data, first) == []


@given(st.integers(0, BLOCK_BYTES * 8 - 1))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_of_a_page_is_found_and_its_block_named(bit):
    data = bytearray(page(b"a", 70) + page(b"bc", 71) + page(b"def", 72))
    data[BLOCK_BYTES + bit // 8] ^= 1 << bit % 8
    assert PageChecker().check(data, 70) == [71]


def test_a_page_in_the_wrong_place_is_found():
    data = page(b"a", 5) + page(b"b", 6)
    assert PageChecker().check(data[BLOCK_BYTES:] + data[:BLOCK_BYTES], 5) == [5, 6]


def test_a_page_never_initialised_is_right_only_if_wholly_zero():
    checker, zero = PageChecker(), bytes(BLOCK_BYTES)
    assert checker.check(zero * 3, 9) == []
    assert checker.check(zero + zero[:-1] + b"\1" + zero, 9) == [10]


def test_an_uninitialised_header_is_wrong_even_with_the_right_checksum():
    draft = bytearray(page(b"x", 0))
    draft[14:16] = b"\0\0"
    draft[8:10] = struct.pack("=H", checksum(bytes(draft), 0))
    assert PageChecker().check(bytes(draft), 0) == [0]


def test_bytes_after_the_last_whole_page_are_not_judged():
    assert PageChecker().check(page(b"a", 0) + b"\xff" * 5000, 0) == []
    assert PageChecker().check(b"\xff" * 100, 0) == []


def test_more_pages_than_a_frame_holds_are_checked_in_steps():
    data = bytearray(b"".join(page(bytes([n]), n) for n in range(1, 9)))
    data[7 * BLOCK_BYTES + 100] ^= 1
    assert PageChecker(frame_bytes=3 * BLOCK_BYTES).check(data, 1) == [8]


@pytest.mark.parametrize("size", [1024, 4096, 16384, 32768])
def test_other_block_sizes_are_checked_as_well(size):
    data = bytearray(page(b"ab", 3, size=size) + page(b"cd", 4, size=size))
    checker = PageChecker(block_bytes=size)
    assert checker.check(data, 3) == []
    data[-1] ^= 1
    assert checker.check(data, 3) == [4]


def test_a_page_written_since_the_backup_began_is_left_to_wal_if_asked():
    old, new = bytearray(page(b"a", 0, lsn=0x100)), bytearray(page(b"b", 1, lsn=0x1_0000_0200))
    old[5000] ^= 1
    new[5000] ^= 1
    checker, data = PageChecker(), bytes(old + new)
    assert checker.check(data, 0) == [0, 1]
    assert checker.check(data, 0, skip_after=Lsn(0x1_0000_0200)) == [0]
    assert checker.check(data, 0, skip_after=Lsn(0x1_0000_0201)) == [0, 1]
    assert page_lsn(memoryview(data)[BLOCK_BYTES:]) == Lsn(0x1_0000_0200)


def test_a_view_of_a_reused_buffer_is_left_as_it_was():
    buffer = bytearray(page(b"q", 0))
    before = bytes(buffer)
    PageChecker().check(memoryview(buffer), 0)
    assert bytes(buffer) == before


def test_reading_again_tells_corruption_from_a_write_in_progress(tmp_path):
    bad = bytearray(page(b"a", 131072 + 1))
    bad[99] ^= 1
    path = tmp_path / "16384.1"
    path.write_bytes(page(b"z", 131072) + bytes(bad))
    with path.open("r+b") as file:
        place = {"file_first_block": 131072, "pause": lambda: None}
        assert recheck(file.fileno(), 131073, bad, **place)

        def finish_writing() -> None:
            os.pwrite(file.fileno(), page(b"a", 131073), BLOCK_BYTES)

        assert not recheck(file.fileno(), 131073, bad, file_first_block=131072, pause=finish_writing)
        assert not recheck(file.fileno(), 131079, bad, **place), "the file was truncated meanwhile"


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_pages_of_many_files_are_judged_each_by_its_own_number(data):
    blocks = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
    wrong = data.draw(st.sets(st.integers(0, len(blocks) - 1)))
    pages = [page(b"%d" % block, block ^ 1 if n in wrong else block) for n, block in enumerate(blocks)]
    # Two pages to a step, so that several steps are made.
    checker = PageChecker(frame_bytes=2 * BLOCK_BYTES)
    assert checker.check_scattered(b"".join(pages) + b"behind them", blocks) == sorted(wrong)


def output_noting() -> tuple[SimpleNamespace, list[str]]:
    """What a checker tells, and the files that it wants read anew by an attempt after this one."""
    spoiled: list[str] = []
    log = SimpleNamespace(spoil=spoiled.append)
    return SimpleNamespace(bad_pages=defaultdict(list), lock=Lock(), log=log), spoiled


def test_a_bad_page_of_a_small_file_is_known_when_its_bundle_ends_and_one_written_meanwhile_is_none(tmp_path):
    contents = {"good": page(b"a", 0), "bad": page(b"b", 1), "written": page(b"c", 1), "dropped": page(b"d", 1)}
    output, spoiled = output_noting()
    judging = _Pages(BLOCK_BYTES, output)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        entry = CopyEntry(str(tmp_path), name, "file", 0o600, BLOCK_BYTES, is_relation=True)
        judging.judge(entry, -1, memoryview(content), 0)
    (tmp_path / "written").write_bytes(page(b"c", 0))
    (tmp_path / "dropped").unlink()
    assert not output.bad_pages
    judging.judge_waiting()
    assert output.bad_pages == {"bad": [0]}
    assert spoiled == ["bad", "written", "dropped"]


def test_pages_that_wait_are_judged_before_there_are_too_many(tmp_path):
    output, _ = output_noting()
    judging = _Pages(BLOCK_BYTES, output)
    bad, good = page(b"b", 7), page(b"a", 0)
    (tmp_path / "bad").write_bytes(bad)
    for number in range(FRAME_BYTES // BLOCK_BYTES + 1):
        assert not output.bad_pages
        entry = CopyEntry(str(tmp_path), "good" if number else "bad", "file", 0o600, BLOCK_BYTES, is_relation=True)
        judging.judge(entry, -1, memoryview(good if number else bad), 0)
    assert output.bad_pages == {"bad": [0]}
