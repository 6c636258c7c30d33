"""Comparing a cluster's files with the prior: what is taken over, and what has to be stored.

First pass of an incremental copy on the cluster's own host. It decides by digests of bytes that it read itself; the
second pass reads what differs again and stores what lies there then. Both are moments between the backup's start and
stop, and replay makes them one: a page may be copied at any of them.

A cluster may have a million files, so files are numbers in arrays until one is looked at, and then it is forgotten.
"""

from __future__ import annotations

import os
import random
import threading
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from seawall.backup import changes
from seawall.backup.changes import (
    Known,
    PriorFile,
    Seen,
    Span,
    Times,
    complement,
    unchanged_by_times,
)
from seawall.backup.differences import changed_spans, stretches
from seawall.backup.load import Pieces
from seawall.backup.output import Output, run_together, times_of
from seawall.backup.reading import opened
from seawall.backup.told import Told
from seawall.codec.runs import DIGEST_BYTES, digests_of
from seawall.events import Advanced, Noticed
from seawall.postgres.scan import CopyEntry
from seawall.postgres.summaries import Runs
from seawall.repository.blocks import FileBlocks
from seawall.storage.wrappers import TokenBucket

_PIECE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SAMPLED_RUNS = 256
# How often files are drawn to come to so many runs.
_DRAWS = 16
_WRITING_SECONDS = 0.005


class _Files:
    """Some of the listed files, by number, with their sizes: sixteen bytes for each."""

    def __init__(self) -> None:
        self.numbers, self._ends = array("Q"), array("Q")

    def add(self, number: int, size: int) -> None:
        self.numbers.append(number)
        self._ends.append(self.total_bytes + size)

    @property
    def total_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def drawn(self, chance: random.Random) -> Iterator[int]:
        """Numbers drawn at random without an end, a file as likely as it is large; none where all are empty."""
        while self.total_bytes:
            yield self.numbers[bisect_right(self._ends, chance.randrange(self.total_bytes))]

    def largest_first(self) -> Iterator[int]:
        """All of them: what takes longest is begun first, so that all readers end at about the same time."""
        ends = np.array(self._ends, np.int64)
        sizes = ends.copy()
        sizes[1:] -= ends[:-1]
        return (self.numbers[place] for place in np.argsort(-sizes, kind="stable"))


