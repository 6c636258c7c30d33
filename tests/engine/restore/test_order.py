"""Parts of files are laid down in one go wherever they lie, each from the right object, and little is read twice."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.codec import FRAME_BYTES, Entry
from seawall.model import Extent, FileEntry
from seawall.postgres.binaries import Account
from seawall.repository.wanted import Part, Wanted, extents_of
from seawall.restore.order import led, ordered, woven
from seawall.restore.patches import fetched
from seawall.restore.tree import Tree
from seawall.restore.writing import FileWriter
from seawall.storage import direct

HASH = "00" * 32
RUN = 16384


class Objects:
    """Objects of bytes, and what reads extents of them in pieces."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.read: list[tuple[str, list[int]]] = []

    def store(self, name: str, data: bytes) -> Extent:
        before = self.content.get(name, b"")
        self.content[name] = before + data
        return Extent(name, len(before), len(data), HASH, RUN)

    def pieces(self, name: str, entries: Sequence[Entry]) -> Iterator[tuple[str, int, memoryview]]:
        self.read.append((name, [entry.plain_offset for entry in entries]))
        for entry in sorted(entries, key=lambda entry: entry.plain_offset):
            middle = entry.length // 2
            for begin, end in ((0, middle), (middle, entry.length)):
                at = entry.plain_offset
                if end > begin:
                    yield entry.path, entry.file_offset + begin, memoryview(self.content[name])[at + begin : at + end]


@given(
    files=st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=12), max_size=5),
    chance=st.randoms(use_true_random=False),
    in_order=st.booleans(),
    room=st.integers(1, 20),
)
def test_files_come_out_whole_however_their_parts_are_spread(
    files: list[list[tuple[str, int]]], chance: random.Random, in_order: bool, room: int
) -> None:
    objects, expected, extents = Objects(), dict[str, bytes](), dict[tuple[int, int], Extent]()
    parts = [(f, n) for f, file in enumerate(files) for n in range(len(file))]
    for f, n in parts if in_order else chance.sample(parts, len(parts)):
        name, length = files[f][n]
        extents[f, n] = objects.store(name, chance.randbytes(length))
    wanted = Wanted()
    for f, file in enumerate(files):
        found = tuple(extents[f, n] for n in range(len(file)))
        entry = FileEntry(f"f{f}", "file", 0o600, extents=found)
        expected[entry.path] = b"".join(objects.content[e.object][e.offset : e.offset + e.length] for e in found)
        number = wanted.file(entry)
        for lead, window in led(extents_of(entry)):
            wanted.add(number, window, lead)
    laid = {path: bytearray(len(data)) for path, data in expected.items()}
    for name in (name for run in wanted.runs(2) for name in run):
        order = ordered(wanted.parts(name), name)
        own = objects.pieces(name, [part.entry for part in order if part.object == name])
        others = fetched([part for part in order if part.object != name], objects.pieces, room)
        for path, offset, piece in woven(order, name, own, others):
            laid[path][offset : offset + len(piece)] = piece
    assert laid == expected


def test_scattered_parts_follow_the_object_that_leads_their_file() -> None:
    parts = [("full", 100), ("late", 16), ("full", 50), ("early", 16), ("full", 70)]
    offsets = accumulate((length for _, length in parts), initial=0)
    extents = [(at, Extent(name, at, length, HASH, RUN)) for at, (name, length) in zip(offsets, parts, strict=False)]
    [(lead, window)] = led(extents)
    assert (lead, window) == ("full", extents)


def test_parts_with_a_gap_between_them_are_not_laid_down_together() -> None:
    extents = [(0, Extent("a", 0, 10, HASH, RUN)), (20, Extent("b", 0, 10, HASH, RUN))]
    assert list(led(extents)) == [("a", extents[:1]), ("b", extents[1:])]


