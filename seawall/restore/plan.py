"""Which backup, which timeline, which WAL, and whether the target can be reached at all. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from seawall.errors import BackupMissing, Damaged, FormatTooNew, RepositoryError, TargetUnreachable, UsageError
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Head, Health, RecoveryTarget, TargetAction, TargetKind
from seawall.repository import Repository, SourceArea
from seawall.restore import destination as places
from seawall.restore.reach import Reach
from seawall.wal import Lsn, TimelineHistory

# What a restore was seen to do at least on two cores; only for the estimate, never for a decision.
_BYTES_PER_SECOND = 150_000_000
_SECONDS_PER_SEGMENT = 0.15


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do.

    Args:
        head: the backup that it starts from; `why` says why this one.
        history: the timeline that is followed, with its ancestry.
        wal_first, wal_last: the segments that are known to be needed; `wal_last` is what is stored at the moment.
        wal_end: the end of the stored WAL that follows the backup without a gap.
        tablespaces: (oid, original location, new location).
        delta: keep what is already right in the destination.
        action: what the server does at the target.
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
    wal_end: Lsn
    wal_count: int
    tablespaces: tuple[tuple[int, str, Path], ...]
    estimated_seconds: float
    rto: timedelta
    warnings: tuple[str, ...]
    action: TargetAction = TargetAction.PROMOTE

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
    action: TargetAction = TargetAction.PROMOTE,
    now: datetime,
    rto: timedelta = timedelta(hours=4),
    ring: Callable[[], KeyRing] | None = None,
) -> RestorePlan:
    """Decide how to reach a target, or refuse with the reason.

    Args:
        target: where recovery stops.
        destination: the data directory to be; absolute, empty or absent unless `delta`.
        label: this backup and no other.
        delta: repair what lies in the destination instead of refusing it.
        tablespaces: original location → new one; default is beside the destination, or where a delta restore's
            data directory has them.
        action: what the server does at the target: promote, pause for a look, or shut down unpromoted.
        now: aware; a target after it is refused.
        ring: asked for only if a head is damaged: what the manifest repeats of it stands in then.

    Raises:
        UsageError: `latest` with another action than to promote: it has no target.
        TargetUnreachable: before the first backup, in the future, or on a timeline that no backup reaches.
        WalGap: WAL between backup and target is missing; the message names it.
        DestinationInUse: a server runs there, or it is not empty.
        StorageFull: the destination's file system is too small.
    """
    if target.kind is TargetKind.LATEST and action is not TargetAction.PROMOTE:
        raise UsageError(
            f"a recovery to the latest WAL has no target at which to {action.value}: it promotes at its end",
            hint="Name a target, such as a time or a restore point.",
        )
    area = repository.source(source)
    head, history, why = _chosen(area, target, label, now, ring)
    reach = Reach(area, head, history)
    reach.prove(target)
    places.refuse_destination(destination, delta=delta)
    moved = places.tablespaces(head, destination, tablespaces or {}, delta=delta)
    places.refuse_tablespaces(moved, destination, delta=delta)
    places.refuse_repository(repository.storage.url, [destination, *(place for _, _, place in moved)])
    places.refuse_full(destination, head, delta=delta)
    count = reach.count(target)
    seconds = head.plain_bytes / _BYTES_PER_SECOND + count * _SECONDS_PER_SEGMENT
    return RestorePlan(
        source=source,
        head=head,
        why=why,
        target=target,
        destination=destination,
        delta=delta,
        history=history,
        wal_first=reach.first.name,
        wal_last=reach.last.name,
        wal_end=reach.end,
        wal_count=count,
        tablespaces=moved,
        estimated_seconds=round(seconds, 1),
        rto=rto,
        warnings=_warnings(head, target, seconds, rto, has_gap=reach.has_gap),
        action=action,
    )


def _chosen(
    area: SourceArea,
    target: RecoveryTarget,
    label: BackupLabel | None,
    now: datetime,
    ring: Callable[[], KeyRing] | None,
) -> tuple[Head, TimelineHistory, str]:
    """The backup, the timeline that is followed from it, and why this backup."""
    heads, damaged = _heads(area, ring)
    if not heads and damaged:
        raise damaged[0]
    if not heads:
        raise BackupMissing(f"{area.name} has no backup to restore", hint="`seawall list` shows what there is.")
    moment = target.moment
    if moment is not None and moment > now:
        raise TargetUnreachable(f"{moment.isoformat()} is in the future; it is {now.isoformat(timespec='seconds')} now")
    known = _known(area, heads)
    history = None if target.timeline == "current" else _followed(known, heads, target)
    if label is not None:
        heads = tuple(head for head in heads if head.label == label)
        if not heads:
            raise BackupMissing(f"there is no backup {label} of {area.name}")
    early = _early(heads, history, target, label)
    good = [head for head in early if head.health is Health.GOOD]
    head = max(good or early, key=lambda head: head.stopped_at)
    why = "".join(f"; {error.message}" for error in damaged)
    return head, history or known[head.timeline], _why(target, label, good=bool(good)) + why


def _heads(area: SourceArea, ring: Callable[[], KeyRing] | None) -> tuple[tuple[Head, ...], list[RepositoryError]]:
    """The heads that can be read: a damaged one must not keep the other backups from being restored."""
    found, wrong = area.readable_heads()
    heads = list(found)
    damaged: list[RepositoryError] = []
    for label, error in wrong.items():
        try:
            if ring is None:
                raise error
            heads.append(area.head(label, ring()))
        except (Damaged, FormatTooNew) as still:
            damaged.append(still)
    return tuple(sorted(heads, key=lambda head: head.label.begun_at)), damaged


def _known(area: SourceArea, heads: Sequence[Head]) -> dict[int, TimelineHistory]:
    """Every timeline that a history file, a backup or a stored segment shows."""
    known = area.wal.histories()
    for timeline in {head.timeline for head in heads} | set(area.wal.timelines()):
        known.setdefault(timeline, TimelineHistory(timeline))
    return known


def _followed(known: Mapping[int, TimelineHistory], heads: Sequence[Head], target: RecoveryTarget) -> TimelineHistory:
    if target.timeline == "latest":
        reached = [h for h in known.values() if any(h.reaches(b.timeline, b.stop_lsn) for b in heads)]
        return max(reached, key=lambda history: history.timeline)
    there = ", ".join(str(timeline) for timeline in sorted(known))
    if not target.timeline.isdigit():
        raise TargetUnreachable(f"{target.timeline!r} is no timeline", hint="Give a number, or `latest`, or `current`.")
    if int(target.timeline) not in known:
        raise TargetUnreachable(f"timeline {target.timeline} is unknown; there are {there}")
    return known[int(target.timeline)]


def _early(
    heads: Sequence[Head], history: TimelineHistory | None, target: RecoveryTarget, label: BackupLabel | None
) -> list[Head]:
    """The backups that lie on the followed timeline (each on its own when there is none) and before the target."""
    on_path = [head for head in heads if history is None or history.reaches(head.timeline, head.stop_lsn)]
    if history is not None and not on_path:
        who = f"backup {label} does not lie" if label else "no backup lies"
        raise TargetUnreachable(
            f"{who} on {_ancestry(history)}",
            hint="Choose another timeline; `seawall info` shows them.",
        )
    early = [head for head in on_path if _stops_before(head, target)]
    if not early:
        first = min(on_path, key=lambda head: head.stopped_at)
        raise TargetUnreachable(
            f"the target lies before the end of {'backup' if label else 'the first backup,'} {first.label}, which can "
            f"be restored from {first.stopped_at.isoformat(timespec='seconds')} ({first.stop_lsn}) on"
        )
    return early


def _ancestry(history: TimelineHistory) -> str:
    left = "".join(f", before {branch.timeline} was left at {branch.switch_at}" for branch in history.branches)
    return f"timeline {history.timeline}{left}"


def _stops_before(head: Head, target: RecoveryTarget) -> bool:
    """PostgreSQL reports no error for a target before the backup's end: it stops later than asked."""
    if target.moment is not None:
        return head.stopped_at < target.moment
    if target.lsn is not None:
        return head.stop_lsn <= target.lsn
    return True


def _why(target: RecoveryTarget, label: BackupLabel | None, *, good: bool) -> str:
    if label:
        return "asked for"
    newest = f"the newest {'good ' if good else ''}backup"
    return f"{newest} that ended before the target" if target.kind in (TargetKind.TIME, TargetKind.LSN) else newest


def _warnings(head: Head, target: RecoveryTarget, seconds: float, rto: timedelta, *, has_gap: bool) -> tuple[str, ...]:
    found = []
    if head.health is Health.DEGRADED:
        found.append(f"backup {head.label} holds pages with wrong checksums")
    if target.kind in (TargetKind.XID, TargetKind.NAME):
        found.append(
            f"only replay will show where {target.kind.value} {target.value} is; if it lies before "
            f"{head.stopped_at.isoformat(timespec='seconds')}, name an earlier backup"
        )
    if has_gap:
        found.append("WAL is missing behind the target; nothing after it can be reached from this backup")
    if seconds > rto.total_seconds():
        found.append(f"about {seconds:.0f} s are estimated, more than the RTO of {rto.total_seconds():.0f} s")
    return tuple(found)
