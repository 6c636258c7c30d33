"""What an incremental BASE_BACKUP wants and sends, without a server: the manifest, the header, the runs."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import ClusterError
from seawall.postgres.incremental import (
    Header,
    Prior,
    PriorFile,
    backup_manifest,
    batches,
    runs_to_send,
    stretches,
    whole_path,
)
from seawall.wal import Lsn

_BLOCK = 8192


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, count: int) -> bytes:
        taken, self.content = self.content[:count], self.content[count:]
        return taken


def _member(blocks: tuple[int, ...], truncation: int, magic: int = 0xD3AE1F0D) -> bytes:
    head = struct.pack("=III", magic, len(blocks), truncation) + struct.pack(f"={len(blocks)}I", *blocks)
    padding = bytes(-len(head) % _BLOCK) if blocks else b""
    return head + padding + b"".join(bytes([block % 251]) * _BLOCK for block in blocks)


@given(st.sets(st.integers(0, 5000), max_size=2200).map(sorted).map(tuple), st.integers(0, 6000))
def test_a_header_is_read_up_to_the_first_block(blocks: tuple[int, ...], truncation: int) -> None:
    member = _member(blocks, truncation)
    reader = _Reader(member)
    header = Header.read("f", len(member), reader.read, _BLOCK)
    assert header == Header(blocks, truncation)
    assert len(reader.content) == len(blocks) * _BLOCK
    assert header.final_blocks(131072) == max(truncation, *(b + 1 for b in blocks), 0)


@pytest.mark.parametrize(
    "member",
    [
        b"",
        _member((1, 2), 5)[:-1],
        _member((1, 2), 5, magic=7),
        _member((2, 1), 5),
        _member((1, 1), 5),
        struct.pack("=III", 0xD3AE1F0D, 0xFFFFFFFF, 1),
        _member((), 1) + b"\0",
    ],
)
def test_a_member_that_makes_no_sense_is_refused(member: bytes) -> None:
    with pytest.raises(ClusterError, match="makes no sense"):
        Header.read("f", len(member), _Reader(member).read, _BLOCK)


def test_a_truncation_beyond_the_largest_file_is_cut() -> None:
    assert Header((), 200000).final_blocks(131072) == 131072


@st.composite
def _histories(draw: st.DrawFn) -> tuple[bytes, bytes, Header, int | None, int]:
    """A file before and now, with a header that a server could send for the difference."""
    before = draw(st.lists(st.integers(1, 3), max_size=24))
    shortest = draw(st.integers(0, len(before)))
    now = before[:shortest] + draw(st.lists(st.sampled_from([0, 4, 5]), max_size=24))
    named = {block for block in range(shortest, len(now)) if now[block]}  # what WAL initialised
    for block in draw(st.sets(st.integers(0, max(shortest - 1, 0)))):
        if block < shortest:
            now[block] = 6
            named.add(block)
    limit = shortest if shortest < len(before) else None
    run = draw(st.sampled_from([_BLOCK, 2 * _BLOCK, 4 * _BLOCK]))
    old, new = (b"".join(bytes([page]) * _BLOCK for page in pages) for pages in (before, now))
    return old, new, Header(tuple(sorted(named)), len(now)), limit, run


@given(_histories())
def test_the_priors_runs_and_those_to_send_are_the_file(history: tuple[bytes, bytes, Header, int | None, int]) -> None:
    old, new, header, limit, run = history
    prior = PriorFile(len(old), run)
    wanted = runs_to_send(header, prior, size_bytes=len(new), limit_block=limit, block_bytes=_BLOCK)
    for number in range(-(-len(new) // run)):
        content = new[number * run : (number + 1) * run]
        if number not in wanted.numbers:
            assert old[number * run : (number + 1) * run] == content
        elif number not in wanted.lacking:
            blocks = range(number * run // _BLOCK, (number * run + len(content)) // _BLOCK)
            assert all(block in header.blocks for block in blocks)
    assert list(wanted.numbers) == sorted(wanted.numbers)
    assert wanted.lacking <= set(wanted.numbers)


def test_the_manifest_is_what_a_server_parses() -> None:
    files = {
        "base/5/16384": PriorFile(_BLOCK, _BLOCK),
        "base/5/16384_vm": PriorFile(_BLOCK, _BLOCK),
        "base/5/16384_fsm": PriorFile(3 * _BLOCK, _BLOCK),
        "base/5/16385": PriorFile(_BLOCK + 1, _BLOCK),
        "pg_xact/0000": PriorFile(_BLOCK, _BLOCK),
        "pg_tblspc/9/PG_18_1/5/7.2": PriorFile(2 * _BLOCK, 2 * _BLOCK),
    }
    text = b"".join(backup_manifest(Prior(1 << 63, 3, Lsn(40), Lsn(50), files), _BLOCK))
    document = json.loads(text)
    assert document["PostgreSQL-Backup-Manifest-Version"] == 2
    assert document["System-Identifier"] == 1 << 63
    assert [file["Path"] for file in document["Files"]] == ["base/5/16384", "pg_tblspc/9/PG_18_1/5/7.2"]
    assert document["WAL-Ranges"] == [{"Timeline": 3, "Start-LSN": "0/28", "End-LSN": "0/32"}]
    last = text.rindex(b"\n", 0, -1) + 1
    assert document["Manifest-Checksum"] == hashlib.sha256(text[:last]).hexdigest()


def test_a_manifest_of_many_files_comes_in_pieces() -> None:
    files = {f"base/5/{n}": PriorFile(_BLOCK, _BLOCK) for n in range(16384, 36384)}
    pieces = list(backup_manifest(Prior(1, 1, Lsn(1), Lsn(2), files), _BLOCK))
    assert max(map(len, pieces)) < 70_000
    assert len(json.loads(b"".join(pieces))["Files"]) == 20_000


def test_only_relations_stand_behind_incremental_members() -> None:
    assert whole_path("base/5/INCREMENTAL.16384.1") == "base/5/16384.1"
    assert whole_path("pg_tblspc/9/PG_18_1/5/INCREMENTAL.7") == "pg_tblspc/9/PG_18_1/5/7"
    for other in ("INCREMENTAL.1", "base/5/16384", "base/5/INCREMENTAL.notes", "base/5/INCREMENTAL.16384_vm"):
        assert whole_path(other) is None


@given(st.sets(st.integers(0, 300)).map(sorted).map(tuple), st.integers(1, 40))
def test_batches_and_stretches_lose_nothing(numbers: tuple[int, ...], most: int) -> None:
    found = list(batches(numbers, most))
    assert all(0 < len(batch) <= most for batch in found)
    assert tuple(n for batch in found for n in batch) == numbers
    flat = [first + index for first, count in stretches(numbers) for index in range(count)]
    assert tuple(flat) == numbers
