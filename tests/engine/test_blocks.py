"""The block map as an object: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.codec.runs import DIGEST_BYTES
from seawall.errors import Damaged, FormatTooNew
from seawall.repository import blocks
from seawall.repository.blocks import FileBlocks

LABEL = "20261123T020000Z-full"
NUMBERS = st.integers(0, 2**63 - 1)
FILES = st.builds(
    FileBlocks,
    path=st.text(st.characters(exclude_characters="\n\0"), min_size=1, max_size=30),
    size=NUMBERS,
    mtime_ns=st.integers(-(2**62), 2**63 - 1),
    ctime_ns=NUMBERS,
    inode=st.integers(0, 2**64 - 1),
    run_bytes=st.sampled_from([8192, 16384, 32768]),
    digests=st.integers(0, 5).flatmap(lambda n: st.binary(min_size=n * DIGEST_BYTES, max_size=n * DIGEST_BYTES)),
)


def read(data: bytes, piece: int = 1 << 20) -> blocks.Reader:
    return blocks.Reader((data[at : at + piece] for at in range(0, len(data), piece)), name="blocks")


def written(files: Sequence[FileBlocks]) -> bytes:
    return b"".join(blocks.encode(LABEL, 12345, files))


@given(st.lists(FILES, max_size=8, unique_by=lambda file: file.path), st.integers(1, 200))
def test_a_map_is_read_back_as_it_was_written(files: list[FileBlocks], piece: int) -> None:
    files.sort(key=lambda file: file.path)
    reader = read(written(files), piece)
    assert (reader.label, reader.listed_at_ns) == (LABEL, 12345)
    assert list(reader.files()) == files


ONE = FileBlocks("base/1/1", 8192, 1, 2, 3, 8192, bytes(16))
TWO = FileBlocks("base/1/2", 8192, 1, 2, 3, 8192, bytes(16))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]\n",
        b'{"manifest":1}\n',
        b'{"blocks":1}\n',
        written([TWO, ONE]),
        written([ONE, ONE]),
        written([ONE])[: written([ONE]).rindex(b'{"end"')],
        written([ONE]).replace(b'"files":1', b'"files":2'),
        written([ONE]) + b"{}\n",
        written([ONE]).replace(b"AAAA", b"A*AA"),
        written([ONE]).replace(b"AAAAAA==", b"AA=="),
        written([ONE]).replace(b"3,8192", b"3,8000"),
        written([ONE]).replace(b'"base/1/1",', b""),
    ],
    ids=[
        "nothing", "no object", "another document", "no label", "not in order", "twice", "no end", "another count",
        "more after the end", "no Base64", "half a digest", "no length of a run", "a value too few",
    ],
)  # fmt: skip
def test_whatever_is_no_map_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        list(read(data).files())


def test_a_later_format_is_refused_as_such() -> None:
    with pytest.raises(FormatTooNew):
        read(written([]).replace(b'"blocks":1', b'"blocks":2'))
