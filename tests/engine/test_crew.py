"""How many writers a copy has: as many as there are processors, more while these wait, never more than is allowed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.backup import crew, stream
from seawall.backup.crew import Bounds, Crew, Crewing, Measured, Slots, next_crew
from seawall.backup.output import Output
from seawall.errors import StorageUnreachable
from seawall.events import silent
from seawall.postgres.stream import StreamedFile
from seawall.storage.wrappers import TokenBucket

BOUNDS = Bounds.of(2, adapts=True)
IDLE, BUSY = 0.2, 1.0
measures = st.builds(Measured, st.floats(0, 1), st.floats(0, 1e10))


@given(st.integers(1, 64), st.booleans(), st.lists(measures, max_size=200))
def test_whatever_is_measured_there_are_as_many_writers_as_slots_and_at_most_a_few_more(
    workers: int, adapts: bool, measured: list[Measured]
) -> None:
    bounds, now = Bounds.of(workers, adapts=adapts), Crewing(workers)
    for each in measured:
        later = next_crew(now, each, bounds)
        assert bounds.slots <= later.writers <= bounds.most
        assert abs(later.writers - now.writers) <= 1
        now = later
    assert adapts or now.writers == workers


@given(st.floats(crew._BUSY_SHARE, 1), st.floats(0, 1e10))
def test_no_writer_comes_while_the_processors_are_what_limits(share: float, rate: float) -> None:
    assert next_crew(Crewing(2), Measured(share, rate), BOUNDS).writers == 2


def test_a_writer_comes_while_processors_wait_and_stays_if_that_brings_something() -> None:
    now, rate = Crewing(2), 100.0
    for expected in (3, 4, 5, 6, 6):
        rate *= 1.5
        now = next_crew(now, Measured(IDLE, rate), BOUNDS)
        assert now.writers == expected


def test_a_writer_that_brings_nothing_goes_again_and_none_is_tried_for_a_while() -> None:
    now = next_crew(Crewing(2), Measured(IDLE, 100), BOUNDS)
    assert now.writers == 3
    now = next_crew(now, Measured(IDLE, 101), BOUNDS)
    tried = []
    for _ in range(crew._REST_INTERVALS):
        tried.append(now.writers)
        now = next_crew(now, Measured(IDLE, 100), BOUNDS)
    assert set(tried) == {2}
    assert next_crew(now, Measured(IDLE, 100), BOUNDS).writers == 3


@pytest.mark.parametrize(("adapts", "writers"), [(True, 3), (False, 2)])
def test_where_there_may_be_more_a_copy_begins_with_one_writer_more_than_slots(adapts: bool, writers: int) -> None:
    all_here = threading.Barrier(writers)
    begun: list[bool] = []

    def work(_goes_on: Callable[[], bool]) -> None:
        # Nothing was measured yet, and nobody ends before all are there.
        all_here.wait(30)
        begun.append(True)

    Crew(Bounds.of(2, adapts=adapts), Slots(2), _output()).run(work, lambda: False)
    assert len(begun) == writers


# ---- at work


def _output() -> Output:
    return cast(Output, SimpleNamespace(failed=threading.Event()))


class Stock:
    """Loads that are made under a slot and taken by a storage."""

    def __init__(self, count: int, slots: Slots, put: Callable[[int], None]) -> None:
        self.loads: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(count):
            self.loads.put(number)
        self._slots, self._put = slots, put

    def work(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            try:
                number = self.loads.get_nowait()
            except queue.Empty:
                return
            for _ in self._slots.making(iter([b"piece"])):
                self._put(number)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_INTERVAL_SECONDS", 0.01)


@pytest.mark.parametrize("slots", [1, 2])
def test_one_put_that_hangs_holds_neither_a_slot_nor_the_rest(slots: int) -> None:
    others, lock, done = threading.Event(), threading.Lock(), list[int]()

    def put(number: int) -> None:
        if number == 0 and not others.wait(30):
            raise StorageUnreachable("the others did not go on")
        with lock:
            done.append(number)
            if len(done) == 19:
                others.set()

    taken = Slots(slots)
    stock = Stock(20, taken, put)
    Crew(Bounds.of(slots, adapts=True), taken, _output()).run(stock.work, lambda: not stock.loads.empty())
    assert done[-1] == 0
    assert sorted(done) == list(range(20))


def test_no_more_pieces_are_made_at_once_than_there_are_slots() -> None:
    slots, lock = Slots(2), threading.Lock()
    now, most = [0], [0]
    started = threading.Barrier(6)

    def piece() -> Iterator[bytes]:
        for _ in range(50):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            threading.Event().wait(0.0001)
            with lock:
                now[0] -= 1
            yield b"x"

    def work() -> None:
        started.wait(30)
        for _ in slots.making(piece()):
            pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == 2


def test_the_first_error_stops_all_and_is_the_one_that_is_raised() -> None:
    output = _output()

    def put(number: int) -> None:
        if number == 3:
            raise StorageUnreachable("the third")
        if number > 3 and output.failed.wait(30):
            raise RuntimeError("stopped")

    slots = Slots(2)
    stock = Stock(10, slots, put)
    with pytest.raises(StorageUnreachable, match="the third"):
        Crew(Bounds.of(2, adapts=True), slots, output).run(stock.work, lambda: not stock.loads.empty())


def test_what_slots_measure_is_the_share_of_their_time_and_what_was_made() -> None:
    times = iter([0.0, 1.0, 3.0, 4.0, 4.0, 8.0, 9.0, 9.0])
    slots = Slots(2, clock=lambda: next(times))
    assert list(slots.making(iter([b"four"]))) == [b"four"]
    # Two seconds for the piece, none for the end, of two slots in eight seconds.
    measured = slots.measured()
    assert measured == Measured(2 / 8 / 2, 4 / 8)
    assert slots.measured() == Measured(0.0, 0.0)


# ---- streams


def test_what_a_server_sends_passes_by_a_lane_whose_worker_waits_for_the_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, file = 8192, cast(StreamedFile, SimpleNamespace(path="base/5/1"))
    monkeypatch.setattr(stream, "_QUEUE_CHUNKS", 2)
    monkeypatch.setattr(stream, "_PATIENCE_SECONDS", 0.01)
    output = cast(
        Output, SimpleNamespace(failed=threading.Event(), observe=silent(), run_bytes=lambda _file: run, known=None)
    )
    lanes = stream._Lanes(2, output)
    waits, works = lanes._lanes
    arrived: list[object] = []

    def work() -> None:
        while (message := works._next(output)) is not None:
            arrived.append(message)

    worker = threading.Thread(target=work)
    worker.start()
    sending = stream._Sending(0, file, lanes, output, cast(TokenBucket, None))
    for number in range(20):
        sending.send(memoryview(bytes([number]) * run))
    sending.end()
    lanes.end()
    worker.join(30)
    chunks = [message for message in [*waits._messages, *arrived] if isinstance(message, bytes) and message]
    begins = [message for message in arrived if isinstance(message, tuple)]
    assert [chunk[0] for chunk in chunks] == list(range(20))
    assert waits.waiting == 2
    assert begins[0] == ("base/5/1", 2 * run, run)
    assert list(waits._messages)[-2:] == [b"", None], "its extent ended, and so will it"
