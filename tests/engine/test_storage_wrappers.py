"""Retry, bandwidth, concurrency, read-only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import (
    Cancelled,
    ObjectExists,
    StorageBusy,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.events import Cancel
from seawall.storage.base import Bytes, Replayable, Storage, read
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import (
    Limited,
    ReadOnly,
    Retrying,
    RetryPolicy,
    Throttled,
    TokenBucket,
    cancellable_sleep,
    jitter,
)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.seconds += seconds


def retrying(
    *script: Fault, policy: RetryPolicy | None = None, inner: Storage | None = None
) -> tuple[Retrying, Faulty, Clock]:
    clock = Clock()
    faulty = Faulty(inner or MemoryStorage(), script, sleep=clock.sleep)
    return Retrying(faulty, policy, sleep=clock.sleep, randomness=lambda: 1.0), faulty, clock


def puts(faulty: Faulty) -> int:
    return faulty.calls.count(("put", "one"))


# -- retry


def test_pauses_double_up_to_the_longest_and_end_with_the_last_attempt() -> None:
    policy = RetryPolicy(attempts=6, first_delay_seconds=1, longest_delay_seconds=5, budget_seconds=100)
    storage, faulty, clock = retrying(Fault(Trouble.FAIL_BEFORE, "stat", times=0), policy=policy)
    with pytest.raises(StorageUnreachable):
        storage.stat("one")
    assert clock.naps == [1, 2, 4, 5, 5]
    assert len(faulty.calls) == 6


def test_no_pause_is_begun_that_the_budget_cannot_pay() -> None:
    policy = RetryPolicy(attempts=100, first_delay_seconds=1, longest_delay_seconds=100, budget_seconds=10)
    storage, _, clock = retrying(Fault(Trouble.FAIL_BEFORE, "stat", times=0), policy=policy)
    with pytest.raises(StorageUnreachable):
        storage.stat("one")
    assert clock.naps == [1, 2, 4]


@given(randomness=st.floats(0, 1, exclude_max=True), failures=st.integers(1, 8))
def test_every_pause_lies_between_half_and_the_whole_delay(randomness: float, failures: int) -> None:
    clock = Clock()
    faulty = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "now", times=failures)])
    policy = RetryPolicy(attempts=failures + 1, first_delay_seconds=1, longest_delay_seconds=16, budget_seconds=1e6)
    Retrying(faulty, policy, sleep=clock.sleep, randomness=lambda: randomness).now()
    delays = [min(16, 2**number) for number in range(failures)]
    assert all(delay / 2 <= nap <= delay for nap, delay in zip(clock.naps, delays, strict=True))


def test_jitter_is_a_fraction_that_varies() -> None:
    drawn = {jitter() for _ in range(100)}
    assert len(drawn) > 50
    assert all(0 <= number < 1 for number in drawn)


@pytest.mark.parametrize("error", [StorageFull, StorageDenied])
def test_what_a_retry_cannot_help_is_raised_at_once(error: type[StorageError]) -> None:
    storage, faulty, clock = retrying(Fault(Trouble.FAIL_BEFORE, "put", error=error))
    with pytest.raises(error):
        storage.put("one", [b"1"])
    assert (clock.naps, puts(faulty)) == ([], 1)


def test_chunks_that_can_be_replayed_are_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    storage, faulty, _ = retrying(Fault(Trouble.CUT_SHORT, "put", times=2, after_bytes=4))
    with caplog.at_level(logging.WARNING):
        storage.put("one", Replayable(lambda: iter([b"abc", b"def"])))
    assert read(storage, "one") == b"abcdef"
    assert puts(faulty) == 3
    assert "put one failed" in caplog.text


def test_an_iterator_that_was_begun_is_not_sent_again() -> None:
    storage, faulty, clock = retrying(Fault(Trouble.CUT_SHORT, "put", after_bytes=4))
    with pytest.raises(StorageUnreachable):
        storage.put("one", iter([b"abc", b"def"]))
    assert (clock.naps, puts(faulty)) == ([], 1)
    assert list(storage.list()) == []


def test_an_iterable_around_a_generator_is_not_sent_again_from_its_middle() -> None:
    class Counted:
        def __init__(self, chunks: Iterator[bytes]) -> None:
            self.chunks = chunks

        def __iter__(self) -> Iterator[bytes]:
            yield from self.chunks

    storage, faulty, _ = retrying(Fault(Trouble.CUT_SHORT, "put", after_bytes=4))
    with pytest.raises(StorageUnreachable):
        storage.put("one", Counted(iter([b"abc", b"def", b"ghi"])))
    assert puts(faulty) == 1
    assert list(storage.list()) == []


def test_an_iterator_from_which_nothing_was_taken_is_sent_again() -> None:
    storage, faulty, _ = retrying(Fault(Trouble.FAIL_BEFORE, "put", times=2))
    storage.put("one", iter([b"abc", b"def"]))
    assert read(storage, "one") == b"abcdef"
    assert puts(faulty) == 3


def test_a_put_whose_answer_was_lost_succeeds_because_identical_bytes_are_there() -> None:
    storage, faulty, _ = retrying(Fault(Trouble.FAIL_AFTER, "put"))
    stat = storage.put("one", [b"abc", b"def"])
    assert stat == faulty.inner.stat("one")
    assert puts(faulty) == 2


def test_a_put_whose_answer_was_lost_does_not_claim_what_another_writer_stored() -> None:
    inner = MemoryStorage()

    class Taken(Faulty):
        def put(self, name: str, chunks: Iterator[Bytes]) -> object:  # type: ignore[override]
            if not self.calls:
                list(chunks)
                inner.put(name, [b"of another writer"])
                self.calls.append(("put", name))
                raise StorageUnreachable("the answer was lost")
            return super().put(name, chunks)

    storage = Retrying(Taken(inner), sleep=lambda _seconds: None)
    for content in (b"of somebody else!", b"short"):
        with pytest.raises(ObjectExists):
            storage.put("one", [content])
    assert read(inner, "one") == b"of another writer"


def test_an_object_that_was_there_before_the_first_attempt_exists_even_if_identical() -> None:
    storage, _, _ = retrying(Fault(Trouble.FAIL_BEFORE, "put", skip=1))
    storage.put("one", [b"abc"])
    with pytest.raises(ObjectExists):
        storage.put("one", [b"abc"])


def test_an_error_of_the_source_is_not_retried_even_if_it_calls_itself_retryable() -> None:
    storage, faulty, clock = retrying()

    def chunks() -> Iterator[bytes]:
        yield b"abc"
        raise StorageUnreachable("the source, another storage, is gone")

    with pytest.raises(StorageUnreachable, match="the source"):
        storage.put("one", Replayable(chunks))
    assert (clock.naps, puts(faulty)) == ([], 1)


def test_a_get_goes_on_where_it_broke_off() -> None:
    content = bytes(range(256)) * 20_000
    cuts = [Fault(Trouble.CUT_SHORT, "get", skip=n, after_bytes=size) for n, size in enumerate((0, 1, 2_000_000, 7))]
    storage, faulty, _ = retrying(*cuts)
    storage.put("one", [content])
    assert b"".join(storage.get("one", 100, 5_000_000)) == content[100:5_000_100]
    assert faulty.calls.count(("get", "one")) == 5


def test_progress_earns_new_attempts_and_its_lack_does_not() -> None:
    broken = Fault(Trouble.CUT_SHORT, "get", times=9, after_bytes=10)
    storage, _, _ = retrying(broken, policy=RetryPolicy(attempts=2))
    storage.put("one", [b"x" * 95])
    assert b"".join(storage.get("one")) == b"x" * 95
    stuck = Fault(Trouble.CUT_SHORT, "get", times=0, after_bytes=0)
    storage, _, _ = retrying(stuck, policy=RetryPolicy(attempts=2))
    storage.put("one", [b"x" * 95])
    with pytest.raises(StorageUnreachable):
        list(storage.get("one"))


def test_a_list_that_broke_off_yields_every_name_once() -> None:
    inner = MemoryStorage()
    for number in range(10):
        inner.put(f"n{number}", [b""])

    class Breaking(Faulty):
        def list(self, prefix: str = "") -> Iterator[object]:  # type: ignore[override]
            self.calls.append(("list", prefix))
            for count, stat in enumerate(inner.list(prefix)):
                if count == 3 * len(self.calls):
                    raise StorageUnreachable("the page could not be fetched")
                yield stat

    storage = Retrying(Breaking(inner), sleep=lambda _seconds: None)
    assert [stat.name for stat in storage.list()] == [f"n{number}" for number in range(10)]


def test_waiting_for_the_next_attempt_can_be_cancelled() -> None:
    cancel = Cancel()
    faulty = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, times=0)])
    policy = RetryPolicy(first_delay_seconds=3600, longest_delay_seconds=3600, budget_seconds=1e6)
    storage = Retrying(faulty, policy, sleep=cancellable_sleep(cancel))
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        storage.stat("one")


# -- bandwidth


@given(
    rate=st.integers(1_000, 10_000_000),
    sizes=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=30),
)
def test_bytes_take_the_time_that_the_rate_gives_them(rate: int, sizes: list[int]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock=clock, sleep=clock.sleep)
    for size in sizes:
        bucket.take(size)
    assert clock.seconds == pytest.approx(sum(sizes) / rate, rel=1e-3, abs=1e-6)


def test_a_rate_of_zero_is_no_limit() -> None:
    clock = Clock()
    bucket = TokenBucket(0, clock=clock, sleep=clock.sleep)
    bucket.take(10**12)
    assert clock.seconds == 0


def test_after_a_pause_no_more_than_the_burst_passes_at_once() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, burst=500, clock=clock, sleep=clock.sleep)
    clock.seconds += 3600
    bucket.take(500)
    assert clock.seconds == 3600
    bucket.take(1000)
    assert clock.seconds == pytest.approx(3601)


def test_a_new_rate_holds_for_those_who_wait_already() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock=clock)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.seconds >= 1 and bucket.rate == 10:
            bucket.set_rate(1000)

    bucket._sleep = sleep
    bucket.take(1010)
    assert clock.seconds == pytest.approx(2, rel=0.1)
    bucket.set_rate(0)
    bucket.take(10**9)
    assert clock.seconds == pytest.approx(2, rel=0.1)


def test_what_was_cancelled_is_not_charged_to_others() -> None:
    clock = Clock()
    cancel = Cancel()
    bucket = TokenBucket(1000, burst=0, clock=clock, sleep=cancellable_sleep(cancel))
    cancel.set()
    with pytest.raises(Cancelled):
        bucket.take(1_000_000)
    bucket._sleep = clock.sleep
    bucket.take(1000)
    assert clock.seconds == pytest.approx(1)


@pytest.mark.parametrize("streams", [1, 4])
def test_reads_and_writes_keep_the_bandwidth_in_real_time(streams: int) -> None:
    rate, size = 8_000_000, 4_000_000 // streams
    storage = Throttled(MemoryStorage(), TokenBucket(rate))

    def write(number: int) -> None:
        storage.put(f"n{number}", [b"x" * 100_000] * (size // 100_000))

    def seconds(work: object) -> float:
        begun = time.monotonic()
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(work, range(streams)))  # type: ignore[arg-type]
        return time.monotonic() - begun

    ideal = size * streams / rate
    # Only the lower bound is the bucket's promise; how late a loaded machine wakes us is not.
    assert seconds(write) >= ideal * 0.9
    assert seconds(lambda number: list(storage.get(f"n{number}"))) >= ideal * 0.6


# -- concurrency


def test_no_more_requests_than_places_are_with_the_driver() -> None:
    inside, most = [0], [0]
    lock = threading.Lock()

    def at(point: str, _name: str) -> None:
        with lock:
            inside[0] += {"stat.before": 1, "stat.after": -1}.get(point, 0)
            most[0] = max(most[0], inside[0])

    inner = MemoryStorage()
    inner.put("one", [b"1"])
    storage = Limited(Faulty(inner, [Fault(Trouble.HANG, times=0, seconds=0.02)], at=at), 3)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(storage.stat, ["one"] * 30))
    assert most[0] == 3
    assert inside[0] == 0


def test_a_producer_that_waits_for_another_request_does_not_lock_up_the_only_place() -> None:
    storage = Limited(MemoryStorage(), 1)
    storage.put("one", [b"1"])

    def chunks() -> Iterator[bytes]:
        yield from storage.get("one")
        yield read(storage, "one")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(storage.put, "two", chunks()).result(timeout=20)
    assert read(storage, "two") == b"11"


def test_a_failed_or_abandoned_request_gives_its_place_back() -> None:
    storage = Limited(Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "get")]), 1)

    def chunks() -> Iterator[bytes]:
        yield b"abc"
        raise ValueError

    with pytest.raises(ValueError):
        storage.put("one", chunks())
    storage.put("one", [b"x" * 3_000_000])
    with pytest.raises(StorageUnreachable):
        list(storage.get("one"))
    assert next(storage.get("one"))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(storage.stat, "one").result(timeout=20).size_bytes == 3_000_000


# -- read-only


def test_a_read_only_storage_reads_and_refuses_every_change() -> None:
    inner = MemoryStorage()
    inner.put("one", [b"1"])
    storage = ReadOnly(inner)
    with pytest.raises(StorageDenied):
        storage.put("two", [b"2"])
    with pytest.raises(StorageDenied):
        storage.delete("one")
    assert read(storage, "one") == b"1"
    assert [stat.name for stat in storage.list()] == ["one"]
    assert storage.children("") == ("one",)


def test_a_request_to_slow_down_is_obeyed_and_is_no_failure() -> None:
    pauses: list[float] = []
    busy = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "put", times=12, error=StorageBusy)])
    storage = Retrying(busy, RetryPolicy(attempts=2), sleep=pauses.append, randomness=lambda: 1.0)
    storage.put("one", [b"1"])
    assert len(pauses) == 12
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == 15.0


def test_a_storage_that_is_busy_for_ever_is_given_up_when_the_budget_is_spent() -> None:
    pauses: list[float] = []
    busy = Faulty(MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "stat", times=0, error=StorageBusy)])
    with pytest.raises(StorageBusy):
        Retrying(busy, RetryPolicy(busy_budget_seconds=60.0), sleep=pauses.append).stat("one")
    assert 40 < sum(pauses) <= 60


def test_what_was_repeated_below_until_patience_ended_is_not_repeated_above() -> None:
    calls: list[str] = []
    faulty = Faulty(
        MemoryStorage(), [Fault(Trouble.FAIL_BEFORE, "stat", times=0)], at=lambda point, _name: calls.append(point)
    )
    inner = Retrying(faulty, RetryPolicy(attempts=3), sleep=lambda _seconds: None)
    with pytest.raises(StorageUnreachable) as caught:
        Retrying(inner, RetryPolicy(attempts=5), sleep=lambda _seconds: None).stat("one")
    assert caught.value.exhausted
    assert calls.count("stat.before") == 3
