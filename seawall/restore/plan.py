"""Which backup, which timeline, which WAL, and whether the target can be reached at all. Nothing is written here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from seawall.errors import BackupMissing, DestinationInUse, ObjectMissing, StorageFull, TargetUnreachable, WalGap
from seawall.model import BackupLabel, Head, Health, RecoveryTarget, TargetKind
from seawall.repository import Repository, SourceArea
from seawall.wal import Lsn, Segment, TimelineHistory

# What a restore was seen to do at least on two cores; only for the estimate, never for a decision.
_BYTES_PER_SECOND = 150_000_000
_SECONDS_PER_SEGMENT = 0.15
_RESERVE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do.

    Args:
        head: the backup that it starts from; `why` says why this one.
        history: the timeline that is followed, with its ancestry.
        wal_first, wal_last: the segments that are known to be needed; `wal_last` is what is stored at the moment.
        tablespaces: (oid, original location, new location).
        delta: keep what is already right in the destination.
        estimated_seconds: from sizes; against `rto`.
    """

    source: str
    head: Head
    why: str
    target: RecoveryTarget
    destination: Path
    delta: bool
    history: TimelineHistory
    wal_first: str
    wal_last: str
    wal_count: int
    tablespaces: tuple[tuple[int, str, Path], ...]
    estimated_seconds: float
    rto: timedelta
    warnings: tuple[str, ...]

    @property
    def meets_rto(self) -> bool:
        return self.estimated_seconds <= self.rto.total_seconds()


def plan(
    repository: Repository,
    source: str,
    target: RecoveryTarget,
    destination: Path,
    *,
    label: BackupLabel | None = None,
    delta: bool = False,
    tablespaces: Mapping[str, Path] | None = None,
    now: datetime,
    rto: timedelta = timedelta(hours=4),
) -> RestorePlan:
    """Decide how to reach a target, or refuse with the reason.

    Args:
        target: where recovery stops.
        destination: the data directory to be; absolute, empty or absent unless `delta`.
        label: this backup and no other.
        delta: repair what lies in the destination instead of refusing it.
        tablespaces: original location → new one; default is beside the destination.
        now: aware; a target after it is refused.

    Raises:
        TargetUnreachable: before the first backup, in the future, or on a timeline that no backup reaches.
        WalGap: WAL between backup and target is missing; the message names it.
        DestinationInUse: a server runs there, or it is not empty.
        StorageFull: the destination's file system is too small.
    """
    area = repository.source(source)
    heads = area.heads()
    if not heads:
        raise BackupMissing(f"{source} has no backup to restore", hint="`seawall list` shows what there is.")
    history = _history(area, heads, target)
    head, why = _choose(heads, history, target, label, now)
    if target.timeline == "current":
        history = _known(area, heads)[head.timeline]
    wal = _Wal(area, head, history)
    wal.prove(target)
    refuse_destination(destination, delta=delta)
    _refuse_full(destination, head, delta=delta)
    first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
    seconds = head.plain_bytes / _BYTES_PER_SECOND + wal.count(target) * _SECONDS_PER_SEGMENT
    return RestorePlan(
        source=source,
        head=head,
        why=why,
        target=target,
        destination=destination,
        delta=delta,
        history=history,
        wal_first=first.name,
        wal_last=wal.last.name,
        wal_count=wal.count(target),
        tablespaces=_tablespaces(head, destination, tablespaces or {}),
        estimated_seconds=round(seconds, 1),
        rto=rto,
        warnings=_warnings(head, seconds, rto),
    )


def _known(area: SourceArea, heads: Sequence[Head]) -> dict[int, TimelineHistory]:
    """Every timeline that a history file, a backup or a stored segment shows."""
    known = area.wal.histories()
    for timeline in {head.timeline for head in heads} | set(area.wal.timelines()):
        known.setdefault(timeline, TimelineHistory(timeline))
    return known


def _history(area: SourceArea, heads: Sequence[Head], target: RecoveryTarget) -> TimelineHistory:
    known = _known(area, heads)
    if target.timeline == "current":
        return known[heads[-1].timeline]
    if target.timeline == "latest":
        reached = [h for h in known.values() if any(h.reaches(b.timeline, b.stop_lsn) for b in heads)]
        return max(reached, key=lambda history: history.timeline)
    if not target.timeline.isdigit():
        raise TargetUnreachable(f"{target.timeline!r} is no timeline", hint="Give a number, or `latest`, or `current`.")
    number = int(target.timeline)
    if number not in known:
        there = ", ".join(str(timeline) for timeline in sorted(known))
        raise TargetUnreachable(f"timeline {number} is unknown; there are {there}")
    return known[number]


