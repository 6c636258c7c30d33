"""Writing behind, past the page cache or not: the same bytes arrive, and no failure stays unsaid."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.storage import direct
from seawall.storage.direct import ALIGNMENT, BUFFER_BYTES, Behind, open_direct


@contextmanager
def opened(path: Path, *, with_direct: bool) -> Iterator[tuple[int, int]]:
    ordinary = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    other = open_direct(path, os.O_WRONLY) if with_direct else -1
    try:
        yield other, ordinary
    finally:
        for descriptor in (other, ordinary):
            if descriptor >= 0:
                os.close(descriptor)


@given(pages=st.lists(st.integers(1, BUFFER_BYTES // ALIGNMENT), min_size=1, max_size=6), with_direct=st.booleans())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_given_lies_in_the_file(tmp_path: Path, pages: list[int], with_direct: bool) -> None:
    expected = b""
    with closing(Behind()) as behind, opened(tmp_path / "f", with_direct=with_direct) as (other, ordinary):
        for number, count in enumerate(pages):
            data = bytes([number + 1]) * (count * ALIGNMENT)
            behind.buffer()[: len(data)] = data
            behind.write(other, ordinary, len(data), len(expected))
            expected += data
        behind.settle()
        assert (tmp_path / "f").read_bytes() == expected


def test_where_a_file_system_refuses_direct_writing_the_bytes_go_the_ordinary_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def picky(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor == other:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pwrite(descriptor, data, offset)

    with closing(Behind()) as behind, opened(tmp_path / "f", with_direct=True) as (other, ordinary):
        monkeypatch.setattr(os, "pwrite", picky)
        behind.buffer()[:ALIGNMENT] = b"x" * ALIGNMENT
        behind.write(other, ordinary, ALIGNMENT, 0)
        behind.settle()
    assert (tmp_path / "f").read_bytes() == b"x" * ALIGNMENT


def test_no_direct_writing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(path: object, flags: int, *, dir_fd: int | None = None) -> int:
        raise OSError(errno.EINVAL if flags & os.O_DIRECT else errno.EIO, "refused")

    monkeypatch.setattr(direct.os, "open", without)
    assert open_direct(tmp_path / "f", os.O_WRONLY) == -1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_failed_behind_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with closing(Behind()) as behind, opened(tmp_path / "f", with_direct=True) as (other, ordinary):
        monkeypatch.setattr(os, "pwrite", failing)
        behind.write(other, ordinary, ALIGNMENT, 0)
        behind.write(other, ordinary, ALIGNMENT, ALIGNMENT)
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            behind.settle()
        assert told.value.errno == number


def test_a_write_that_the_kernel_cuts_short_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:512], offset))
    data = os.urandom(3 * ALIGNMENT)
    with closing(Behind()) as behind, opened(tmp_path / "f", with_direct=True) as (other, ordinary):
        behind.buffer()[: len(data)] = data
        behind.write(other, ordinary, len(data), 0)
        behind.settle()
    assert (tmp_path / "f").read_bytes() == data
