"""What changed in a file since the backup that the next one builds on: pure decisions over sizes, times and digests.

Content decides: a run is taken over from an earlier backup only if the digest of what lies there now equals that of
what was stored then (`differences`). Times only spare reading, and only where they cannot deceive:
`unchanged_by_times`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from seawall.codec import combined
from seawall.codec.runs import DIGEST_BYTES
from seawall.model import Extent, FileEntry, StoredObject
from seawall.repository.blocks import FileBlocks

# A write sets the file's times first and its bytes after that, and may be held up in between, by a journal or by
# writeback, for as long as the kernel finds normal. A time this close to the listing says nothing.
SETTLE_NS = 60 * 1_000_000_000
# The digest of a run of which nothing is known. No bytes that anybody can find have it, and it never counts as equal.
UNKNOWN = bytes(DIGEST_BYTES)


class Times(NamedTuple):
    """What the file system says of a file, in nanoseconds of Unix time and bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Seen(NamedTuple):
    """How a file was found before, and how many bytes of it were stored: all that its times can be compared with."""

    times: Times
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PriorFile:
    """A file in the backup that the next one builds on: where its bytes lie, and its digests."""

    entry: FileEntry
    blocks: FileBlocks


class Known(Protocol):
    """What is known of a cluster's files from before; its methods may be called from several threads.

    Args:
        listed_at_ns: when they were listed, by the clock that their times come from; 0 if that is not known.
        objects: all that their extents refer to.
    """

    listed_at_ns: int
    objects: list[StoredObject]

    def get(self, path: str) -> PriorFile | None:
        """A file, or None if nothing of it is known."""
        ...

    def seen(self, path: str) -> Seen | None:
        """How a file was found, or None if nothing of it is known: quick, since its extents are not read."""
        ...

    def rows(self, path: str) -> tuple[bytes, bytes] | None:
        """What a manifest and a block map say of all of a file, in the bytes in which they say it, if they do.

        Objects have their positions in `objects`.
        """
        ...

    def blocks(self, path: str) -> FileBlocks:
        """Only the digests of a file that `get` finds.

        Raises:
            KeyError: there is no such file.
        """
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes of a file from `offset`, which is where a run begins."""

    offset: int
    length: int


def unchanged_by_times(found: Times, known: Times, listed_at_ns: int, *, settle_ns: int = SETTLE_NS) -> bool:
    """Whether a file need not be read, because nothing was written to it since the prior listed it.

    All of size, mtime, ctime and inode must be the same. A file that was replaced has another inode or ctime, one
    whose mtime was set back has another ctime. What was written after the listing has times after it, unless the
    write had begun before; so both times must be older than the prior's listing by `settle_ns`.

    Args:
        found: the file now.
        known: the file as the prior found it.
        listed_at_ns: when the prior listed its files, by the clock that their times come from.
    """
    return found == known and known.inode != 0 and max(known.mtime_ns, known.ctime_ns) + settle_ns < listed_at_ns


def complement(spans: Iterable[Span], size: int) -> tuple[Span, ...]:
    """The rest of a file: what lies between spans that are in order."""
    found, at = [], 0
    for span in (*spans, Span(size, 0)):
        if span.offset > at:
            found.append(Span(at, span.offset - at))
        at = span.offset + span.length
    return tuple(found)


def kept_extents(prior: PriorFile, spans: Sequence[Span]) -> Iterator[tuple[int, Extent]]:
    """(offset in the file, extent) for parts that are taken over: where they lie in objects of earlier backups.

    The hash of a part of an extent follows from the digests of its runs.

    Args:
        prior: the file as it was stored; `FileBlocks.describes` holds for it.
        spans: the parts, in order, each of whole runs, or to the end of the file.
    """
    waiting = iter(spans)
    span = next(waiting, None)
    begin = 0
    for extent in prior.entry.extents:
        end = begin + extent.length
        while span is not None and span.offset < end:
            first, last = max(span.offset, begin), min(span.offset + span.length, end)
            yield first, _part(extent, first - begin, last - first, digests_between(prior, first, last))
            if span.offset + span.length > end:
                break
            span = next(waiting, None)
        begin = end


def digests_between(prior: PriorFile, first: int, last: int) -> bytes:
    """The digests of the runs from offset `first`, where one begins, to offset `last`."""
    run_bytes = prior.blocks.run_bytes
    return prior.blocks.digests[first // run_bytes * DIGEST_BYTES : -(-last // run_bytes) * DIGEST_BYTES]


def _part(extent: Extent, begin: int, length: int, digests: bytes) -> Extent:
    if (begin, length) == (0, extent.length):
        return extent
    return Extent(extent.object, extent.offset + begin, length, combined(digests), extent.run_bytes)


def joined_digests(prior: PriorFile, spans: Iterable[Span], stored: Iterable[tuple[int, bytes]]) -> bytes:
    """The digests of a whole file: of parts that are taken over, and of those that were stored, by their offset."""
    parts = [(span.offset, digests_between(prior, span.offset, span.offset + span.length)) for span in spans]
    return b"".join(digests for _, digests in sorted([*parts, *stored]))
