"""What may enter a repository as WAL, and putting it there.

Every file is looked at before it is stored: the first page's header says which cluster wrote it, of which major
version, and where in its history; a newer timeline in the repository says whether its writer was failed over from.
A file that fails is refused and never stored. The storage refuses other content under a name that exists.

Not guaranteed: that the records inside a segment are intact. `seawall.verify` and replay prove that.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from seawall.archive.store import Area
from seawall.errors import ClusterMismatch, SupersededTimeline, UsageError, WalConflict
from seawall.events import Noticed, Observer
from seawall.model import ClusterIdentity
from seawall.storage.base import Bytes
from seawall.wal import Lsn, Segment, TimelineHistory, is_archive_name

if TYPE_CHECKING:
    from seawall.repository import Sealing

_log = logging.getLogger(__name__)

# PostgreSQL xlog_internal.h: XLogLongPageHeaderData in the machine's own byte order (every supported one is
# little-endian), XLP_LONG_HEADER, and XLOG_PAGE_MAGIC of each major version.
_HEADER = struct.Struct("<HHIQI4xQII")
_LONG_HEADER = 0x0002
_MAJOR_OF_MAGIC = {0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
_HISTORIES_STAY_FRESH_SECONDS = 5.0


class Taken(StrEnum):
    """What became of a file. `NOT_KEPT`: recovery never reads it, so there is nothing to keep."""

    STORED = "stored"
    IDENTICAL = "identical"
    NOT_KEPT = "not-kept"


@dataclass(frozen=True, slots=True)
class WalHeader:
    """What the first page of a WAL segment says of it."""

    major_version: int
    timeline: int
    start: Lsn
    system_identifier: int
    segment_bytes: int


def read_header(data: Bytes, name: str) -> WalHeader:
    """The long page header at the beginning of a segment.

    Source: PostgreSQL `xlog_internal.h`, XLogLongPageHeaderData.

    Raises:
        ClusterMismatch: these bytes are no beginning of a segment of a supported version.
    """
    if len(data) < _HEADER.size:
        raise ClusterMismatch(f"{name} is too short for a WAL segment", hint="Look at the file in pg_wal.")
    magic, info, timeline, start, _remaining, system_identifier, segment_bytes, _block = _HEADER.unpack_from(data)
    if magic not in _MAJOR_OF_MAGIC or not info & _LONG_HEADER:
        raise ClusterMismatch(
            f"{name} does not begin like WAL of PostgreSQL 14 to 18 (magic {magic:04X})",
            hint="Look at the file in pg_wal; a newer major version needs a newer Seawall.",
        )
    return WalHeader(_MAJOR_OF_MAGIC[magic], timeline, Lsn(start), system_identifier, segment_bytes)


def refuse_other_place(header: WalHeader, name: str) -> Segment:
    """The segment of that name, if its header says that it belongs there.

    The first page of a segment in which a timeline began was written on an older one, so the header's
    timeline may be below the name's (PostgreSQL `xlog.c`, XLogFileCopy).

    Raises:
        ClusterMismatch: the header states another position or a newer timeline.
    """
    try:
        segment = Segment.parse(name[:24], header.segment_bytes)
    except (ValueError, ZeroDivisionError) as error:
        raise ClusterMismatch(f"{name} states segments of {header.segment_bytes} bytes: {error}") from error
    if segment.start != header.start or header.timeline > segment.timeline:
        raise ClusterMismatch(
            f"{name} holds WAL of timeline {header.timeline} from {header.start}, not what its name says",
            hint="The file is not what PostgreSQL wrote under this name; look for what changed pg_wal.",
        )
    return segment


def refuse_superseded(segment: Segment, end: Lsn, histories: dict[int, TimelineHistory]) -> None:
    """Stop a writer that goes on with a timeline which another server left earlier.

    Args:
        end: up to where the writer wrote on the segment's timeline.
        histories: of every timeline that the repository knows.

    Raises:
        SupersededTimeline: a newer timeline branched off before `end`.
    """
    for history in histories.values():
        left = history.switched_from(segment.timeline)
        if left is not None and left < end:
            raise SupersededTimeline(
                f"timeline {segment.timeline} was left at {left} for timeline {history.timeline}, "
                f"but this server goes on with it up to {end} ({segment.name})"
            )


class Intake:
    """The one door through which WAL of a source enters its repository.

    Args:
        area: the source's part of the repository.
        sealing: how it is compressed and sealed.
        observe: hears of `.partial` files that are not kept.
        clock: the time, aware, for identity records.
    """

    def __init__(self, area: Area, sealing: Sealing, *, observe: Observer, clock: Callable[[], datetime]) -> None:
        self.area = area
        self.sealing = sealing
        self._observe = observe
        self._clock = clock
        self._lock = threading.Lock()
        self._identity: ClusterIdentity | None = None
        self._histories: dict[int, TimelineHistory] = {}
        self._looked_at = float("-inf")

    def take(self, name: str, data: Bytes) -> Taken:
        """Look at one file and store it.

        Args:
            name: a name that PostgreSQL archives.
            data: all its bytes.

        Raises:
            ClusterMismatch, SupersededTimeline, WalConflict: refused; nothing was stored.
            StorageError: it is not stored; a later attempt may succeed.
        """
        if not is_archive_name(name):
            raise UsageError(f"{name!r} is not the name of a WAL file")
        if name.endswith(".backup"):
            # A note for people on a backup that another tool took; recovery never reads it.
            return Taken.NOT_KEPT
        if name.endswith(".history"):
            return self._take_history(name, bytes(data))
        segment = self._admitted(name, data)
        if name.endswith(".partial"):
            return self._take_partial(name, data)
        if len(data) != segment.segment_bytes:
            raise ClusterMismatch(f"{name} has {len(data)} bytes instead of {segment.segment_bytes}")
        refuse_superseded(segment, segment.end, self.histories())
        return Taken(self.area.wal.put_segment(name, data, self.sealing))

    def _admitted(self, name: str, data: Bytes) -> Segment:
        header = read_header(data, name)
        segment = refuse_other_place(header, name)
        self.identify(ClusterIdentity(header.system_identifier, header.major_version, (segment.timeline,)))
        return segment

    def _take_history(self, name: str, data: bytes) -> Taken:
        put = self.area.wal.put_history(name, data, self.sealing)
        with self._lock:
            self._looked_at = float("-inf")
        return Taken(put)

    def _take_partial(self, name: str, data: Bytes) -> Taken:
        """Store the last segment of a timeline that was left, unless one is stored already.

        The receiver and archive_command may both deliver it, with other bytes behind the switch. The bytes before
        the switch begin the new timeline's first segment too, so a difference is worth a notice but no stop:
        refusing would make PostgreSQL offer it for ever and archive nothing behind it.
        """
        try:
            return Taken(self.area.wal.put_partial(name, data, self.sealing))
        except WalConflict as error:
            self._observe.hear(Noticed("low", error.code, f"{error.message}; the first one is kept"))
            return Taken.NOT_KEPT

    def close(self) -> None:
        """List what was taken, with its hashes, as far as that was not done yet; for whoever stops taking."""
        self.area.wal.write_list()

    def identify(self, found: ClusterIdentity) -> None:
        """Prove that this is the source's cluster, or record it if the source is new.

        Raises:
            ClusterMismatch: it is another one.
        """
        with self._lock:
            if self._identity == found:
                return
            self.area.claim(found, self._clock())
            known = self.area.identity()
            if known is not None and known.major_version != found.major_version:
                raise ClusterMismatch(
                    f"WAL of PostgreSQL {found.major_version}, but the source has {known.major_version}"
                )
            self._identity = found

    def histories(self, *, fresh: bool = False) -> dict[int, TimelineHistory]:
        """What the repository knows of timelines, at most a few seconds old."""
        with self._lock:
            if fresh or time.monotonic() - self._looked_at > _HISTORIES_STAY_FRESH_SECONDS:
                self._histories = self.area.wal.histories()
                self._looked_at = time.monotonic()
            return self._histories
