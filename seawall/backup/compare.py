"""Comparing a cluster's files with the prior: what is taken over, and what has to be stored.

First pass of an incremental copy on the cluster's own host. It decides by digests of bytes that it read itself; the
second pass reads what differs again and stores what lies there then. Both are moments between the backup's start and
stop, and replay makes them one: a page may be copied at any of them.
"""

from __future__ import annotations

import os
import queue
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from seawall.backup import changes
from seawall.backup.changes import (
    Known,
    PriorFile,
    Span,
    Times,
    complement,
    unchanged_by_times,
)
from seawall.backup.differences import changed_spans, stretches
from seawall.backup.load import Part
from seawall.backup.output import Output, run_together, times_of
from seawall.backup.reading import opened
from seawall.backup.told import Told
from seawall.codec.runs import DIGEST_BYTES, digests_of
from seawall.errors import Damaged
from seawall.events import Advanced, Noticed
from seawall.postgres.scan import CopyEntry
from seawall.postgres.summaries import Runs
from seawall.repository.blocks import FileBlocks
from seawall.storage.wrappers import TokenBucket

_PIECE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SAMPLED_RUNS = 256
_WRITING_SECONDS = 0.005


@dataclass
class _Suspect:
    """A file that is in the prior and may have changed since: its digests, as far as it was read.

    What the prior knows of it is looked up whenever it is needed: of all files at once that would fill the memory.
    `reach` is how much of it there is to compare; what was appended since is stored without. `told` are the runs that
    have to be read, None for all.
    """

    entry: CopyEntry
    run_bytes: int
    reach: int
    told: Runs | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    unread: int = 0
    vanished: bool = False

    @classmethod
    def of(cls, entry: CopyEntry, known: PriorFile) -> _Suspect:
        return cls(entry, known.blocks.run_bytes, min(entry.size, known.entry.size_bytes))

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
        output: told what is taken over.
        reread: compare also files whose times say that nothing was written to them.
        told: what the server says changed; the rest of files that were written to is not read either.
    """

    def __init__(
        self,
        prior: Known,
        output: Output,
        *,
        workers: int,
        bucket: TokenBucket,
        reread: bool,
        told: Told | None = None,
    ) -> None:
        self._prior, self._output, self._told = prior, output, told
        self._workers, self._bucket, self._reread = workers, bucket, reread
        # The same sample whenever the same backup is looked at again.
        self._random = random.Random(str(output.writer.label))  # noqa: S311 - a sample, no secret
        self._parts: list[Part] = []

    def parts(self, files: Sequence[CopyEntry]) -> list[Part]:
        """What has to be stored of files; all else is taken over."""
        self._parts = []
        same: list[CopyEntry] = []
        suspects: list[_Suspect] = []
        for entry in files:
            known = self._prior.get(entry.path)
            if known is None:
                self._parts.append(Part.whole(entry))
            elif self._is_same(entry, known):
                same.append(entry)
            else:
                suspects.append(_Suspect.of(entry, known))
        told = self._told
        if self._deceives(same):
            # Who writes past the times of files may write past WAL as well.
            suspects += [_Suspect.of(entry, self._known(entry)) for entry in same]
            same, told = [], None
        for entry in same:
            self._output.keep_whole(entry.path)
            self._output.observe.hear(Advanced("copy", entry.size))
        if told is not None:
            self._believe(told, suspects)
        self._read(suspects)
        return self._parts

    def _known(self, entry: CopyEntry) -> PriorFile:
        known = self._prior.get(entry.path)
        if known is None:
            raise Damaged(f"{entry.path!r} was known from before a moment ago and is not now")
        return known

    def _is_same(self, entry: CopyEntry, known: PriorFile) -> bool:
        if self._reread or entry.size != known.entry.size_bytes:
            return False
        listed_at_ns = self._prior.listed_at_ns
        return unchanged_by_times(times_of(entry), known.blocks, listed_at_ns, settle_ns=changes.SETTLE_NS)

    # ---- files that are not read

    def _deceives(self, same: Sequence[CopyEntry]) -> bool:
        """Whether a file has other content although its times say that nothing was written to it."""
        filled = [entry for entry in same if entry.size]
        if not filled:
            return False
        chosen = self._random.choices(filled, [entry.size for entry in filled], k=_SAMPLED_RUNS)
        # One look-up for each file, however many of its runs were drawn: large ones are drawn most.
        for entry, drawn in Counter(chosen).items():
            known = self._prior.blocks(entry.path)
            if any(self._is_other(entry, known, self._random.randrange(known.runs)) for _ in range(drawn)):
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

    def _believe(self, told: Told, suspects: Sequence[_Suspect]) -> None:
        """Have only those runs read that the server says changed, unless a sample of the others proves it wrong."""
        for each in suspects:
            known = self._known(each.entry)
            # WAL tells nothing of a file that was put in the place of another: a copied or exchanged data directory.
            if each.entry.inode == known.blocks.inode:
                each.told = told.runs(each.entry, known)
        sampled = [(each, each.told) for each in suspects if each.told is not None and each.entry.size]
        if not sampled:
            return
        for each, runs in self._random.choices(sampled, [each.entry.size for each, _ in sampled], k=_SAMPLED_RUNS):
            run = self._random.randrange(len(runs))
            if not runs[run] and self._is_missed(told, each, run):
                message = f"WAL summaries say nothing of a change in {each.entry.path}; all of its kind is read"
                self._output.observe.hear(Noticed("critical", "summaries-wrong", message))
                for suspect in suspects:
                    suspect.told = None
                return

    def _is_missed(self, told: Told, each: _Suspect, run: int) -> bool:
        length = each.run_bytes
        span = Span(run * length, min(length, each.entry.size - run * length))
        found = self._pread(each, span)
        if found is None or digests_of(found, length) == _digests_of_span(self._prior.blocks(each.entry.path), span):
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

    def _read(self, suspects: Sequence[_Suspect]) -> None:
        loads: queue.SimpleQueue[tuple[_Suspect, Span]] = queue.SimpleQueue()
        for suspect in sorted(suspects, key=lambda suspect: -suspect.entry.size):
            for piece in suspect.pieces:
                suspect.unread += 1
                loads.put((suspect, piece))

        def work() -> None:
            buffer = memoryview(bytearray(_READ_BYTES))
            while True:
                try:
                    suspect, piece = loads.get_nowait()
                except queue.Empty:
                    return
                self._digest(suspect, piece, buffer)
                self._count(suspect)

        run_together([work] * self._workers, self._output)

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
        known = None if suspect.told is None else self._prior.blocks(suspect.entry.path)
        for span, wanted in suspect.stretches(piece):
            if known is not None and not wanted:
                yield _digests_of_span(known, span)
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
        entry, known = suspect.entry, self._known(suspect.entry)
        digests = b"".join(suspect.digests[offset] for offset in sorted(suspect.digests))
        suspect.digests.clear()
        spans = changed_spans(known, digests, entry.size)
        if spans and not entry.is_relation:
            # Such a file may be replaced by another as a whole: of two of them no third one may be made.
            spans = (Span(0, entry.size),)
        kept = complement(spans, entry.size)
        with self._output.lock:
            if kept:
                self._output.keep(known, kept)
            self._parts += [Part(entry, span.offset, span.length) for span in spans]
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