@dataclass
class _Suspect:
    """A file that is in the prior and may have changed since: its digests, as far as it was read.

    There are as many at once as are being read. `reach` is how much of it there is to compare; what was appended since
    is stored without. `told` are the runs that have to be read, None for all.
    """

    number: int
    entry: CopyEntry
    known: PriorFile
    told: Runs | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    unread: int = 0
    vanished: bool = False

    @property
    def run_bytes(self) -> int:
        return self.known.blocks.run_bytes

    @property
    def reach(self) -> int:
        return min(self.entry.size, self.known.entry.size_bytes)

    @property
    def pieces(self) -> Iterator[Span]:
        step = max(_PIECE_BYTES, self.run_bytes)
        for offset in range(0, max(self.reach, 1), step):
            yield Span(offset, min(step, self.reach - offset))

    def stretches(self, piece: Span) -> Iterator[tuple[Span, bool]]:
        """The parts of a piece to read, and those to take the prior's digests of."""
        if self.told is None:
            yield piece, True
        else:
            length, end = self.run_bytes, piece.offset + piece.length
            first = piece.offset // length
            yield from stretches(self.told[first : -(-end // length)], length, end, first)


class Comparison:
    """One cluster compared with a prior.

    Args:
        listing: the cluster's entries.
        output: told what is taken over.
        reread: compare also files whose times say that nothing was written to them.
        told: what the server says changed; the rest of files that were written to is not read either.
    """

    def __init__(
        self,
        listing: Sequence[CopyEntry],
        prior: Known,
        output: Output,
        *,
        workers: int,
        bucket: TokenBucket,
        reread: bool,
        told: Told | None = None,
    ) -> None:
        self._listing, self._prior, self._output, self._told = listing, prior, output, told
        self._workers, self._bucket, self._reread = workers, bucket, reread
        # The same sample whenever the same backup is looked at again.
        self._random = random.Random(str(output.writer.label))  # noqa: S311 - a sample, no secret
        self._pieces = Pieces(listing)

    def parts(self) -> Pieces:
        """What has to be stored of all files but pg_control; all else is taken over."""
        same, suspects = self._by_times()
        if self._deceives(same):
            # Who writes past the times of files may write past WAL as well.
            self._told = None
            for number in same.numbers:
                suspects.add(number, self._listing[number].size)
        else:
            for number in same.numbers:
                self._output.keep_whole(number)
            self._output.observe.hear(Advanced("copy", same.total_bytes))
        if self._told is not None:
            self._doubt(self._told, suspects)
        self._read(suspects)
        self._pieces.sort()
        return self._pieces

    def _by_times(self) -> tuple[_Files, _Files]:
        """Files to which nothing was written by their times, and those to read; what is new is to be stored."""
        same, suspects = _Files(), _Files()
        for number, entry in enumerate(self._listing):
            if entry.kind != "file" or entry.is_control:
                continue
            seen = self._prior.seen(entry.path)
            if seen is None:
                self._pieces.add(number, 0, entry.size)
            else:
                (same if self._is_same(entry, seen) else suspects).add(number, entry.size)
        return same, suspects

    def _is_same(self, entry: CopyEntry, seen: Seen) -> bool:
        if self._reread or entry.size != seen.stored_bytes:
            return False
        listed_at_ns = self._prior.listed_at_ns
        return unchanged_by_times(times_of(entry), seen.times, listed_at_ns, settle_ns=changes.SETTLE_NS)

    def _suspect(self, number: int) -> _Suspect | None:
        """A file with all that the prior knows of it; None if its parts cannot be told apart there."""
        entry = self._listing[number]
        known = self._prior.get(entry.path)
        if known is None:
            return None
        # WAL tells nothing of a file that was put in the place of another: a copied or exchanged data directory.
        is_told = self._told is not None and entry.inode == known.blocks.inode
        return _Suspect(number, entry, known, self._told.runs(entry, known) if self._told and is_told else None)

    # ---- files that are not read

    def _deceives(self, same: _Files) -> bool:
        """Whether a file has other content although its times say that nothing was written to it."""
        chosen = Counter(islice(same.drawn(self._random), _SAMPLED_RUNS))
        # One look-up for each file, however many of its runs were drawn: large ones are drawn most.
        for number, drawn in chosen.items():
            entry = self._listing[number]
            known = self._prior.blocks(entry.path)
            if known.runs and any(
                self._is_other(entry, known, self._random.randrange(known.runs)) for _ in range(drawn)
            ):
                self._output.observe.hear(
                    Noticed(
                        "critical",
                        "times-deceive",
                        f"{entry.path} changed without a change of its times; all files are read and compared",
                    )
                )
                return True
        return False

    def _is_other(self, entry: CopyEntry, known: FileBlocks, run: int) -> bool:
        length = known.run_bytes
        descriptor = opened(entry)
        if descriptor < 0:
            return False
        try:
            found = os.pread(descriptor, min(length, entry.size - run * length), run * length)
            self._bucket.take(len(found))
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # What was written since the files were listed is replayed, and shows in the times by now.
        if Times(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) != times_of(entry):
            return False
        return digests_of(found, length) != known.digests[run * DIGEST_BYTES : (run + 1) * DIGEST_BYTES]

    # ---- runs that are not read

    def _doubt(self, told: Told, suspects: _Files) -> None:
        """Compare a sample of the runs that the server calls unchanged, and believe nothing if one proves it wrong."""
        left = _SAMPLED_RUNS
        for _ in range(_DRAWS):
            for number, drawn in Counter(islice(suspects.drawn(self._random), left)).items():
                each = self._suspect(number)
                # Of some files nothing is told, and these are read anyway.
                if each is None or each.told is None:
                    continue
                left -= drawn
                if any(self._is_wrong(told, each, each.told) for _ in range(drawn)):
                    message = f"WAL summaries say nothing of a change in {each.entry.path}; all of its kind is read"
                    self._output.observe.hear(Noticed("critical", "summaries-wrong", message))
                    self._told = None
                    return

    def _is_wrong(self, told: Told, each: _Suspect, runs: Runs) -> bool:
        run = self._random.randrange(len(runs))
        return not runs[run] and self._is_missed(told, each, run)

    def _is_missed(self, told: Told, each: _Suspect, run: int) -> bool:
        length = each.run_bytes
        span = Span(run * length, min(length, each.entry.size - run * length))
        found = self._pread(each, span)
        if found is None or digests_of(found, length) == _digests_of_span(each.known.blocks, span):
            return False
        time.sleep(_WRITING_SECONDS)  # so that a write in progress ends
        return self._pread(each, span) == found and told.contradicts(found)

    def _pread(self, each: _Suspect, span: Span) -> bytes | None:
        """A span as it lies there, None where the file is gone or shorter by now."""
        descriptor = opened(each.entry)
        if descriptor < 0:
            return None
        try:
            found = os.pread(descriptor, span.length, span.offset)
        finally:
            os.close(descriptor)
        self._bucket.take(len(found))
        return found if len(found) == span.length else None

    # ---- files that are read

    def _read(self, suspects: _Files) -> None:
        waiting, lock = self._waiting(suspects), threading.Lock()

        def work() -> None:
            buffer = memoryview(bytearray(_READ_BYTES))
            while True:
                with lock:
                    suspect, piece = next(waiting, (None, None))
                if suspect is None or piece is None:
                    return
                self._digest(suspect, piece, buffer)
                self._count(suspect)

        run_together([work] * self._workers, self._output)

    def _waiting(self, suspects: _Files) -> Iterator[tuple[_Suspect, Span]]:
        """Pieces to read, each made when somebody is there to read it."""
        for number in suspects.largest_first():
            suspect = self._suspect(number)
            if suspect is None:
                self._store_whole(number)
                continue
            pieces = list(suspect.pieces)
            # Before the first is given out: whoever reads the last one decides.
            suspect.unread = len(pieces)
            for piece in pieces:
                yield suspect, piece

    def _store_whole(self, number: int) -> None:
        with self._output.lock:
            self._pieces.add(number, 0, self._listing[number].size)

    def _digest(self, suspect: _Suspect, piece: Span, buffer: memoryview) -> None:
        descriptor = opened(suspect.entry)
        if descriptor < 0:
            suspect.vanished = True
            return
        try:
            found = b"".join(self._digests(descriptor, suspect, piece, buffer))
        finally:
            os.close(descriptor)
        suspect.digests[piece.offset] = found

    def _digests(self, descriptor: int, suspect: _Suspect, piece: Span, buffer: memoryview) -> Iterator[bytes]:
        for span, wanted in suspect.stretches(piece):
            if not wanted:
                yield _digests_of_span(suspect.known.blocks, span)
                continue
            end = span.offset + span.length
            for offset in range(span.offset, end, len(buffer)):
                self._output.go_on()
                part = buffer[: min(len(buffer), end - offset)]
                _fill(descriptor, part, offset)
                self._bucket.take(len(part))
                yield digests_of(part, suspect.run_bytes)

    def _count(self, suspect: _Suspect) -> None:
        """One piece more of a file was read; after the last, decide what of it has to be stored."""
        with self._output.lock:
            suspect.unread -= 1
            if suspect.unread:
                return
        if suspect.vanished:
            self._output.vanished.add(suspect.entry.path)
        else:
            self._decide(suspect)

    def _decide(self, suspect: _Suspect) -> None:
        entry, known = suspect.entry, suspect.known
        digests = b"".join(suspect.digests[offset] for offset in sorted(suspect.digests))
        spans = changed_spans(known, digests, entry.size)
        if spans and not entry.is_relation:
            # Such a file may be replaced by another as a whole: of two of them no third one may be made.
            spans = (Span(0, entry.size),)
        kept = complement(spans, entry.size)
        with self._output.lock:
            if not spans and entry.size == known.entry.size_bytes:
                self._output.keep_whole(suspect.number)
            elif kept:
                self._output.keep(entry, known, kept)
            for span in spans:
                self._pieces.add(suspect.number, span.offset, span.length)
        self._output.observe.hear(Advanced("copy", sum(span.length for span in kept)))


def _digests_of_span(known: FileBlocks, span: Span) -> bytes:
    length = known.run_bytes
    first, end = span.offset // length, -(-(span.offset + span.length) // length)
    return known.digests[first * DIGEST_BYTES : end * DIGEST_BYTES]


def _fill(descriptor: int, part: memoryview, offset: int) -> None:
    """Read all of a part; what lies behind the end of a file that became shorter reads as zeros."""
    done = 0
    while done < len(part):
        got = os.preadv(descriptor, [part[done:]], offset + done)
        if got == 0:
            part[done:] = bytes(len(part) - done)
            return
        done += got
