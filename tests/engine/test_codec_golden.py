"""Format v1 is pinned: these bytes were written once and must be read, and written, forever."""

from __future__ import annotations

import hashlib
import hmac
import io
import struct

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from seawall.codec import BundleReader, BundleWriter, DataKey, ExtentSource, open_bytes, run_bytes, seal_bytes
from seawall.model import Compression

KEY = DataKey("20261123T020000Z-full", bytes(range(32)))
NAME = "shop/wal/000000010000000000000001"
PLAIN = b"The sea wall stands. " * 20


def fixed(length: int) -> bytes:
    return bytes(range(0x40, 0x40 + length))


GOLDEN = {
    "sealed": (
        "53454157414c4c31000000db7b22636f646563223a226e6f6e65222c226578747261223a7b226279746573223a34307d2c226b65"
        "79223a223230323631313233543032303030305a2d66756c6c222c226b696e64223a2277616c222c226e6f6e6365223a22343034"
        "3134323433343434353436222c226f626a656374223a2273686f702f77616c2f3030303030303031303030303030303030303030"
        "30303031222c2273616c74223a223430343134323433343434353436343734383439346134623463346434653466222c22736561"
        "6c223a226165732d3235362d67636d222c2276223a317d000000380000002803096c4273c9030345443a99c3c085ee6d66d3765a"
        "7924eece4b72e0fe37f67adc9c2659f43db0c509257888425a789bf110c74e288c7533e8"
    ),
    "plain": (
        "53454157414c4c31000000917b22636f646563223a226e6f6e65222c226578747261223a7b226279746573223a34307d2c226b65"
        "79223a22222c226b696e64223a2277616c222c226e6f6e6365223a22222c226f626a656374223a2273686f702f77616c2f303030"
        "303030303130303030303030303030303030303031222c2273616c74223a22222c227365616c223a226e6f6e65222c2276223a31"
        "7d000000380000002803546865207365612077616c6c207374616e64732e20546865207365612077616c6c207374616e64737528"
        "bce4263c757d739997f9d48e5df0"
    ),
    "gzip": (
        "53454157414c4c31000000d17b22636f646563223a22677a6970222c226578747261223a7b7d2c226b6579223a22323032363131"
        "3233543032303030305a2d66756c6c222c226b696e64223a2277616c222c226e6f6e6365223a2234303431343234333434343534"
        "36222c226f626a656374223a2273686f702f77616c2f303030303030303130303030303030303030303030303031222c2273616c"
        "74223a223430343134323433343434353436343734383439346134623463346434653466222c227365616c223a226165732d3235"
        "362d67636d222c2276223a317d0000003d000001a401428f2f53ba66626533a4fe66a8a3b24245e32d3b95b9d783454849d43e57"
        "48a8e51a7e025cc5f7eadea8f7a09ccab7c8101d229dc881c1a6c16b880d1e"
    ),
    "lz4": (
        "53454157414c4c31000000d07b22636f646563223a226c7a34222c226578747261223a7b7d2c226b6579223a2232303236313132"
        "33543032303030305a2d66756c6c222c226b696e64223a2277616c222c226e6f6e6365223a223430343134323433343434353436"
        "222c226f626a656374223a2273686f702f77616c2f303030303030303130303030303030303030303030303031222c2273616c74"
        "223a223430343134323433343434353436343734383439346134623463346434653466222c227365616c223a226165732d323536"
        "2d67636d222c2276223a317d00000048000001a40159266a4bd226c664335bf5afe0f6112d08b7058b5f24eece4b72e0fe37f67a"
        "dc9c2659f43db0c5092a2ce3a063737f6ff783c7b4d470acdb8157222ac09d60f5120bd6ffc8f7a26c"
    ),
    "zstd": (
        "53454157414c4c31000000d17b22636f646563223a227a737464222c226578747261223a7b7d2c226b6579223a22323032363131"
        "3233543032303030305a2d66756c6c222c226b696e64223a2277616c222c226e6f6e6365223a2234303431343234333434343534"
        "36222c226f626a656374223a2273686f702f77616c2f303030303030303130303030303030303030303030303031222c2273616c"
        "74223a223430343134323433343434353436343734383439346134623463346434653466222c227365616c223a226165732d3235"
        "362d67636d222c2276223a317d00000036000001a40175b108aedac26280335b5dfb8893ba7f6dd62503381cea8b1875e4f173f2"
        "3590f10633d1c19251de1b2ad7a00011ccacc7003666d88f"
    ),
}
BUNDLE_SHA256 = "631a12f182ae23cf69ea8c9253e0c991be24fd8519dce982603cec3bbbe879a8"


@pytest.mark.parametrize("name", ["sealed", "plain"])
def test_an_object_is_written_in_the_same_bytes_as_ever(name: str) -> None:
    key = KEY if name == "sealed" else None
    stored = seal_bytes(
        "wal", NAME, PLAIN[:40], compression=Compression.NONE, key=key, randomness=fixed, extra={"bytes": 40}
    )
    assert stored.hex() == GOLDEN[name]


@pytest.mark.parametrize("name", list(GOLDEN))
def test_an_object_of_long_ago_is_read(name: str) -> None:
    plain = PLAIN[:40] if name in ("sealed", "plain") else PLAIN
    assert open_bytes(bytes.fromhex(GOLDEN[name]), NAME, lambda _: KEY) == plain


def test_a_bundle_is_written_in_the_same_bytes_as_ever() -> None:
    writer = BundleWriter("shop/b/1", compression=Compression.NONE, key=KEY, randomness=fixed)
    files = {"global/pg_control": b"c" * 8192, "PG_VERSION": b"18\n"}
    sources = [
        ExtentSource(path, 0, len(data), io.BytesIO(data).readinto, run_bytes(len(data)))
        for path, data in files.items()
    ]
    stored = b"".join(bytes(chunk) for chunk in writer.stream(sources))
    assert hashlib.sha256(stored).hexdigest() == BUNDLE_SHA256
    assert {path: bytes(part) for path, _, part in BundleReader([stored], "shop/b/1", lambda _: KEY)} == files


def test_a_second_reader_can_be_written_from_the_description_alone() -> None:
    """Written from the format's description, not from the code: HKDF, nonce, and what is authenticated."""
    stored = bytes.fromhex(GOLDEN["sealed"])
    (length,) = struct.unpack(">I", stored[8:12])
    header, frame = stored[: 12 + length], stored[12 + length :]
    stored_length, plain_length, flags = struct.unpack(">IIB", frame[:9])
    assert (stored_length, plain_length, flags) == (len(frame) - 9, 40, 3)
    extracted = hmac.digest(fixed(16), KEY.secret, "sha256")
    subkey = hmac.digest(extracted, b"seawall/1 " + NAME.encode() + b"\x01", "sha256")
    nonce = fixed(7) + bytes(4) + b"\x01"
    associated = hashlib.sha256(header).digest() + frame[:9]
    assert AESGCM(subkey).decrypt(nonce, frame[9:], associated) == PLAIN[:40]


def test_the_checksum_of_an_unsealed_frame_is_as_described() -> None:
    stored = bytes.fromhex(GOLDEN["plain"])
    (length,) = struct.unpack(">I", stored[8:12])
    header, frame = stored[: 12 + length], stored[12 + length :]
    counted = hashlib.sha256(header).digest() + frame[:9] + bytes(4) + frame[9:-16]
    assert frame[-16:] == blake3(counted).digest()[:16]