def test_an_object_leads_on_while_it_holds_anything_and_then_another_does() -> None:
    mib = 1024 * 1024
    names = ["full", "full", "late", "full", "late", "late", "late", "late"]
    extents = [(n * mib, Extent(name, n * mib, mib, HASH, RUN)) for n, name in enumerate(names)]
    assert [(lead, len(window)) for lead, window in led(extents)] == [
        ("full", 2),
        ("full", 2),
        ("late", 2),
        ("late", 2),
    ]


def test_a_frame_is_opened_once_for_all_parts_that_follow() -> None:
    objects = Objects()
    extents = [objects.store("late", bytes([n]) * (FRAME_BYTES // 4)) for n in range(6)]
    parts = [Part(e.object, Entry("f", 0, e.offset, e.length, e.blake3, e.run_bytes)) for e in extents]
    found = [bytes(piece) for piece in fetched(parts, objects.pieces, FRAME_BYTES // 2)]
    assert found == [bytes([n]) * (FRAME_BYTES // 4) for n in range(6)]
    quarter = FRAME_BYTES // 4
    assert objects.read == [("late", [n * quarter for n in range(4)]), ("late", [4 * quarter, 5 * quarter])]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, {}, Account(os.geteuid(), os.getegid(), "me", Path("/")))


def test_neighbouring_pieces_become_one_write(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    data = random.Random(1).randbytes(40 * 8192 + 5)
    (tree.root / "f").touch()
    (tree.root / "g").touch()
    with closing(FileWriter(tree, counted.append)) as writer:
        for at in range(0, len(data), 8192):
            writer.write("f", at, memoryview(data)[at : at + 8192], 1.5)
        writer.write("g", 0, memoryview(b"g"), 2.5)
        writer.settle()
    assert counted == [len(data), 1]
    assert ((tree.root / "f").read_bytes(), (tree.root / "g").read_bytes()) == (data, b"g")
    assert [(tree.root / name).stat().st_mtime for name in "fg"] == [1.5, 2.5]


def test_small_files_are_closed_while_a_large_one_is_still_being_written(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, written = threading.Event(), direct._written

    def slow(*more: Any) -> None:
        assert goes_on.wait(60)
        written(*more)

    monkeypatch.setattr(direct, "_written", slow)
    for name in ("large", *map(str, range(50))):
        (tree.root / name).touch()
    with closing(FileWriter(tree, lambda _: None)) as writer:
        writer.write("large", 0, memoryview(bytes(65536)), 1.5)
        for number in range(50):
            writer.write(str(number), 0, memoryview(b"small"), 1.5)
        opened = [os.path.realpath(place) for place in Path("/proc/self/fd").iterdir()]
        goes_on.set()
        writer.settle()
    assert sum(place.startswith(str(tree.root)) for place in opened) <= 3
    assert (tree.root / "large").read_bytes() == bytes(65536)


@given(
    lengths=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=4), start=st.integers(0, 9000), gap=st.booleans()
)
def test_pieces_lie_where_they_belong_whatever_their_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], start: int, gap: bool
) -> None:
    root = tmp_path_factory.mktemp("tree")
    expected = bytearray(start)
    (root / "f").touch()
    tree = Tree(root, {}, Account(os.geteuid(), os.getegid(), "me", Path("/")))
    with closing(FileWriter(tree, lambda _: None)) as writer:
        for number, length in enumerate(lengths):
            if gap:
                expected += bytes(4096 - number)
            piece = bytes([number + 1]) * length
            writer.write("f", len(expected), memoryview(piece), 1.5)
            expected += piece
        writer.settle()
    assert (root / "f").read_bytes() == expected


def test_a_file_that_cannot_be_written_is_heard_of_at_the_end(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "no space left")

    (tree.root / "f").touch()
    with closing(FileWriter(tree, lambda _: None)) as writer:
        monkeypatch.setattr("seawall.storage.direct.os.pwrite", failing)
        writer.write("f", 0, memoryview(bytes(65536)), 1.5)
        with pytest.raises(OSError, match="no space left"):
            writer.settle()
