"""Frames: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.codec import (
    FRAME_BYTES,
    DataKey,
    FrameReader,
    FrameWriter,
    new_data_key,
    open_bytes,
    read_envelope,
    seal_bytes,
)
from seawall.codec.compress import compressor, decompressor
from seawall.errors import Damaged, FormatTooNew, KeyMissing, SeawallError, SettingsError, UsageError
from seawall.model import Compression

KEY = DataKey("key-1", bytes(range(32)))
OTHER = DataKey("key-1", bytes(32))
NAME = "shop/wal/000000010000000000000001"
FRAME = struct.Struct(">IIB")
HEADER_END = 12

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
codecs = st.sampled_from(list(Compression))
keys = st.sampled_from([KEY, None])
sizes = st.one_of(
    st.integers(0, 5000),
    st.sampled_from([FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 2 * FRAME_BYTES + 77]),
)


def key_for(key_id: str) -> DataKey:
    if key_id != KEY.id:
        raise KeyMissing(f"no data key {key_id}")
    return KEY


def sample(size: int, seed: int = 0) -> bytes:
    """Half of it compresses, half does not."""
    noise = hashlib.shake_128(bytes([seed % 256])).digest(4096)
    return ((noise + bytes(4096)) * (size // 8192 + 1))[:size]


def sealed(plain: bytes, compression: Compression = Compression.ZSTD, key: DataKey | None = KEY) -> bytes:
    return seal_bytes("wal", NAME, plain, compression=compression, key=key)


def frames_of(stored: bytes) -> tuple[bytes, list[bytes]]:
    """The header, and each frame with its own header."""
    at = HEADER_END + struct.unpack(">I", stored[8:12])[0]
    header, frames = stored[:at], []
    while at < len(stored):
        end = at + FRAME.size + FRAME.unpack_from(stored, at)[0]
        frames.append(stored[at:end])
        at = end
    return header, frames


@given(size=sizes, seed=st.integers(0, 255), codec=codecs, key=keys, cut=st.integers(1, 3 * FRAME_BYTES))
@unhurried
def test_what_was_sealed_comes_out_again_however_it_arrives(
    size: int, seed: int, codec: Compression, key: DataKey | None, cut: int
) -> None:
    plain = sample(size, seed)
    stored = sealed(plain, codec, key)
    chunks = [
        stored[at : at + max(cut, len(stored) // 50)] for at in range(0, len(stored), max(cut, len(stored) // 50))
    ]
    assert open_bytes(chunks, NAME, key_for) == plain


@given(pieces=st.lists(st.binary(max_size=70_000), max_size=8), key=keys)
@unhurried
def test_a_stream_of_pieces_is_the_same_as_one(pieces: list[bytes], key: DataKey | None) -> None:
    writer = FrameWriter("manifest", NAME, compression=Compression.LZ4, key=key)
    stored = b"".join(bytes(chunk) for chunk in writer.stream(iter(pieces)))
    assert open_bytes(stored, NAME, key_for) == b"".join(pieces)
    assert writer.stored_bytes == len(stored)
    assert writer.plain_bytes == sum(map(len, pieces))
    assert writer.sha256 == hashlib.sha256(stored).hexdigest()


def test_pieces_that_do_not_end_where_frames_do_are_cut_without_loss() -> None:
    plain = sample(3 * FRAME_BYTES + 5)
    writer = FrameWriter("wal", NAME, compression=Compression.NONE, key=KEY)
    cuts = [0, 1, FRAME_BYTES - 1, FRAME_BYTES + 9, 3 * FRAME_BYTES, len(plain)]
    pieces = [plain[a:b] for a, b in itertools.pairwise(cuts)]
    stored = b"".join(bytes(chunk) for chunk in writer.stream(pieces))
    assert open_bytes(stored, NAME, key_for) == plain


@pytest.mark.parametrize("codec", list(Compression))
@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_flipped_bit_is_found(codec: Compression, key: DataKey | None, data: st.DataObject) -> None:
    stored = bytearray(sealed(sample(3000), codec, key))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((Damaged, FormatTooNew, KeyMissing)):
        open_bytes(bytes(stored), NAME, key_for)


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_every_cut_is_found(key: DataKey | None) -> None:
    stored = sealed(sample(600), key=key)
    for length in range(len(stored)):
        with pytest.raises(Damaged):
            open_bytes(stored[:length], NAME, key_for)


@given(garbage=st.binary(min_size=1, max_size=40), key=keys)
def test_bytes_after_the_end_are_found(garbage: bytes, key: DataKey | None) -> None:
    with pytest.raises(Damaged):
        open_bytes([sealed(b"abc", key=key), garbage], NAME, key_for)


def _moved(frames: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    first, second, third, *rest = frames
    yield "swapped", [second, first, third, *rest]
    yield "first dropped", [second, third, *rest]
    yield "middle dropped", [first, third, *rest]
    yield "last dropped", frames[:-1]
    yield "doubled", [first, first, second, third, *rest]
    yield "final first", [frames[-1], *frames]
    yield "final doubled", [*frames, frames[-1]]
    yield "only the final", [frames[-1]]


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_frames_out_of_place_are_found(key: DataKey | None) -> None:
    # Two full frames of equal content and length: only their numbers tell them apart.
    header, frames = frames_of(sealed(bytes(FRAME_BYTES) * 2 + sample(99), key=key))
    assert len(frames) == 3
    for how, moved in _moved(frames):
        with pytest.raises(Damaged):
            open_bytes(header + b"".join(moved), NAME, key_for)
        assert how


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_a_frame_of_another_object_is_found(key: DataKey | None) -> None:
    mine, ours = frames_of(sealed(b"a" * 500, key=key))
    _, theirs = frames_of(seal_bytes("wal", NAME + "X", b"a" * 500, compression=Compression.ZSTD, key=key))
    assert open_bytes(mine + b"".join(ours), NAME, key_for) == b"a" * 500
    with pytest.raises(Damaged):
        open_bytes(mine + b"".join(theirs), NAME, key_for)


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_an_object_under_another_ones_name_is_found(key: DataKey | None) -> None:
    with pytest.raises(Damaged, match="replaced"):
        open_bytes(sealed(b"abc", key=key), "shop/wal/000000010000000000000002", key_for)


def test_an_object_of_another_kind_is_found() -> None:
    with pytest.raises(Damaged, match="expected was a manifest"):
        open_bytes(sealed(b"abc"), NAME, key_for, kind="manifest")


def test_the_wrong_key_opens_nothing() -> None:
    with pytest.raises(Damaged):
        open_bytes(sealed(b"abc"), NAME, lambda _: OTHER)
    with pytest.raises(Damaged):
        open_bytes(sealed(b"abc"), NAME, lambda _: DataKey("key-2", KEY.secret))


def test_a_missing_key_is_told_by_whoever_keeps_keys() -> None:
    stored = seal_bytes("wal", NAME, b"abc", compression=Compression.NONE, key=DataKey("elsewhere", bytes(32)))
    with pytest.raises(KeyMissing, match="elsewhere"):
        open_bytes(stored, NAME, key_for)


def test_damage_in_a_later_frame_releases_only_earlier_ones() -> None:
    plain = sample(2 * FRAME_BYTES + 100)
    stored = bytearray(sealed(plain, Compression.NONE))
    stored[-1] ^= 1
    released = []
    with pytest.raises(Damaged):
        for frame in FrameReader([bytes(stored)], NAME, key_for):
            released.append(frame)
    assert b"".join(released) == plain[: 2 * FRAME_BYTES]


def test_an_error_of_the_source_after_the_last_byte_is_heard() -> None:
    def chunks() -> Iterator[bytes]:
        yield sealed(b"abc")
        raise Damaged("gpg found the message manipulated")

    with pytest.raises(Damaged, match="manipulated"):
        open_bytes(chunks(), NAME, key_for)


@given(head=st.binary(max_size=200))
def test_random_bytes_are_never_more_than_damage(head: bytes) -> None:
    for start in (b"", b"SEAWALL1", b"SEAWALL1\x00\x00\x00\x20"):
        with pytest.raises(SeawallError):
            open_bytes(start + head, NAME, key_for)
        with pytest.raises(SeawallError):
            read_envelope(start + head)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@unhurried
def test_a_header_with_any_field_changed_is_refused_or_reads_as_such(data: st.DataObject) -> None:
    import json

    stored = sealed(b"abc", key=data.draw(keys))
    end = HEADER_END + struct.unpack(">I", stored[8:12])[0]
    header = json.loads(stored[HEADER_END:end])
    field = data.draw(st.sampled_from([*header, "more"]))
    changed = {**header, field: data.draw(values)}
    body = json.dumps(changed).encode()
    if changed == header:
        return
    with pytest.raises(SeawallError):
        open_bytes(b"SEAWALL1" + struct.pack(">I", len(body)) + body + stored[end:], NAME, key_for)


def test_deeply_nested_brackets_in_a_header_are_damage() -> None:
    body = b"[" * 60_000
    with pytest.raises(Damaged):
        read_envelope(b"SEAWALL1" + struct.pack(">I", len(body)) + body)


def test_a_newer_format_is_refused_as_newer() -> None:
    stored = sealed(b"abc")
    with pytest.raises(FormatTooNew):
        read_envelope(stored.replace(b"SEAWALL1", b"SEAWALL2", 1))
    body = b'{"v":2}'
    with pytest.raises(FormatTooNew):
        read_envelope(b"SEAWALL1" + struct.pack(">I", len(body)) + body)


def test_a_header_tells_its_facts_without_a_key() -> None:
    stored = seal_bytes(
        "history", NAME, b"abc", compression=Compression.NONE, key=KEY, extra={"sha256": "ab", "bytes": 3, "ü": "ä"}
    )
    envelope = read_envelope(stored[: 64 * 1024])
    assert (envelope.kind, envelope.object, envelope.key) == ("history", NAME, "key-1")
    assert dict(envelope.extra) == {"sha256": "ab", "bytes": 3, "ü": "ä"}


def test_a_header_that_no_small_read_finds_is_not_written() -> None:
    with pytest.raises(UsageError):
        seal_bytes("wal", NAME, b"", compression=Compression.NONE, key=None, extra={"x": "y" * 70_000})


def test_a_frame_that_claims_an_absurd_length_costs_no_memory() -> None:
    header, _ = frames_of(sealed(b"abc", key=None))
    for stored, plain, flags in ((0xFFFFFFFF, 0xFFFFFFFF, 3), (0xFFFFFFF0, 100, 1), (3, 100, 1), (116, 100, 0xF3)):
        with pytest.raises(Damaged, match="malformed header"):
            open_bytes(header + FRAME.pack(stored, plain, flags) + bytes(64), NAME, key_for)


@pytest.mark.parametrize("codec", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
def test_a_frame_that_unpacks_to_more_than_it_states_stops_there(codec: Compression) -> None:
    bomb = compressor(codec, 1)(bytes(50_000_000))
    for stated in (0, 10, 49_999_999, 50_000_001):
        with pytest.raises(Damaged):
            decompressor(codec)(bomb, stated)
    for garbage in (
        b"",
        b"x",
        b"\x1f\x8b\x08" + bytes(30),
        b"\x04\x22\x4d\x18" + bytes(30),
        b"\x28\xb5\x2f\xfd" + bytes(30),
    ):
        with pytest.raises(Damaged):
            decompressor(codec)(garbage, 10)
    with pytest.raises(Damaged):
        decompressor(codec)(compressor(codec, 1)(b"a" * 100) + b"trailing", 100)


def test_each_compressed_frame_is_a_file_of_the_plain_tool() -> None:
    plain = b"plain text " * 1000
    _, (frame,) = frames_of(sealed(plain, Compression.GZIP, None))
    assert gzip.decompress(frame[FRAME.size : -16]) == plain


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    noise = hashlib.shake_128(b"").digest(100_000)
    for codec in Compression:
        _, (frame,) = frames_of(sealed(noise, codec, None))
        assert frame[FRAME.size : -16] == noise
        assert FRAME.unpack_from(frame)[2] == 3


@pytest.mark.parametrize(("codec", "level"), [(Compression.ZSTD, 23), (Compression.LZ4, 17), (Compression.GZIP, 10)])
def test_a_level_that_a_codec_does_not_have_is_a_wrong_setting(codec: Compression, level: int) -> None:
    with pytest.raises(SettingsError, match=f"levels 0 to {level - 1}"):
        FrameWriter("wal", NAME, compression=codec, level=level, key=None)


@pytest.mark.parametrize(
    ("codec", "levels"), [(Compression.ZSTD, (0, 19)), (Compression.LZ4, (0, 9)), (Compression.GZIP, (0, 9))]
)
def test_every_level_round_trips(codec: Compression, levels: tuple[int, ...]) -> None:
    for level in levels:
        stored = seal_bytes("wal", NAME, sample(50_000), compression=codec, level=level, key=KEY)
        assert open_bytes(stored, NAME, key_for) == sample(50_000)


def test_a_writer_refuses_frames_out_of_order() -> None:
    writer = FrameWriter("wal", NAME, compression=Compression.NONE, key=KEY)
    with pytest.raises(UsageError):
        writer.frame(b"before begin")
    writer.begin()
    with pytest.raises(UsageError):
        writer.begin()
    with pytest.raises(UsageError):
        writer.frame(bytes(FRAME_BYTES + 1))
    writer.frame(b"", final=True)
    with pytest.raises(UsageError):
        writer.frame(b"after the final one")


def test_two_objects_of_one_key_never_share_a_subkey() -> None:
    first, second = sealed(bytes(100), Compression.NONE), sealed(bytes(100), Compression.NONE)
    assert frames_of(first)[1] != frames_of(second)[1]
    assert read_envelope(first).salt != read_envelope(second).salt


def test_a_key_never_shows_its_secret() -> None:
    key = new_data_key("k")
    assert len(key.secret) == 32
    assert key.secret != new_data_key("k").secret
    assert repr(key) == "DataKey(id='k')"
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            DataKey("k", wrong)


def test_importing_the_codec_imports_no_library_of_it() -> None:
    heavy = "zstandard", "cryptography", "lz4", "isal", "blake3", "gnupg", "pydantic", "subprocess", "tempfile"
    script = f"import sys, seawall.codec, seawall.keys; print([m for m in {heavy!r} if m in sys.modules])"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