def _choose(
    heads: Sequence[Head],
    history: TimelineHistory,
    target: RecoveryTarget,
    label: BackupLabel | None,
    now: datetime,
) -> tuple[Head, str]:
    moment = target.moment
    if moment is not None and moment > now:
        raise TargetUnreachable(f"{moment.isoformat()} is in the future; it is {now.isoformat(timespec='seconds')} now")
    if label is not None:
        heads = [head for head in heads if head.label == label]
        if not heads:
            raise BackupMissing(f"there is no backup {label}")
    on_path = [head for head in heads if history.reaches(head.timeline, head.stop_lsn)]
    if not on_path:
        raise TargetUnreachable(
            f"no backup lies on timeline {history.timeline} or its ancestors before they were left",
            hint="Choose another timeline with --timeline; `seawall info` shows them.",
        )
    early = [head for head in on_path if _stops_before(head, target)]
    if not early:
        first = min(on_path, key=lambda head: head.stopped_at)
        raise TargetUnreachable(
            f"the target lies before the end of the first backup: {first.label} can be restored from "
            f"{first.stopped_at.isoformat(timespec='seconds')} ({first.stop_lsn}) on"
        )
    good = [head for head in early if head.health is Health.GOOD]
    chosen = max(good or early, key=lambda head: head.stopped_at)
    kind = "asked for" if label else f"the newest {'good ' if good else ''}backup that ended before the target"
    return chosen, kind


def _stops_before(head: Head, target: RecoveryTarget) -> bool:
    """PostgreSQL reports no error for a target before the backup's end: it stops later than asked."""
    if target.moment is not None:
        return head.stopped_at < target.moment
    if target.lsn is not None:
        return head.stop_lsn <= target.lsn
    return True


