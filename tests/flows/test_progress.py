from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.events import Advanced, Began, Ended, Noticed
from tasks.progress import Progress, Snapshot, artifact_key, in_units


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_percent_rate_and_time_left_follow_from_bytes_and_seconds():
    clock = Clock()
    progress = Progress(clock)
    progress.hear(Began("copy", 1000))
    progress.hear(Advanced("copy", 250, 100))
    clock.seconds = 5.0
    snapshot = progress.snapshot()
    assert (snapshot.percent, snapshot.bytes_per_second, snapshot.seconds_left) == (25.0, 50.0, 15.0)
    assert snapshot.stored_bytes == 100
    assert str(snapshot) == "copy: 250 B of 1000 B, 50 B/s, 15 s left"


def test_an_estimate_that_was_too_small_never_says_that_it_is_done():
    assert Snapshot("copy", 2000, 0, 1000, 1.0).percent == 99.0
    assert Snapshot("copy", 2000, 0, 1000, 1.0).seconds_left is None


def test_nothing_is_promised_while_the_total_is_unknown():
    snapshot = Snapshot("wal", 10, 0, 0, 1.0)
    assert snapshot.percent == 0.0
    assert snapshot.seconds_left is None


@given(plain=st.integers(0, 2**60), total=st.integers(0, 2**60), seconds=st.floats(0, 1e9))
def test_percent_stays_between_0_and_99_and_text_never_fails(plain, total, seconds):
    snapshot = Snapshot("copy", plain, 0, total, seconds)
    assert 0.0 <= snapshot.percent <= 99.0
    assert str(snapshot)


def test_events_from_many_threads_all_count():
    progress = Progress()
    threads = [
        threading.Thread(target=lambda: [progress.hear(Advanced("copy", 1, 2)) for _ in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (progress.snapshot().plain_bytes, progress.snapshot().stored_bytes) == (8000, 16000)


def test_lines_are_taken_once_with_the_severity_of_what_was_noticed():
    progress = Progress(Clock())
    progress.hear(Began("copy", 1))
    progress.hear(Noticed("critical", "bad-pages", "3 corrupt pages"))
    progress.hear(Ended("copy", 1.25))
    assert progress.take_lines() == [
        (logging.INFO, "copy began"),
        (logging.CRITICAL, "3 corrupt pages"),
        (logging.INFO, "copy ended after 1.2 s"),
    ]
    assert progress.take_lines() == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**5, "5120.0 TiB")]
)
def test_sizes_are_told_in_powers_of_1024(count, text):
    assert in_units(count) == text


def test_keys_of_artifacts_have_only_what_prefect_takes():
    assert artifact_key("restore-test-My_Source é") == "restore-test-my-source--"
