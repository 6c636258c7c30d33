"""A stream of bytes into segment files: whole, durable, and resumed at the right place."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seawall.archive.incoming import Incoming
from seawall.archive.receiver import starting_place
from seawall.archive.spool import lock, prepare, read_whole
from seawall.errors import (
    ClusterError,
    LeaseHeld,
    StorageError,
    StorageFull,
    SupersededTimeline,
    WalConflict,
    WalGap,
)
from seawall.postgres.walsender import Slot
from seawall.wal import Branch, Lsn, Segment, TimelineHistory

SMALL = 1 << 20
START = Lsn(5 * SMALL)
STREAM = random.Random(7).randbytes(4 * SMALL)


@pytest.fixture
def incoming(tmp_path: Path) -> Any:
    made = Incoming(tmp_path, SMALL)
    yield made
    # Some tests leave it with a segment that could not be closed, of which `close` would tell again.
    made.recover()
    made.close()


def files(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_however_the_stream_is_cut_the_files_hold_its_bytes(cuts: list[int], tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("stream")
    incoming = Incoming(directory, SMALL)
    incoming.begin(START, 1)
    edges = sorted({0, *cuts, len(STREAM) - 1000})
    for begin, end in itertools.pairwise(edges):
        incoming.write(START.value + begin, memoryview(STREAM)[begin:end])
    incoming.close()
    assert incoming.flushed == incoming.received == START + edges[-1]
    joined = b"".join(path.read_bytes() for path in sorted(directory.iterdir()))
    assert joined == STREAM[: edges[-1]]
    for path in directory.iterdir():
        assert path.suffix == ("" if path.stat().st_size == SMALL else ".open")


def test_bytes_left_out_or_repeated_are_refused(incoming: Incoming) -> None:
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM[:100])
    for wrong in (START.value + 99, START.value + 101):
        with pytest.raises(ClusterError, match="was expected"):
            incoming.write(wrong, STREAM[:10])


def test_nothing_is_said_to_be_durable_before_it_was_synced(
    incoming: Incoming, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, name=name, real=real: (synced.append(name), real(fd))[1])
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM[:100])
    assert incoming.flushed == START
    assert not synced
    incoming.sync()
    assert incoming.flushed == START + 100
    assert synced == ["fdatasync", "fsync"], "the bytes, then the new file's name"


def test_behind_a_segment_that_could_not_be_closed_nothing_counts_as_durable(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM)
    with pytest.raises(StorageFull):
        incoming.sync()
    assert incoming.flushed == START
    assert all(name.endswith(".open") for name in files(tmp_path))
    with pytest.raises(StorageError):
        incoming.write(incoming.received.value, STREAM)
        incoming.sync()


def test_after_a_failed_sync_everything_unclosed_is_received_again_and_then_counts(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    incoming.begin(START, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        incoming.write(START.value, STREAM)
        with pytest.raises(StorageError):
            incoming.sync()
    incoming.recover()
    again = incoming.resume_at()
    assert again == Segment.containing(START, 1, SMALL)
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM)
    incoming.sync()
    assert incoming.flushed == START + len(STREAM)
    assert b"".join(p.read_bytes() for p in sorted(tmp_path.iterdir())) == STREAM


def test_what_waits_to_be_closed_behind_a_failed_segment_is_never_closed_afterwards(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    gate = threading.Event()
    incoming.begin(START, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        incoming.write(START.value, STREAM[:SMALL])
        # The thread that closes is held up between the two.
        incoming._closer.submit(gate.wait)
        incoming.write(START.value + SMALL, STREAM[SMALL : 2 * SMALL])
        with pytest.raises(StorageError):
            incoming.sync()
    release = threading.Timer(0.3, gate.set)
    release.start()
    incoming.recover()
    release.join()
    incoming._closer.submit(lambda: None).result()
    assert incoming.flushed == START, "nothing behind the gap was reported to be durable"
    assert all(name.endswith(".open") for name in files(tmp_path))


def test_a_left_timeline_leaves_a_partial_and_the_next_begins_beside_it(incoming: Incoming, tmp_path: Path) -> None:
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM[:5000])
    incoming.leave()
    incoming.begin(START, 2)
    incoming.write(START.value, STREAM[:6000])
    incoming.sync()
    old, new = Segment.containing(START, 1, SMALL).name, Segment.containing(START, 2, SMALL).name
    assert files(tmp_path) == {f"{old}.partial": 5000, f"{new}.open": 6000}
    assert incoming.resume_at() == Segment.containing(START, 2, SMALL)


def test_a_timeline_that_ends_with_a_segment_leaves_no_empty_partial(incoming: Incoming, tmp_path: Path) -> None:
    incoming.begin(START, 1)
    incoming.write(START.value, STREAM[:SMALL])
    incoming.leave()
    assert files(tmp_path) == {Segment.containing(START, 1, SMALL).name: SMALL}


def test_after_a_crash_the_open_segment_is_written_again_over_what_is_there(tmp_path: Path) -> None:
    first = Incoming(tmp_path, SMALL)
    first.begin(START, 1)
    first.write(START.value, STREAM[: SMALL + 5000])
    first.close()
    second = Incoming(tmp_path, SMALL)
    again = second.resume_at()
    assert again == Segment.containing(START + SMALL, 1, SMALL)
    assert again is not None
    second.begin(again.start, 1)
    second.write(again.start.value, STREAM[SMALL : SMALL + 10])
    second.close()
    assert (tmp_path / f"{again.name}.open").read_bytes() == STREAM[SMALL : SMALL + 5000], "nothing durable was lost"


def test_where_a_spool_goes_on(tmp_path: Path, incoming: Incoming) -> None:
    def segment(timeline: int, number: int) -> str:
        return Segment(timeline, number, SMALL).name

    def with_files(*names: str) -> Segment | None:
        for path in tmp_path.iterdir():
            path.unlink()
        for name in names:
            (tmp_path / name).touch()
        return incoming.resume_at()

    assert with_files() is None
    assert with_files(".lock", "00000002.history", f".tmp-{segment(1, 9)}") is None
    assert with_files(segment(1, 5), segment(1, 6)) == Segment(1, 7, SMALL)
    assert with_files(segment(1, 5), f"{segment(1, 6)}.open", f"{segment(1, 7)}.open") == Segment(1, 6, SMALL)
    assert with_files(segment(1, 5), f"{segment(1, 6)}.partial") == Segment(1, 6, SMALL)
    assert with_files(f"{segment(1, 6)}.partial", f"{segment(2, 6)}.open") == Segment(2, 6, SMALL)


def test_a_history_waits_once_and_another_one_is_a_conflict(incoming: Incoming, tmp_path: Path) -> None:
    incoming.keep_history(2, b"1\t0/5000\tx\n")
    incoming.keep_history(2, b"1\t0/5000\tx\n")
    with pytest.raises(WalConflict):
        incoming.keep_history(2, b"1\t0/6000\tx\n")
    assert files(tmp_path) == {"00000002.history": 11}


def test_the_snapshot_for_a_tail_holds_only_what_is_durable(incoming: Incoming) -> None:
    incoming.begin(START, 1)
    assert incoming.snapshot() is None
    incoming.write(START.value, STREAM[:100])
    assert incoming.snapshot() is None
    incoming.sync()
    incoming.write(START.value + 100, STREAM[100:200])
    snapshot = incoming.snapshot()
    assert snapshot is not None
    assert (snapshot.segment.start, snapshot.end) == (START, START + 100)
    assert os.pread(snapshot.descriptor, 100, 0) == STREAM[:100]
    os.close(snapshot.descriptor)


def test_one_spool_has_one_writer(tmp_path: Path) -> None:
    prepare(tmp_path / "spool")
    held = lock(tmp_path / "spool")
    with pytest.raises(LeaseHeld):
        lock(tmp_path / "spool")
    os.close(held)
    os.close(lock(tmp_path / "spool"))


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(StorageError, match="not regular"):
        read_whole(descriptor)
    os.close(descriptor)


# ---- where to go on

HISTORY = TimelineHistory(3, (Branch(1, Lsn(10 * SMALL + 500)), Branch(2, Lsn(20 * SMALL))))
SLOT = Slot(Lsn(7 * SMALL + 5), 1)


def place(local: Segment | None, stored: Segment | None = None, slot: Slot = SLOT) -> Segment:
    return starting_place(local, stored, slot, HISTORY, SMALL)


def test_the_spool_comes_before_the_repository_and_that_before_the_slot() -> None:
    spool, stored = Segment(3, 25, SMALL), Segment(3, 22, SMALL)
    assert place(spool, stored) == spool
    assert place(None, stored) == stored.next()
    assert place(None) == Segment(1, 7, SMALL)


def test_on_a_timeline_left_later_it_goes_on_there() -> None:
    assert place(Segment(1, 10, SMALL)) == Segment(1, 10, SMALL)
    assert place(Segment(2, 20, SMALL)) == Segment(2, 20, SMALL)


def test_behind_the_switch_it_goes_back_to_where_the_timelines_parted() -> None:
    assert place(Segment(1, 12, SMALL)) == Segment(2, 10, SMALL)
    assert place(Segment(2, 21, SMALL)) == Segment(3, 20, SMALL)


def test_a_server_that_does_not_descend_from_what_was_received_is_refused() -> None:
    with pytest.raises(SupersededTimeline):
        place(Segment(4, 30, SMALL))


def test_a_slot_that_keeps_nothing_is_a_gap() -> None:
    with pytest.raises(WalGap):
        place(None, slot=Slot(None, 0))
