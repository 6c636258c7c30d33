"""Bundles: every file's bytes come back under its own path, whole and verified."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.codec import (
    BUNDLE_BYTES,
    FRAME_BYTES,
    BundleReader,
    BundleWriter,
    DataKey,
    Entry,
    ExtentSource,
    FrameWriter,
    RangeReader,
    Scratch,
    read_extent,
    read_extents,
    read_index,
)
from seawall.codec.runs import combined, digests_of
from seawall.errors import Damaged, SeawallError, UsageError
from seawall.model import Compression
from seawall.storage.memory import MemoryStorage

KEY = DataKey("key-1", bytes(range(32)))
NAME = "shop/20261123T020000Z-full/00000001-0badcafe"
PAGE = 8192
RUN = 16384

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
codecs = st.sampled_from(list(Compression))
keys = st.sampled_from([KEY, None])
contents = st.lists(
    st.builds(
        lambda size, seed: hashlib.shake_128(bytes([seed])).digest(max(1, size // 3)) + bytes(size - size // 3),
        st.one_of(st.integers(1, 40_000), st.sampled_from([FRAME_BYTES, FRAME_BYTES - 100, 2 * FRAME_BYTES + 5])),
        st.integers(0, 255),
    ),
    max_size=6,
)


def key_for(_: str) -> DataKey:
    return KEY


def bundle(
    files: Sequence[bytes], codec: Compression = Compression.LZ4, key: DataKey | None = KEY
) -> tuple[bytes, BundleWriter]:
    writer = BundleWriter(NAME, compression=codec, key=key)
    sources = (ExtentSource(f"base/5/{n}", 0, 1 << 40, io.BytesIO(data).readinto, RUN) for n, data in enumerate(files))
    return b"".join(bytes(chunk) for chunk in writer.stream(sources)), writer


def by_runs(data: bytes) -> str:
    return combined(digests_of(data, RUN))


def ranges(stored: bytes) -> RangeReader:
    def read(offset: int, length: int) -> Iterator[bytes]:
        yield stored[offset : offset + length]

    return read


def gathered(reader: BundleReader) -> dict[str, bytes]:
    found: dict[str, bytearray] = {}
    for path, offset, part in reader:
        content = found.setdefault(path, bytearray())
        assert offset == len(content)
        content += part
    return {path: bytes(content) for path, content in found.items()}


@given(files=contents, codec=codecs, key=keys, with_manifest=st.booleans(), cut=st.integers(1000, 3_000_000))
@unhurried
def test_files_come_back_as_they_went_in(
    files: list[bytes], codec: Compression, key: DataKey | None, with_manifest: bool, cut: int
) -> None:
    stored, writer = bundle(files, codec, key)
    expected = {f"base/5/{n}": data for n, data in enumerate(files)}
    pieces = [stored[at : at + cut] for at in range(0, len(stored), cut)]
    reader = BundleReader(pieces, NAME, key_for, writer.entries if with_manifest else None)
    assert gathered(reader) == expected
    assert reader.entries == writer.entries


@given(files=contents, codec=codecs, key=keys)
@unhurried
def test_each_extent_can_be_read_alone(files: list[bytes], codec: Compression, key: DataKey | None) -> None:
    stored, writer = bundle(files, codec, key)
    index = read_index(ranges(stored), len(stored), NAME, key_for)
    assert index.entries == writer.entries
    for entry, data in zip(index.entries, files, strict=True):
        assert b"".join(read_extent(ranges(stored), index, entry)) == data


def test_finish_tells_what_a_manifest_needs() -> None:
    files = [b"a" * 100, b"b" * 5_000_000]
    stored, writer = bundle(files)
    told, extents = writer.finish("sources/shop/x")
    assert (told.name, told.stored_bytes, told.plain_bytes) == ("sources/shop/x", len(stored), 5_000_100)
    assert told.stored_sha256 == hashlib.sha256(stored).hexdigest()
    assert [(path, at, e.object, e.offset, e.length) for path, at, e in extents] == [
        ("base/5/0", 0, "sources/shop/x", 0, 100),
        ("base/5/1", 0, "sources/shop/x", 100, 5_000_000),
    ]
    assert [(e.blake3, e.run_bytes) for _, _, e in extents] == [(by_runs(data), RUN) for data in files]
    assert writer.digests == [digests_of(data, RUN) for data in files]


def test_only_wanted_extents_are_handed_out() -> None:
    stored, writer = bundle([b"a" * 100, b"b" * 5_000_000, b"c" * 100])
    wanted = [writer.entries[2], writer.entries[0]]
    assert gathered(BundleReader([stored], NAME, key_for, wanted)) == {"base/5/0": b"a" * 100, "base/5/2": b"c" * 100}
    assert gathered(BundleReader([stored], NAME, key_for, [])) == {}


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "none"])
def test_a_sparing_reader_leaves_closed_what_nobody_wants_and_proves_the_rest(key: DataKey | None) -> None:
    data = hashlib.shake_128(b"spare").digest(3 * FRAME_BYTES)
    stored, writer = bundle([data[:FRAME_BYTES], data[FRAME_BYTES : 2 * FRAME_BYTES], data[2 * FRAME_BYTES :]], key=key)
    damaged = bytearray(stored)
    damaged[len(stored) // 2] ^= 1
    first, second, third = writer.entries
    reader = BundleReader([bytes(damaged)], NAME, key_for, [first, third], sparing=True)
    assert gathered(reader) == {"base/5/0": data[:FRAME_BYTES], "base/5/2": data[2 * FRAME_BYTES :]}
    for wanted, sparing in (([second], True), ([first, third], False)):
        with pytest.raises(Damaged):
            list(BundleReader([bytes(damaged)], NAME, key_for, wanted, sparing=sparing))


def test_many_extents_are_read_together_and_their_frames_in_one_range() -> None:
    files = [hashlib.shake_128(bytes([n])).digest(FRAME_BYTES // 2 + n * RUN) for n in range(12)]
    stored, writer = bundle(files)
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> Iterator[bytes]:
        asked.append((offset, length))
        yield from ranges(stored)(offset, length)

    index = read_index(ranges(stored), len(stored), NAME, key_for)
    wanted = [writer.entries[n] for n in (11, 0, 1, 2)]
    found = {path: bytearray() for path, *_ in wanted}
    for path, _, part in read_extents(read, index, wanted):
        found[path] += part
    assert found == {f"base/5/{n}": files[n] for n in (11, 0, 1, 2)}
    assert len(asked) == 2


def test_an_extent_that_the_manifest_names_and_the_bundle_lacks_is_damage() -> None:
    stored, writer = bundle([b"a" * 100, b"b" * 100])
    other = writer.entries[1]._replace(path="base/5/9", blake3="0" * 64)
    with pytest.raises(Damaged, match="base/5/9"):
        list(BundleReader([stored], NAME, key_for, [other]))
    with pytest.raises(Damaged, match="base/5/9"):
        list(read_extent(ranges(stored), read_index(ranges(stored), len(stored), NAME, key_for), other))
    beyond = Entry("base/5/0", 0, 150, 100, writer.entries[0].blake3, RUN)
    with pytest.raises(Damaged, match="base/5/0"):
        list(BundleReader([stored], NAME, key_for, [beyond]))


def test_an_extent_may_serve_a_file_of_another_name() -> None:
    stored, writer = bundle([b"a" * 100])
    renamed = writer.entries[0]._replace(path="base/6/1", file_offset=8192)
    found = [(path, at, bytes(part)) for path, at, part in BundleReader([stored], NAME, key_for, [renamed])]
    assert found == [("base/6/1", 8192, b"a" * 100)]


def part_of(whole: Entry, data: bytes, begin: int, end: int) -> Entry:
    """What a manifest calls the part of an extent that its file still has."""
    return Entry("base/5/1", 0, whole.plain_offset + begin, end - begin, by_runs(data[begin:end]), whole.run_bytes)


@given(size=st.integers(1, 3 * FRAME_BYTES), first=st.integers(0, 400), count=st.integers(1, 400))
@unhurried
def test_a_manifest_may_want_whole_runs_of_an_extent(size: int, first: int, count: int) -> None:
    data = hashlib.shake_128(size.to_bytes(4)).digest(size)
    stored, writer = bundle([b"a" * 100, data, b"c" * 100])
    begin = first * RUN % size // RUN * RUN
    end = min(begin + count * RUN, size)
    wanted = part_of(writer.entries[1], data, begin, end)
    assert gathered(BundleReader([stored], NAME, key_for, [wanted])) == {"base/5/1": data[begin:end]}
    index = read_index(ranges(stored), len(stored), NAME, key_for)
    assert b"".join(read_extent(ranges(stored), index, wanted)) == data[begin:end]


@pytest.mark.parametrize(("begin", "end"), [(1, RUN), (0, RUN - 1), (RUN, 2 * RUN + 1), (0, 3 * RUN), (RUN, RUN)])
def test_a_part_that_cuts_a_run_or_leaves_its_extent_is_damage(begin: int, end: int) -> None:
    data = hashlib.shake_128(b"part").digest(2 * RUN + 100)
    stored, writer = bundle([data, bytes(RUN * 2)])
    index = read_index(ranges(stored), len(stored), NAME, key_for)
    wanted = part_of(writer.entries[0], data + bytes(RUN), begin, end)
    with pytest.raises(Damaged, match="does not hold"):
        list(BundleReader([stored], NAME, key_for, [wanted]))
    with pytest.raises(Damaged, match="does not hold"):
        list(read_extent(ranges(stored), index, wanted))


@pytest.mark.parametrize("change", [{"blake3": "0" * 64}, {"run_bytes": 2 * RUN}])
def test_a_part_whose_hash_is_another_ones_is_damage(change: dict[str, object]) -> None:
    data = hashlib.shake_128(b"part").digest(3 * RUN)
    stored, writer = bundle([data])
    wanted = part_of(writer.entries[0], data, RUN, 3 * RUN)._replace(**change)
    with pytest.raises(Damaged):
        list(BundleReader([stored], NAME, key_for, [wanted]))


def test_a_hash_that_differs_from_the_manifests_is_damage() -> None:
    stored, writer = bundle([b"a" * 100])
    with pytest.raises(Damaged, match="not what its hash says"):
        list(BundleReader([stored], NAME, key_for, [writer.entries[0]._replace(blake3="0" * 64)]))


def test_pages_are_never_cut_for_whoever_inspects_them() -> None:
    data = b"".join(n.to_bytes(2) * (PAGE // 2) for n in range(700))
    seen: list[tuple[int, bytes]] = []
    writer = BundleWriter(NAME, compression=Compression.ZSTD, key=KEY)
    sources = [
        ExtentSource("PG_VERSION", 0, 3, io.BytesIO(b"18\n").readinto, RUN),
        ExtentSource(
            "base/5/1", 65536, len(data), io.BytesIO(data).readinto, RUN, lambda v, at: seen.append((at, bytes(v)))
        ),
    ]
    stored = b"".join(bytes(chunk) for chunk in writer.stream(sources))
    assert all(at % PAGE == 0 and len(part) % PAGE == 0 for at, part in seen)
    assert [at for at, _ in seen] == [65536 + sum(len(p) for _, p in seen[:n]) for n in range(len(seen))]
    assert b"".join(part for _, part in seen) == data
    assert gathered_offsets(stored) == {"PG_VERSION": 0, "base/5/1": 65536}


def gathered_offsets(stored: bytes) -> dict[str, int]:
    return {e.path: e.file_offset for e in read_index(ranges(stored), len(stored), NAME, key_for).entries}


def test_a_file_that_shrinks_while_it_is_read_leaves_a_shorter_extent() -> None:
    writer = BundleWriter(NAME, compression=Compression.NONE, key=KEY)
    sources = [
        ExtentSource("shrunk", 0, 1_000_000, io.BytesIO(b"x" * 10).readinto, RUN),
        ExtentSource("vanished", 0, 1_000_000, io.BytesIO(b"").readinto, RUN),
        ExtentSource("grown", 0, 10, io.BytesIO(b"y" * 1000).readinto, RUN),
    ]
    stored = b"".join(bytes(chunk) for chunk in writer.stream(sources))
    assert [(e.path, e.length) for e in writer.entries] == [("shrunk", 10), ("grown", 10)]
    assert gathered(BundleReader([stored], NAME, key_for)) == {"shrunk": b"x" * 10, "grown": b"y" * 10}


def test_a_reader_that_returns_little_at_a_time_loses_nothing() -> None:
    data = hashlib.shake_128(b"slow").digest(100_000)
    source = io.BytesIO(data)
    seen: list[int] = []
    writer = BundleWriter(NAME, compression=Compression.NONE, key=KEY)
    slow = ExtentSource(
        "slow", 0, 1 << 40, lambda view: source.readinto(view[:777]), RUN, lambda v, _: seen.append(len(v))
    )
    stored = b"".join(bytes(chunk) for chunk in writer.stream([slow]))
    assert gathered(BundleReader([stored], NAME, key_for)) == {"slow": data}
    assert seen == [100_000]


def test_chunks_of_a_stream_make_an_extent() -> None:
    writer = BundleWriter(NAME, compression=Compression.LZ4, key=KEY)
    out = [bytes(c) for c in writer.add("a", 0, [b"", b"one", memoryview(b"two"), bytearray(b"three")], RUN)]
    out += [bytes(c) for c in writer.add("b", 4096, iter([bytes(FRAME_BYTES), b"tail"]), RUN)]
    out += [bytes(c) for c in writer.end()]
    assert gathered_parts(b"".join(out)) == {("a", 0): b"onetwothree", ("b", 4096): bytes(FRAME_BYTES) + b"tail"}


def gathered_parts(stored: bytes) -> dict[tuple[str, int], bytes]:
    index = read_index(ranges(stored), len(stored), NAME, key_for)
    return {(e.path, e.file_offset): b"".join(read_extent(ranges(stored), index, e)) for e in index.entries}


def test_storage_takes_the_stream_as_it_comes() -> None:
    storage, data = MemoryStorage(), hashlib.shake_128(b"x").digest(9_000_000)
    writer = BundleWriter(NAME, compression=Compression.ZSTD, key=KEY, scratch=Scratch())
    storage.put("bundle", writer.stream([ExtentSource("f", 0, 1 << 40, io.BytesIO(data).readinto, RUN)]))
    assert gathered(BundleReader(storage.get("bundle"), NAME, key_for)) == {"f": data}


def test_an_error_while_reading_stores_nothing() -> None:
    def failing(view: memoryview) -> int:
        raise OSError(5, "Input/output error")

    storage, writer = MemoryStorage(), BundleWriter(NAME, compression=Compression.ZSTD, key=KEY)
    sources = [ExtentSource("good", 0, 9, io.BytesIO(b"x" * 9).readinto, RUN), ExtentSource("bad", 0, 10, failing, RUN)]
    with pytest.raises(OSError, match="Input/output"):
        storage.put("bundle", writer.stream(sources))
    assert list(storage.list()) == []
    with pytest.raises(UsageError, match="not complete"):
        writer.finish()


def test_one_scratch_serves_one_writer_after_another_and_threads_have_their_own() -> None:
    results: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        scratch, made = Scratch(), []
        for turn in range(4):
            data = hashlib.shake_128(bytes([number, turn])).digest(200_000) + bytes(3_000_000)
            writer = BundleWriter(NAME, compression=Compression.ZSTD, key=KEY, scratch=scratch)
            made.append(
                b"".join(
                    bytes(c) for c in writer.stream([ExtentSource("f", 0, 1 << 40, io.BytesIO(data).readinto, RUN)])
                )
            )
            assert gathered(BundleReader([made[-1]], NAME, key_for)) == {"f": data}
        results[number] = made

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2, 3]


def test_a_bundle_counts_as_full_by_bytes_and_by_its_index() -> None:
    writer = BundleWriter(NAME, compression=Compression.LZ4, key=None)
    assert writer.room == BUNDLE_BYTES
    for _ in writer.add("a", 0, [b"x" * 1000], RUN):
        pass
    assert writer.room == BUNDLE_BYTES - 1000
    count = 0
    while writer.room:
        for _ in writer.add(f"{count:0>3000}", 0, [b"x"], RUN):
            pass
        count += 1
    assert 400 < count < FRAME_BYTES // 3000
    with pytest.raises(UsageError, match="full"):
        list(writer.add("more", 0, [b"x"], RUN))
    list(writer.end())


def test_the_longest_path_still_fits_into_an_index_that_has_room() -> None:
    worst = "\x01" * 4096
    writer = BundleWriter(NAME, compression=Compression.ZSTD, key=None)
    chunks = []
    while writer.room:
        chunks += [bytes(c) for c in writer.add(worst, 0, [b"x"], RUN)]
    chunks += [bytes(c) for c in writer.end()]
    stored = b"".join(chunks)
    assert len(read_index(ranges(stored), len(stored), NAME, key_for).entries) == len(writer.entries)
    with pytest.raises(UsageError):
        list(BundleWriter(NAME, compression=Compression.ZSTD, key=None).add("x" * 4097, 0, [b"x"], RUN))


def test_names_that_are_no_utf8_survive() -> None:
    writer = BundleWriter(NAME, compression=Compression.LZ4, key=KEY)
    path = b"caf\xe9/\xff".decode("utf-8", "surrogateescape")
    stored = b"".join(bytes(c) for c in itertools.chain(writer.add(path, 0, [b"x"], RUN), writer.end()))
    assert gathered(BundleReader([stored], NAME, key_for)) == {path: b"x"}


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_flipped_bit_is_found(key: DataKey | None, data: st.DataObject) -> None:
    files = [b"a" * 1000, hashlib.shake_128(b"").digest(3000)]
    stored, writer = bundle(files, Compression.ZSTD, key)
    at = data.draw(st.integers(0, len(stored) - 1))
    flipped = bytearray(stored)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for entries in (None, writer.entries):
        with pytest.raises(SeawallError):
            gathered(BundleReader([bytes(flipped)], NAME, key_for, entries))
    with pytest.raises(SeawallError):
        index = read_index(ranges(bytes(flipped)), len(flipped), NAME, key_for)
        for entry in writer.entries:
            b"".join(read_extent(ranges(bytes(flipped)), index, entry))


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_every_cut_and_every_addition_is_found(key: DataKey | None) -> None:
    stored, writer = bundle([b"a" * 300, b"b" * 300], key=key)
    for changed in [*(stored[:length] for length in range(len(stored))), stored + b"x", stored + stored[-24:]]:
        with pytest.raises(Damaged):
            gathered(BundleReader([changed], NAME, key_for, writer.entries))
        with pytest.raises(Damaged):
            read_index(ranges(changed), len(changed), NAME, key_for)


def test_a_bundle_under_another_ones_name_is_found() -> None:
    stored, _ = bundle([b"a"])
    with pytest.raises(Damaged, match="replaced"):
        BundleReader([stored], NAME + "x", key_for)
    with pytest.raises(Damaged, match="replaced"):
        read_index(ranges(stored), len(stored), NAME + "x", key_for)


def test_frames_that_change_places_are_found_by_both_readers() -> None:
    stored, writer = bundle([bytes(FRAME_BYTES) * 3], Compression.ZSTD)
    index = read_index(ranges(stored), len(stored), NAME, key_for)
    (a, _), (b, _), (c, _) = index.frames
    assert b - a == c - b
    swapped = stored[:a] + stored[b:c] + stored[a:b] + stored[c:]
    with pytest.raises(Damaged):
        gathered(BundleReader([swapped], NAME, key_for))
    with pytest.raises(Damaged):
        list(read_extent(ranges(swapped), index, writer.entries[0]))


def lying(plain: bytes, document: object, offset: int = 0) -> bytes:
    """A bundle whose frames are sealed correctly, with an index of our making."""
    writer = FrameWriter("bundle", NAME, compression=Compression.NONE, key=KEY)
    stored = writer.begin() + b"".join(bytes(c) for c in writer.frame(plain))
    end = len(stored)
    stored += b"".join(bytes(c) for c in writer.frame(json.dumps(document).encode(), final=True))
    return stored + struct.pack(">QI12s", end + offset, 1, b"SEAWALL1IDX\n")


GOOD = ["f", 0, 0, 5, combined(digests_of(b"hello", RUN)), RUN]


@pytest.mark.parametrize(
    "change",
    [
        lambda start: {"frames": [[start, 5]]},
        lambda start: {"frames": [[start + 1, 5]], "entries": [GOOD]},
        lambda start: {"frames": [[start, 4]], "entries": [GOOD]},
        lambda _: {"frames": [], "entries": [GOOD]},
        lambda start: {"frames": [[start, 5], [start, 5]], "entries": [GOOD]},
        lambda start: {"frames": [[start, 5]], "entries": []},
        lambda start: {"frames": [[start, 5]], "entries": [[*GOOD[:3], 6, *GOOD[4:]]]},
        lambda start: {"frames": [[start, 5]], "entries": [["f", 0, 1, 4, *GOOD[4:]]]},
        lambda start: {"frames": [[start, 5]], "entries": [["f", -1, 0, 5, *GOOD[4:]]]},
        lambda start: {"frames": [[start, 5]], "entries": [["f", True, 0, 5, *GOOD[4:]]]},
        lambda start: {"frames": [[start, 5]], "entries": [["", 0, 0, 5, *GOOD[4:]]]},
        lambda start: {"frames": [[start, 5]], "entries": [["f", 0, 0, 5, "zz", RUN]]},
        lambda start: {"frames": [[start, 5]], "entries": [["f", 0, 0, 5]]},
        lambda start: {"frames": [[start, 5]], "entries": [GOOD[:5]]},
        lambda start: {"frames": [[start, 5]], "entries": [[*GOOD[:5], 0]]},
        lambda start: {"frames": [[start, 5]], "entries": [[*GOOD[:5], "8192"]]},
        lambda _: {"frames": 7, "entries": []},
        lambda _: [],
        lambda _: None,
    ],
)
def test_an_index_that_lies_is_damage(change: Callable[[int], object]) -> None:
    start = len(FrameWriter("bundle", NAME, compression=Compression.NONE, key=KEY).begin())
    honest = lying(b"hello", {"frames": [[start, 5]], "entries": [GOOD]})
    assert gathered(BundleReader([honest], NAME, key_for)) == {"f": b"hello"}
    stored = lying(b"hello", change(start))
    with pytest.raises(Damaged):
        gathered(BundleReader([stored], NAME, key_for))
    with pytest.raises(Damaged):
        index = read_index(ranges(stored), len(stored), NAME, key_for)
        for entry in index.entries:
            list(read_extent(ranges(stored), index, entry))


@pytest.mark.parametrize("offset", [-1, 1, 1 << 40])
def test_a_trailer_that_points_elsewhere_is_damage(offset: int) -> None:
    start = len(FrameWriter("bundle", NAME, compression=Compression.NONE, key=KEY).begin())
    stored = lying(b"hello", {"frames": [[start, 5]], "entries": [GOOD]}, offset)
    with pytest.raises(Damaged):
        gathered(BundleReader([stored], NAME, key_for))
    with pytest.raises(Damaged):
        read_index(ranges(stored), len(stored), NAME, key_for)


def test_an_empty_bundle_is_a_bundle() -> None:
    stored, _ = bundle([])
    assert gathered(BundleReader([stored], NAME, key_for)) == {}
    assert read_index(ranges(stored), len(stored), NAME, key_for).entries == ()
