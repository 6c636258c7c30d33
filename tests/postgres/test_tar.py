"""The tar reader against archives of Python's own writer, in pieces of any size."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.errors import ClusterError
from seawall.model import Compression
from seawall.postgres.inflate import inflated
from seawall.postgres.tar import Member, TarReader

_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=60)
_PATH = st.lists(_NAME.filter(lambda name: name not in (".", "..")), min_size=1, max_size=5).map("/".join)
_ENTRY = st.tuples(_PATH, st.sampled_from(["file", "directory", "link"]), st.binary(max_size=3000), _PATH)
_TYPES = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
_FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def _archive(entries: list[tuple[str, str, bytes, str]], form: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for path, kind, content, link in entries:
            info = tarfile.TarInfo(path)
            info.type, info.mtime = _TYPES[kind], 1_700_000_000
            info.linkname = link if kind == "link" else ""
            info.size = len(content) if kind == "file" else 0
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def _pieces(data: bytes, size: int) -> Iterator[memoryview]:
    """Each piece in the same buffer, as a decompressor does it."""
    buffer = bytearray(size)
    for at in range(0, len(data), size):
        part = data[at : at + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def _read_all(reader: TarReader, buffer_bytes: int = 700) -> list[tuple[Member, bytes]]:
    found, buffer = [], memoryview(bytearray(buffer_bytes))
    while (member := reader.next()) is not None:
        content = bytearray()
        while count := reader.readinto(buffer):
            content += buffer[:count]
        found.append((member, bytes(content)))
    return found


@given(st.lists(_ENTRY, max_size=6), st.sampled_from(_FORMATS), st.integers(1, 5000))
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_read_whatever_the_pieces(
    entries: list[tuple[str, str, bytes, str]], form: int, size: int
) -> None:
    found = _read_all(TarReader(_pieces(_archive(entries, form), size)))
    assert [(m.path, m.kind, c, m.link) for m, c in found] == [
        (path, kind, content if kind == "file" else b"", link if kind == "link" else "")
        for path, kind, content, link in entries
    ]
    assert all((m.mode, m.mtime) == (stat.S_IMODE(0o644), 1_700_000_000) for m, _ in found)


def test_ustar_prefixes_are_joined() -> None:
    path = "d" * 90 + "/" + "f" * 80
    found = _read_all(TarReader(_pieces(_archive([(path, "file", b"x", "")], tarfile.USTAR_FORMAT), 512)))
    assert [(m.path, content) for m, content in found] == [(path, b"x")]


def test_content_that_nobody_reads_is_passed_over() -> None:
    reader = TarReader(_pieces(_archive([(n, "file", b"x" * 1000, "") for n in "abc"], tarfile.GNU_FORMAT), 333))
    names = []
    while (member := reader.next()) is not None:
        names.append(member.path)
    assert names == ["a", "b", "c"]


def test_sizes_from_8_gib_on_are_understood() -> None:
    info = tarfile.TarInfo("huge")
    info.size = (8 << 30) + 5
    member = TarReader(iter([info.tobuf(tarfile.GNU_FORMAT)])).next()
    assert member is not None
    assert member.size == (8 << 30) + 5


@pytest.mark.parametrize("cut", [100, 512, 700, 1500, 2560])
def test_an_archive_that_ends_in_the_middle_is_an_error(cut: int) -> None:
    data = _archive([("a", "file", b"x" * 2000, "")], tarfile.GNU_FORMAT)
    with pytest.raises(ClusterError):
        _read_all(TarReader(_pieces(data[:cut], 512)))


def test_a_flipped_header_is_an_error() -> None:
    data = bytearray(_archive([("a", "file", b"", "")], tarfile.GNU_FORMAT))
    data[0] ^= 1
    with pytest.raises(ClusterError, match="checksum"):
        TarReader(_pieces(bytes(data), 512)).next()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_kinds_that_no_cluster_has_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type = kind
    with pytest.raises(ClusterError):
        TarReader(iter([info.tobuf(tarfile.GNU_FORMAT)])).next()


def _squeezed(plain: bytes, compression: Compression) -> bytes:
    import gzip

    import lz4.frame
    import zstandard

    makers = {
        Compression.GZIP: gzip.compress,
        Compression.LZ4: lz4.frame.compress,
        Compression.ZSTD: zstandard.compress,
    }
    return bytes(makers[compression](plain))


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
@pytest.mark.parametrize("size", [1, 77, 32768])
def test_compressed_pieces_come_back_in_bounded_steps(compression: Compression, size: int) -> None:
    plain = bytes(5_000_000) + b"end"
    data = _squeezed(plain, compression)
    steps = [bytes(step) for step in inflated(_pieces(data, size), compression)]
    assert b"".join(steps) == plain
    assert max(map(len, steps)) <= 1024 * 1024


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
def test_foreign_bytes_are_an_error_of_the_cluster(compression: Compression) -> None:
    with pytest.raises(ClusterError):
        list(inflated(_pieces(b"no codec begins like this", 8), compression))


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_compressed_archive_that_ends_in_the_middle_is_an_error(compression: Compression, part: float) -> None:
    data = _squeezed(_archive([("a", "file", bytes(range(256)) * 5000, "")], tarfile.GNU_FORMAT), compression)
    with pytest.raises(ClusterError):
        _read_all(TarReader(inflated(_pieces(data[: int(len(data) * part)], 512), compression)))
