"""pg_control without a server: damage, halves, unknown layouts. Real files are read in tests/postgres."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.errors import ClusterError
from seawall.postgres.control import control_is_valid, crc32c, read_control, read_control_bytes

CRC_AT = {1300: 288, 1700: 288, 1800: 292}


def control_file(layout: int = 1800, system_identifier: int = 7) -> bytes:
    body = bytearray(8192)
    struct.pack_into("=QIIi", body, 0, system_identifier, layout, 202506291, 6)
    struct.pack_into("=IIIIIIII", body, 216, 8192, 131072, 8192, 16777216, 64, 32, 1996, 2048)
    struct.pack_into("=I", body, 252, 1)
    struct.pack_into("=I", body, CRC_AT[layout], crc32c(bytes(body[: CRC_AT[layout]])))
    return bytes(body)


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("layout", [1300, 1700, 1800])
def test_every_layout_is_read(layout):
    control = read_control(control_file(layout))
    assert (control.system_identifier, control.control_version) == (7, layout)
    assert (control.block_bytes, control.relation_segment_blocks, control.segment_bytes) == (8192, 131072, 16777216)
    assert control.checksums


@given(st.integers(0, 292 * 8 + 31))
@settings(max_examples=80, deadline=None)
def test_any_flipped_bit_is_refused(bit):
    data = bytearray(control_file())
    data[bit // 8] ^= 1 << bit % 8
    assert not control_is_valid(bytes(data))
    with pytest.raises(ClusterError):
        read_control(bytes(data))


@pytest.mark.parametrize("size", [0, 7, 16, 200, 295])
def test_a_cut_file_is_refused(size):
    with pytest.raises(ClusterError):
        read_control(control_file()[:size])


def test_an_unknown_layout_is_named():
    data = bytearray(control_file())
    struct.pack_into("=I", data, 8, 1900)
    with pytest.raises(ClusterError, match="layout 1900"):
        read_control(bytes(data))


def test_a_file_met_in_the_middle_of_a_write_is_read_again(tmp_path: Path):
    path = tmp_path / "pg_control"
    whole = control_file(system_identifier=8)
    path.write_bytes(control_file()[:100] + whole[100:])
    pauses = []

    def written_meanwhile() -> None:
        pauses.append(1)
        if len(pauses) == 2:
            path.write_bytes(whole)

    assert read_control_bytes(path, pause=written_meanwhile) == whole
    assert len(pauses) == 2


def test_a_directory_without_a_control_file_is_no_data_directory(tmp_path: Path):
    with pytest.raises(ClusterError, match="cannot be read"):
        read_control(tmp_path)
