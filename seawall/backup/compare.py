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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from seawall.backup import changes
from seawall.backup.changes import PriorFile, Span, Times, changed_spans, complement, stretches, unchanged_by_times
from seawall.backup.load import Part
from seawall.backup.output import Output, run_together, times_of
from seawall.backup.prior import Prior
from seawall.backup.reading import opened
from seawall.backup.told import Told
from seawall.codec.runs import DIGEST_BYTES, digests_of
from seawall.events import Advanced, Noticed
from seawall.postgres.scan import CopyEntry
from seawall.postgres.summaries import Runs
from seawall.storage.wrappers import TokenBucket

_PIECE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SAMPLED_RUNS = 256
_WRITING_SECONDS = 0.005


@dataclass
class _Suspect:
    """A file that is in the prior and may have changed since: its digests, as far as it was read.

    `told` are the runs that have to be read, None for all.
    """

    entry: CopyEntry
    known: PriorFile
    told: Runs | None = None
    digests: dict[int, bytes] = field(default_factory=dict)
    vanished: bool = False

    @property
    def pieces(self) -> Iterator[Span]:
        step = max(_PIECE_BYTES, self.known.blocks.run_bytes)
        for offset in range(0, self.entry.size, step):
            yield Span(offset, min(step, self.entry.size - offset))

    def stretches(self, piece: Span) -> Iterator[tuple[Span, bool]]:
        """The parts of a piece to read, and those to take the prior's digests of."""
        if self.told is None:
            yield piece, True
        else:
            length, end = self.known.blocks.run_bytes, piece.offset + piece.length
            first = piece.offset // length
            yield from stretches(self.told[first : -(-end // length)], length, end, first)

    def known_digests(self, span: Span) -> bytes:
        length = self.known.blocks.run_bytes
        first, end = span.offset // length, -(-(span.offset + span.length) // length)
        return self.known.blocks.digests[first * DIGEST_BYTES : end * DIGEST_BYTES]


class Comparison:
    """One cluster compared with a prior.

    Args:
        output: told what is taken over.
        reread: compare also files whose times say that nothing was written to them.
        told: what the server says changed; the rest of files that were written to is not read either.
    """

    def __init__(
        self,
        prior: Prior,
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

    def parts(self, files: Sequence[CopyEntry]) -> list[Part]:
        """What has to be stored of files; all else is taken over."""
        new: list[Part] = []
        same: list[_Suspect] = []
        suspects: list[_Suspect] = []
        for entry in files:
            known = self._prior.get(entry.path)
            if known is None:
                new.append(Part.whole(entry))
            else:
                (same if self._is_same(entry, known) else suspects).append(_Suspect(entry, known))
        if self._deceives(same):
            suspects += same
            same = []
        for each in same:
            self._keep(each, (Span(0, each.entry.size),))
        if self._told is not None:
            self._believe(self._told, suspects)
        self._read(suspects)
        return new + [part for suspect in suspects for part in self._differing(suspect)]

    def _is_same(self, entry: CopyEntry, known: PriorFile) -> bool:
        if self._reread or entry.size != known.entry.size_bytes:
            return False
        listed_at_ns = self._prior.listed_at_ns
        return unchanged_by_times(times_of(entry), known.blocks, listed_at_ns, settle_ns=changes.SETTLE_NS)

    def _keep(self, suspect: _Suspect, spans: Sequence[Span]) -> None:
        self._output.keep(suspect.known, spans)
        self._output.observe.hear(Advanced("copy", sum(span.length for span in spans)))

    # ---- files that are not read

    def _deceives(self, same: Sequence[_Suspect]) -> bool:
        """Whether a file has other content although its times say that nothing was written to it."""
        filled = [each for each in same if each.entry.size]
        if not filled:
            return False
        chosen = self._random.choices(filled, [each.entry.size for each in filled], k=_SAMPLED_RUNS)
        for each in chosen:
            if self._is_other(each, self._random.randrange(each.known.blocks.runs)):
                self._output.observe.hear(
                    Noticed(
                        "critical",
                        "times-deceive",
                        f"{each.entry.path} changed without a change of its times; all files are read and compared",
                    )
                )
                return True
        return False

    def _is_other(self, each: _Suspect, run: int) -> bool:
        length = each.known.blocks.run_bytes
        descriptor = opened(each.entry)
        if descriptor < 0:
            return False
        try:
            found = os.pread(descriptor, min(length, each.entry.size - run * length), run * length)
            self._bucket.take(len(found))
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # What was written since the files were listed is replayed, and shows in the times by now.
        if Times(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) != times_of(each.entry):
            return False
        return digests_of(found, length) != each.known.blocks.digests[run * DIGEST_BYTES : (run + 1) * DIGEST_BYTES]

    # ---- runs that are not read

    def _believe(self, told: Told, suspects: Sequence[_Suspect]) -> None:
        """Have only those runs read that the server says changed, unless a sample of the others proves it wrong."""
        for each in suspects:
            each.told = told.runs(each.entry, each.known)
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
        length = each.known.blocks.run_bytes
        span = Span(run * length, min(length, each.entry.size - run * length))
        found = self._pread(each, span)
        if found is None or digests_of(found, length) == each.known_digests(span):
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
                loads.put((suspect, piece))

        def work() -> None:
            buffer = memoryview(bytearray(_READ_BYTES))
            while True:
                try:
                    suspect, piece = loads.get_nowait()
                except queue.Empty:
                    return
                self._digest(suspect, piece, buffer)

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
        for span, wanted in suspect.stretches(piece):
            if not wanted:
                yield suspect.known_digests(span)
                continue
            end = span.offset + span.length
            for offset in range(span.offset, end, len(buffer)):
                self._output.go_on()
                part = buffer[: min(len(buffer), end - offset)]
                _fill(descriptor, part, offset)
                self._bucket.take(len(part))
                yield digests_of(part, suspect.known.blocks.run_bytes)

    def _differing(self, suspect: _Suspect) -> Iterator[Part]:
        entry = suspect.entry
        if suspect.vanished:
            self._output.vanished.add(entry.path)
            return
        digests = b"".join(suspect.digests[offset] for offset in sorted(suspect.digests))
        spans = changed_spans(suspect.known, digests, entry.size)
        if spans and not entry.is_relation:
            # Such a file may be replaced by another as a whole: of two of them no third one may be made.
            spans = (Span(0, entry.size),)
        kept = complement(spans, entry.size)
        if kept:
            self._keep(suspect, kept)
        yield from (Part(entry, span.offset, span.length) for span in spans)


def _fill(descriptor: int, part: memoryview, offset: int) -> None:
    """Read all of a part; what lies behind the end of a file that became shorter reads as zeros."""
    done = 0
    while done < len(part):
        got = os.preadv(descriptor, [part[done:]], offset + done)
        if got == 0:
            part[done:] = bytes(len(part) - done)
            return
        done += got
