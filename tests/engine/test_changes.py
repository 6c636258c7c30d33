"""What an incremental stores and what it takes over: whatever happened to a file, its extents give its bytes back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.backup.changes import (
    SETTLE_NS,
    PriorFile,
    Span,
    Times,
    complement,
    joined_digests,
    kept_extents,
    unchanged_by_times,
)
from seawall.backup.differences import changed_spans, differing_runs
from seawall.backup.stream import in_runs
from seawall.codec import combined
from seawall.codec.runs import DIGEST_BYTES, digests_of
from seawall.model import Extent, FileEntry
from seawall.repository.blocks import FileBlocks

RUN = 8192
PATH = "base/5/16384"


@dataclass
class Shelf:
    """Objects of backups, as plain bytes, and what each backup of one file wrote down."""

    objects: dict[str, bytes] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def store(self, content: bytes, spans: tuple[Span, ...], cut: int) -> list[tuple[int, Extent, bytes]]:
        """Put spans into objects, in extents of at most `cut` bytes."""
        stored = []
        for span in spans:
            for at in range(span.offset, span.offset + span.length, cut):
                piece = content[at : min(at + cut, span.offset + span.length)]
                name, digests = f"object-{next(self.numbers)}", digests_of(piece, RUN)
                # What lies before an extent in its object is some other file's.
                self.objects[name] = b"other" + piece
                stored.append((at, Extent(name, 5, len(piece), combined(digests), RUN), digests))
        return stored

    def backup(self, content: bytes, prior: PriorFile | None, cut: int) -> PriorFile:
        digests = digests_of(content, RUN)
        spans = changed_spans(prior, digests, len(content)) if prior else complement((Span(0, 0),), len(content))
        kept = complement(spans, len(content))
        stored = self.store(content, spans, cut)
        extents = [*kept_extents(prior, kept), *((at, e) for at, e, _ in stored)] if prior else [s[:2] for s in stored]
        joined = (
            joined_digests(prior, kept, [(at, d) for at, _, d in stored]) if prior else b"".join(s[2] for s in stored)
        )
        entry = FileEntry(PATH, "file", 0o600, len(content), extents=tuple(e for _, e in sorted(extents, key=_offset)))
        return PriorFile(entry, FileBlocks(PATH, len(content), 1, 1, 1, RUN, joined))

    def restored(self, file: PriorFile) -> bytes:
        return b"".join(self.objects[e.object][e.offset : e.offset + e.length] for e in file.entry.extents)


def _offset(row: tuple[int, Extent]) -> int:
    return row[0]


@st.composite
def changes(draw: st.DrawFn, content: bytes) -> bytes:
    """The file after some writes, and perhaps a truncation or growth, at any byte."""
    changed = bytearray(content)
    size = draw(st.one_of(st.just(len(content)), st.integers(0, 20 * RUN), st.integers(0, 20).map(lambda n: n * RUN)))
    changed = changed[:size].ljust(size, draw(st.sampled_from([b"\0", b"g"])))
    for _ in range(draw(st.integers(0, 4))):
        if size:
            at = draw(st.integers(0, size - 1))
            new = draw(st.binary(min_size=1, max_size=3))
            changed[at : at + len(new)] = new[: size - at]
    return bytes(changed)


@settings(deadline=None)
@given(st.data(), st.integers(0, 20 * RUN), st.sampled_from([RUN, 3 * RUN, 64 * RUN]))
def test_every_backup_of_a_chain_gives_the_file_back_as_it_was(data: st.DataObject, size: int, cut: int) -> None:
    content = b"".join(bytes([n % 256]) * RUN for n in range(21))[:size]
    shelf, file, known = Shelf(), None, []
    for _ in range(data.draw(st.integers(2, 5))):
        file = shelf.backup(content, file, cut)
        known.append((file, content))
        content = data.draw(changes(content))
    for file, expected in known:
        assert shelf.restored(file) == expected
        assert file.blocks.digests == digests_of(expected, RUN)
        assert file.blocks.describes(file.entry)
        for extent in file.entry.extents:
            piece = shelf.objects[extent.object][extent.offset : extent.offset + extent.length]
            assert extent.blake3 == combined(digests_of(piece, RUN))


@settings(deadline=None)
@given(st.data(), st.integers(1, 20 * RUN))
def test_what_is_stored_covers_every_byte_that_differs_and_nothing_that_was_not_touched(
    data: st.DataObject, size: int
) -> None:
    content = bytes(size)
    prior = Shelf().backup(content, None, 64 * RUN)
    after = data.draw(changes(content))
    spans = changed_spans(prior, digests_of(after, RUN), len(after))
    stored = {run for span in spans for run in range(span.offset // RUN, -(-(span.offset + span.length) // RUN))}
    runs = range(-(-len(after) // RUN))
    differing = {run for run in runs if after[run * RUN : (run + 1) * RUN] != content[run * RUN : (run + 1) * RUN]}
    assert differing <= stored
    if len(differing) < 0.7 * len(runs):
        assert stored == differing


def test_a_file_of_which_most_changed_is_stored_whole() -> None:
    content = bytes(10 * RUN)
    prior = Shelf().backup(content, None, 64 * RUN)
    after = b"x" * (7 * RUN) + bytes(3 * RUN)
    assert changed_spans(prior, digests_of(after, RUN), len(after)) == (Span(0, 10 * RUN),)


def test_adjacent_changed_runs_are_one_extent() -> None:
    content = bytes(20 * RUN)
    prior = Shelf().backup(content, None, 64 * RUN)
    after = bytes(3 * RUN) + b"x" * (2 * RUN) + bytes(15 * RUN)
    assert changed_spans(prior, digests_of(after, RUN), len(after)) == (Span(3 * RUN, 2 * RUN),)


@settings(deadline=None)
@given(st.data(), st.integers(1, 20 * RUN))
def test_a_file_that_passes_in_pieces_is_judged_as_one_that_is_seen_at_once(data: st.DataObject, size: int) -> None:
    prior = Shelf().backup(bytes(size), None, 64 * RUN)
    after = data.draw(changes(bytes(size)))
    digests, judged = digests_of(after, RUN), []
    cuts = sorted(data.draw(st.sets(st.integers(1, 20), max_size=4)))
    for first, end in itertools.pairwise([0, *cuts, 21]):
        piece = digests[first * DIGEST_BYTES : end * DIGEST_BYTES]
        judged += differing_runs(prior, piece, len(after), first).tolist()
    assert judged == differing_runs(prior, digests, len(after)).tolist()


@given(st.lists(st.binary(max_size=3 * RUN), max_size=6), st.sampled_from([RUN, 2 * RUN]))
def test_chunks_are_cut_between_runs_and_nothing_is_lost(chunks: list[bytes], run_bytes: int) -> None:
    pieces = [bytes(piece) for piece in in_runs(map(memoryview, chunks), run_bytes)]
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) % run_bytes == 0 for piece in pieces[:-1])


def test_a_short_last_run_is_never_taken_for_a_whole_one_whatever_its_digest_says() -> None:
    prior = Shelf().backup(bytes(RUN + 100), None, 64 * RUN)
    grown = differing_runs(prior, prior.blocks.digests, 2 * RUN)
    cut = differing_runs(prior, prior.blocks.digests, RUN + 50)
    assert (grown.tolist(), cut.tolist()) == ([False, True], [False, True])


def test_digests_of_another_number_of_bytes_are_refused() -> None:
    prior = Shelf().backup(bytes(2 * RUN), None, RUN)
    for digests in (bytes(DIGEST_BYTES), bytes(4 * DIGEST_BYTES), bytes(2 * DIGEST_BYTES + 1)):
        with pytest.raises(ValueError, match="do not describe"):
            changed_spans(prior, digests, 3 * RUN)


def test_what_was_appended_is_stored_without_being_compared_and_does_not_make_the_rest_be_stored_again() -> None:
    before = bytes(range(256)) * (2 * RUN // 256)
    prior = Shelf().backup(before, None, RUN)
    assert changed_spans(prior, digests_of(before, RUN), 20 * RUN) == (Span(2 * RUN, 18 * RUN),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "base/5/16385"},
        {"size_bytes": 3 * RUN},
        {"extents": (Extent("o", 0, 2 * RUN, "", 2 * RUN),)},
        {"extents": (Extent("o", 0, 1000, "", RUN), Extent("o", 1000, 2 * RUN - 1000, "", RUN))},
        {"extents": (Extent("o", 0, RUN, "", RUN),)},
    ],
    ids=["another path", "another size", "other runs", "an extent within a run", "a hole"],
)
def test_a_map_that_is_not_of_its_manifests_entry_is_told(wrong: dict[str, object]) -> None:
    file = Shelf().backup(bytes(2 * RUN), None, 64 * RUN)
    assert file.blocks.describes(file.entry)
    assert not file.blocks.describes(replace(file.entry, **wrong))  # type: ignore[arg-type]


LISTED = 10**18
OLD = LISTED - SETTLE_NS - 1
KNOWN = SAME = Times(RUN, OLD, OLD, 77)


def test_a_file_with_the_same_times_size_and_inode_is_not_read() -> None:
    assert unchanged_by_times(SAME, KNOWN, LISTED)


@pytest.mark.parametrize("member", ["size", "mtime_ns", "ctime_ns", "inode"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_that_differs_in_any_of_these_is_read(member: str, by: int) -> None:
    assert not unchanged_by_times(SAME._replace(**{member: getattr(SAME, member) + by}), KNOWN, LISTED)


@pytest.mark.parametrize("member", ["mtime_ns", "ctime_ns"])
@pytest.mark.parametrize("late", [LISTED - SETTLE_NS, LISTED, LISTED + 10**9], ids=["just before", "at", "after"])
def test_times_close_to_the_listing_of_the_prior_prove_nothing(member: str, late: int) -> None:
    same = SAME._replace(**{member: late})
    assert not unchanged_by_times(same, same, LISTED)


def test_times_that_nobody_knew_prove_nothing() -> None:
    assert not unchanged_by_times(Times(RUN, 0, 0, 0), Times(RUN, 0, 0, 0), LISTED)
