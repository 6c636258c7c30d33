"""Every parser of bytes from outside: whatever comes in, only errors of ours come out, and memory stays bounded."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaigns import fuzz
from campaigns.sample import QuickRing

# Inputs are at most some tens of KiB; a frame that is opened may hold 2 MiB, and be copied once or twice.
MOST_BYTES = 24 * 1024 * 1024


@pytest.fixture(scope="module")
def parsers(ring: QuickRing) -> Sequence[fuzz.Parser]:
    return fuzz.parsers(ring)


def test_every_parser_reads_what_was_written(parsers: Sequence[fuzz.Parser]) -> None:
    # Documents of the sample carry their own names, and this parser is told another.
    unnamed = [parser for parser in parsers if parser.name not in ("document", "recover.py document")]
    ends = {(parser.name, parser.try_one(seed)) for parser in unnamed for seed in parser.seeds}
    assert {end for _, end in ends} == {"read"}, sorted(end for end in ends if end[1] != "read")
    assert len(parsers) > 25


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_input_brings_out_errors_of_ours_only(parsers: Sequence[fuzz.Parser], data: st.DataObject) -> None:
    parser = data.draw(st.sampled_from(parsers), label="parser")
    change = data.draw(st.sampled_from(parser.changes), label="change")
    seed = data.draw(st.sampled_from(parser.seeds), label="seed")
    changed = change(seed, data.draw(st.randoms(use_true_random=False), label="randomness"))
    end = parser.try_one(changed)
    assert not end.startswith("!"), end


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000), data=st.data())
def test_noise_brings_out_errors_of_ours_only(
    parsers: Sequence[fuzz.Parser], content: bytes, data: st.DataObject
) -> None:
    parser = data.draw(st.sampled_from([p for p in parsers if fuzz.some_bytes in p.changes]), label="parser")
    end = parser.try_one(content)
    assert not end.startswith("!"), end


def test_many_inputs_of_each_parser_by_a_seed(parsers: Sequence[fuzz.Parser], ring: QuickRing, seed: int) -> None:
    tally = fuzz.run(ring, seed, 150, parsers)
    assert tally.wrong == []
    assert tally.total() > 4000


def test_no_input_takes_much_memory(parsers: Sequence[fuzz.Parser], seed: int) -> None:
    randomness = random.Random(seed)
    tracemalloc.start()
    try:
        for parser in parsers:
            for changed in fuzz.inputs(parser, 12, randomness):
                parser.try_one(changed)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