class _Wal:
    """The WAL that is stored from a backup on, along one history."""

    def __init__(self, area: SourceArea, head: Head, history: TimelineHistory) -> None:
        self._area, self._head, self._history = area, head, history
        names = area.wal.names()
        size = head.segment_bytes
        self.first = Segment.containing(head.start_lsn, head.timeline, size)
        segment, self.last, self._stored_end = self.first, self.first, head.start_lsn
        while True:
            following = self._named(segment.number, names)
            if following is None:
                break
            self.last, self._stored_end = following, following.end
            segment = following.next()
        self.missing = self._history_segment(segment.number)
        tails = area.wal.tails(self.missing)
        self.end = tails[-1] if tails else self._stored_end
        self._tail = tails[-1] if tails else None
        later = [Segment.parse(name, size) for name in names if history.contains(int(name[:8], 16))]
        self.has_gap = any(
            found.number > segment.number and self._history_segment(found.number) == found for found in later
        )

    def _history_segment(self, number: int) -> Segment:
        size = self._head.segment_bytes
        last_byte = Lsn((number + 1) * size - 1)
        return Segment(max(self._history.timeline_at(last_byte), self._head.timeline), number, size)

    def _named(self, number: int, names: frozenset[str]) -> Segment | None:
        """The stored segment of that number: of the newest timeline on the path, else of the one it branched from."""
        wanted = self._history_segment(number)
        older = [b.timeline for b in reversed(self._history.branches) if b.timeline < wanted.timeline]
        for timeline in (wanted.timeline, *older):
            if timeline >= self._head.timeline and wanted.on(timeline).name in names:
                return wanted.on(timeline)
        return None

    def count(self, target: RecoveryTarget) -> int:
        end = target.lsn if target.lsn is not None else self.end
        if target.kind is TargetKind.IMMEDIATE:
            end = self._head.stop_lsn
        return max(1, -(-(end - self.first.start) // self._head.segment_bytes))

    def prove(self, target: RecoveryTarget) -> None:
        """Refuse a target that replay cannot reach with what is stored."""
        if self.end < self._head.stop_lsn:
            raise WalGap(
                f"{self.missing.name} is missing: backup {self._head.label} needs WAL up to {self._head.stop_lsn}"
            )
        if target.kind is TargetKind.IMMEDIATE:
            return
        if target.lsn is not None and target.lsn > self.end:
            self._refuse(f"the target {target.lsn} lies after it")
        if target.moment is not None and target.moment > self._stored_at():
            self._refuse(f"the target {target.moment.isoformat()} lies after what is stored before it")
        if target.kind is TargetKind.LATEST and self.has_gap:
            self._refuse("later segments are stored, so `latest` would silently lose what comes after the gap")

    def _refuse(self, why: str) -> None:
        if self.has_gap:
            raise WalGap(f"{self.missing.name} is missing on timeline {self.missing.timeline}, and {why}")
        raise TargetUnreachable(
            f"WAL is stored up to {self.end} (before {self.missing.name}), and {why}",
            hint="Let the source switch its WAL (`seawall wal switch`), or restore to `latest`.",
        )

    def _stored_at(self) -> datetime:
        """When the newest WAL of the run was stored: no commit in it is later, clocks agreeing."""
        layout, storage = self._area.layout, self._area.storage
        name = layout.segment(self.last.name)
        if self._tail is not None:
            name = layout.tail(self.missing, self._tail.value)
        try:
            return storage.stat(name).modified_at
        except ObjectMissing:
            # A tail is replaced by a longer one, or by its segment, at any moment.
            return storage.stat(layout.segment(self.last.name)).modified_at


def refuse_destination(destination: Path, *, delta: bool) -> None:
    """Stop before anything of value is overwritten.

    Raises:
        DestinationInUse: a server runs there; it is not empty and no delta restore; it is no directory, or a root.
    """
    if not destination.is_absolute() or destination == Path(destination.anchor):
        raise DestinationInUse(
            f"{destination} cannot be a destination", hint="Name an absolute path of a new directory."
        )
    if destination.is_symlink():
        raise DestinationInUse(f"{destination} is a link", hint="Name the directory that it points to.")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise DestinationInUse(f"{destination} is no directory")
    pid = _server(destination)
    if pid is not None:
        raise DestinationInUse(f"a server with process id {pid} runs in {destination}", hint="Stop it first.")
    if not delta and any(destination.iterdir()):
        raise DestinationInUse(f"{destination} is not empty")
    if delta and any(destination.iterdir()) and not _is_data_directory(destination):
        raise DestinationInUse(
            f"{destination} holds no data directory and no interrupted restore",
            hint="A delta restore removes what does not belong, so it works only on a data directory.",
        )


def _is_data_directory(directory: Path) -> bool:
    return (directory / "PG_VERSION").exists() or (directory / ".seawall-restore.json").exists()


def _server(directory: Path) -> int | None:
    """The process id in postmaster.pid, if that process lives."""
    try:
        pid = int((directory / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
        os.kill(pid, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    except PermissionError:
        return pid
    return pid


def _refuse_full(destination: Path, head: Head, *, delta: bool) -> None:
    place = destination
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    free, needed = status.f_bavail * status.f_frsize, head.plain_bytes + _RESERVE_BYTES
    if not delta and free < needed:
        raise StorageFull(
            f"{place} has {free} bytes free, the restore needs {needed}", hint="Free space, or choose another place."
        )


def _tablespaces(head: Head, destination: Path, given: Mapping[str, Path]) -> tuple[tuple[int, str, Path], ...]:
    unknown = set(given) - {tablespace.location for tablespace in head.tablespaces}
    if unknown:
        known = ", ".join(tablespace.location for tablespace in head.tablespaces) or "none"
        raise DestinationInUse(f"no tablespace lay at {', '.join(sorted(unknown))}; there are: {known}")
    # Beside the destination and never at the original place, where a live cluster may still have its own.
    beside = destination.with_name(f"{destination.name}.tablespaces")
    return tuple((t.oid, t.location, given.get(t.location, beside / str(t.oid))) for t in head.tablespaces)


def _warnings(head: Head, seconds: float, rto: timedelta) -> tuple[str, ...]:
    found = []
    if head.health is Health.DEGRADED:
        found.append(f"backup {head.label} holds pages with wrong checksums")
    if seconds > rto.total_seconds():
        found.append(f"about {seconds:.0f} s are estimated, more than the RTO of {rto.total_seconds():.0f} s")
    return tuple(found)
