"""Pure WAL arithmetic: positions, segments, timelines, ranges and gaps.

Nothing here touches a file or a server. Names and sizes follow PostgreSQL's `xlog_internal.h`
(XLogFileName: timeline, then the segment number split at 2^32 / segment size) and the documentation,
section 26.3 "Continuous Archiving".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import total_ordering

DEFAULT_SEGMENT_BYTES = 16 * 1024 * 1024
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_ARCHIVE_NAME = re.compile(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")


@total_ordering
@dataclass(frozen=True, slots=True)
class Lsn:
    """A position in the write-ahead log, in bytes since the beginning of time."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 64:
            raise ValueError(f"an LSN has 64 bits, {self.value} does not fit")

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read PostgreSQL's notation, such as `16/B374D848`.

        Raises:
            ValueError: the text is no LSN.
        """
        match = _LSN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no LSN; one looks like 16/B374D848")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __lt__(self, other: Lsn) -> bool:
        return self.value < other.value

    def __add__(self, length_bytes: int) -> Lsn:
        return Lsn(self.value + length_bytes)

    def __sub__(self, other: Lsn) -> int:
        return self.value - other.value


@total_ordering
@dataclass(frozen=True, slots=True)
class Segment:
    """One WAL file: a timeline and the number of the file on it."""

    timeline: int
    number: int
    segment_bytes: int = DEFAULT_SEGMENT_BYTES

    @classmethod
    def parse(cls, name: str, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Segment:
        """Read a 24-digit WAL file name.

        Raises:
            ValueError: the name is not one of a WAL segment of this size.
        """
        match = _SEGMENT.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no WAL segment name")
        per_log = (1 << 32) // segment_bytes
        low = int(match[3], 16)
        if low >= per_log:
            raise ValueError(f"{name!r} does not exist with segments of {segment_bytes} bytes")
        return cls(int(match[1], 16), int(match[2], 16) * per_log + low, segment_bytes)

    @classmethod
    def containing(cls, lsn: Lsn, timeline: int, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Segment:
        """The segment that holds the byte at `lsn`."""
        return cls(timeline, lsn.value // segment_bytes, segment_bytes)

    @classmethod
    def ending_at(cls, lsn: Lsn, timeline: int, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Segment:
        """The segment that holds the last byte before `lsn` (a stop position is exclusive)."""
        return cls(timeline, max(lsn.value - 1, 0) // segment_bytes, segment_bytes)

    @property
    def name(self) -> str:
        per_log = (1 << 32) // self.segment_bytes
        return f"{self.timeline:08X}{self.number // per_log:08X}{self.number % per_log:08X}"

    @property
    def start(self) -> Lsn:
        return Lsn(self.number * self.segment_bytes)

    @property
    def end(self) -> Lsn:
        return Lsn((self.number + 1) * self.segment_bytes)

    def next(self) -> Segment:
        return Segment(self.timeline, self.number + 1, self.segment_bytes)

    def previous(self) -> Segment:
        if self.number == 0:
            raise ValueError("there is no segment before the first")
        return Segment(self.timeline, self.number - 1, self.segment_bytes)

    def on(self, timeline: int) -> Segment:
        """The segment of the same position on another timeline."""
        return Segment(timeline, self.number, self.segment_bytes)

    def __lt__(self, other: Segment) -> bool:
        return (self.timeline, self.number) < (other.timeline, other.number)


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of a history file: `timeline` was left at `switch_at` for a newer one."""

    timeline: int
    switch_at: Lsn


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """The ancestry of a timeline, oldest first.

    Source: PostgreSQL `timeline.c`, readTimeLineHistory; each line is parent timeline, switch position, reason.
    """

    timeline: int
    branches: tuple[Branch, ...] = ()

    @classmethod
    def parse(cls, timeline: int, text: str) -> TimelineHistory:
        """Read the content of `<timeline>.history`.

        Raises:
            ValueError: a line is malformed, timelines do not increase, or one is not below `timeline`.
        """
        branches: list[Branch] = []
        for raw in text.splitlines():
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            fields = line.split(None, 2)
            if len(fields) < 2 or not fields[0].isdigit():
                raise ValueError(f"malformed line in the history of timeline {timeline}: {line!r}")
            branch = Branch(int(fields[0]), Lsn.parse(fields[1]))
            if branches and branch.timeline <= branches[-1].timeline:
                raise ValueError(f"timelines do not increase in the history of timeline {timeline}")
            branches.append(branch)
        if branches and branches[-1].timeline >= timeline:
            raise ValueError(f"the history of timeline {timeline} names itself as an ancestor")
        return cls(timeline, tuple(branches))

    def timeline_at(self, lsn: Lsn) -> int:
        """The timeline on which the byte at `lsn` was written, following this ancestry."""
        for branch in self.branches:
            if lsn < branch.switch_at:
                return branch.timeline
        return self.timeline

    def switched_from(self, timeline: int) -> Lsn | None:
        """Where this ancestry left `timeline`, or None if it is the last or no ancestor."""
        return next((b.switch_at for b in self.branches if b.timeline == timeline), None)

    def contains(self, timeline: int) -> bool:
        return timeline == self.timeline or any(b.timeline == timeline for b in self.branches)

    def reaches(self, timeline: int, lsn: Lsn) -> bool:
        """Whether a backup that stopped at `lsn` on `timeline` lies on this ancestry."""
        if timeline == self.timeline:
            return True
        left = self.switched_from(timeline)
        return left is not None and lsn <= left


def is_archive_name(name: str) -> bool:
    """Whether PostgreSQL could ask to archive or restore a file of this name (documentation, section 26.3.1)."""
    return _ARCHIVE_NAME.fullmatch(name) is not None


def segments_between(
    start: Lsn, stop: Lsn, history: TimelineHistory, segment_bytes: int = DEFAULT_SEGMENT_BYTES
) -> Iterator[Segment]:
    """Every segment needed to replay from `start` to `stop` (exclusive) along `history`, in order.

    The segment in which a timeline was left is needed under the name of the *newer* timeline: the server
    copies its beginning there at promotion and recovery prefers it (PostgreSQL `xlogrecovery.c`,
    XLogFileReadAnyTLI).
    """
    last_byte = max(stop.value - 1, start.value)
    for number in range(start.value // segment_bytes, last_byte // segment_bytes + 1):
        end_of_segment = min((number + 1) * segment_bytes - 1, last_byte)
        yield Segment(history.timeline_at(Lsn(end_of_segment)), number, segment_bytes)


def gaps(needed: Iterable[Segment], present: frozenset[str] | set[str]) -> list[Segment]:
    """The segments of `needed` whose names are not in `present`, in order."""
    return [segment for segment in needed if segment.name not in present]


def contiguous_until(first: Segment, present: frozenset[str] | set[str]) -> Segment | None:
    """The last segment of the unbroken run on one timeline that begins with `first`, or None if `first` is absent."""
    last: Segment | None = None
    segment = first
    while segment.name in present:
        last, segment = segment, segment.next()
    return last
