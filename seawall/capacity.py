"""How full a storage is, how fast it fills, when it will be full, and whether the next backup fits. Mostly pure.

Growth is the Theil–Sen slope, the median of the slopes between all pairs of samples: a cleanup or one huge backup
moves it little. Samples are what somebody measured; where nobody did, the backups that are there give them, and then
growth is rather too high, because what was let go is missing from the past. Too early a warning is the better mistake.

Not guaranteed: that a backup for which there was room finds it still there at its end; WAL and others write as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, combinations
from statistics import median

from seawall.errors import BackupMissing, Damaged, FormatTooNew, StorageFull
from seawall.model import BackupKind, Head
from seawall.repository import SourceArea
from seawall.storage.base import Storage
from seawall.storage.versions import hidden_bytes

_DAY = timedelta(days=1)
# Pairs grow with the square; so many samples tell a trend as well as all of them.
_MOST_SAMPLES = 200
_RECENT = 5
_FAR = timedelta(days=3650)
# What a first full backup adds within minutes is no rhythm: schedules repeat after a day at the earliest.
_LEAST_SPAN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """How many bytes were in use at a moment."""

    at: datetime
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Trend:
    """How use changes: bytes per day, negative when it shrinks, and the moment of the newest sample."""

    bytes_per_day: float
    until: datetime


@dataclass(frozen=True, slots=True)
class Ratios:
    """`plain_bytes` and `stored_bytes` of all backups together; `compression` of the newest full one, 0 without one."""

    plain_bytes: int = 0
    stored_bytes: int = 0
    compression: float = 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """One storage at a moment.

    Args:
        used_bytes: by the objects of the repository.
        free_bytes: that can still be written; None where the storage does not say.
        plain_bytes, stored_bytes: of all backups together, each counted as if it stood alone, and what they take.
        compression: plain by stored bytes of the newest full backup; 0 while there is none.
        trend: None while the samples span less than a day.
        full_at: when nothing is free any more if the trend lasts; None if it does not grow, or not within ten years.
    """

    used_bytes: int
    free_bytes: int | None
    plain_bytes: int
    stored_bytes: int
    compression: float
    trend: Trend | None
    full_at: datetime | None

    @property
    def saved(self) -> float:
        """Plain by stored bytes of all backups: compression, and what incrementals did not store again."""
        return self.plain_bytes / self.stored_bytes if self.stored_bytes else 0.0

    @property
    def dedupe(self) -> float:
        """What incrementals alone spare; 1 for nothing, 0 while there is no backup."""
        return self.saved / self.compression if self.compression else 0.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """A warning of `severity` comes when less than a share is free, or the storage is full within a span."""

    severity: str
    free_share: float
    full_within: timedelta


THRESHOLDS = (
    Threshold("critical", 0.05, timedelta(days=3)),
    Threshold("high", 0.10, timedelta(days=14)),
    Threshold("medium", 0.20, timedelta(days=30)),
)


@dataclass(frozen=True, slots=True)
class Warned:
    """The worst threshold that was reached, and the numbers."""

    severity: str
    message: str


def theil_sen(samples: Sequence[Sample]) -> Trend | None:
    """The robust trend of samples, or None while they span less than a day.

    Source: Theil, "A rank-invariant method of linear and polynomial regression analysis" (1950); Sen (1968).
    """
    newest = sorted(samples, key=lambda sample: sample.at)[-_MOST_SAMPLES:]
    if not newest or newest[-1].at - newest[0].at < _LEAST_SPAN:
        return None
    slopes = [
        (later.used_bytes - earlier.used_bytes) / ((later.at - earlier.at) / _DAY)
        for earlier, later in combinations(newest, 2)
        if later.at > earlier.at
    ]
    return Trend(median(slopes), newest[-1].at)


def samples_of(heads: Iterable[Head]) -> tuple[Sample, ...]:
    """What the backups that are there took together after each of them."""
    ordered = sorted(heads, key=lambda head: head.ended_at)
    totals = accumulate(head.stored_bytes for head in ordered)
    return tuple(Sample(head.ended_at, total) for head, total in zip(ordered, totals, strict=True))


def capacity_of(
    heads: Sequence[Head],
    *,
    used_bytes: int,
    free_bytes: int | None,
    now: datetime,
    samples: Sequence[Sample] = (),
) -> Capacity:
    """Put together what is known of a storage.

    Args:
        heads: of all backups there, of every source.
        samples: measured ones; the heads give them when there are fewer than two.
    """
    trend = theil_sen(samples if len(samples) > 1 else samples_of(heads))
    return standing(ratios_of(heads), trend, used_bytes=used_bytes, free_bytes=free_bytes, now=now)


def ratios_of(heads: Sequence[Head]) -> Ratios:
    """What compression and incrementals spare, by the heads of all backups in a storage."""
    fulls = sorted((head for head in heads if head.kind is BackupKind.FULL), key=lambda head: head.ended_at)
    newest = fulls[-1] if fulls else None
    return Ratios(
        sum(head.plain_bytes for head in heads),
        sum(head.stored_bytes for head in heads),
        newest.plain_bytes / newest.stored_bytes if newest and newest.stored_bytes else 0.0,
    )


def standing(
    ratios: Ratios, trend: Trend | None, *, used_bytes: int, free_bytes: int | None, now: datetime
) -> Capacity:
    """Put together what was measured before with what is free now."""
    return Capacity(
        used_bytes=used_bytes,
        free_bytes=free_bytes,
        plain_bytes=ratios.plain_bytes,
        stored_bytes=ratios.stored_bytes,
        compression=ratios.compression,
        trend=trend,
        full_at=_full_at(trend, free_bytes, now),
    )


def within_quota(free_bytes: int | None, used_bytes: int, quota_bytes: int) -> int | None:
    """What can still be written: what the storage says, and what a quota leaves.

    Args:
        quota_bytes: 0 is none.
    """
    if not quota_bytes:
        return free_bytes
    left = max(quota_bytes - used_bytes, 0)
    return left if free_bytes is None else min(left, free_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """What can still be written to a storage.

    Args:
        free_bytes: what the storage says; None where it does not.
        quota_bytes: what may lie there by the location's settings; 0 is no limit.
        used_bytes: what lies there, counted only where there is a quota.
    """

    free_bytes: int | None = None
    quota_bytes: int = 0
    used_bytes: int = 0

    @property
    def left_bytes(self) -> int | None:
        return within_quota(self.free_bytes, self.used_bytes, self.quota_bytes)

    @property
    def is_of_quota(self) -> bool:
        """Whether it is the quota that ends first, and not the storage."""
        return self.left_bytes != self.free_bytes

    @property
    def sentence(self) -> str:
        if not self.is_of_quota:
            return f"{self.free_bytes or 0:,} bytes are free"
        return f"{self.left_bytes:,} bytes are left of a quota of {self.quota_bytes:,} ({self.used_bytes:,} are used)"


def room_in(storage: Storage, quota_bytes: int = 0) -> Room:
    """What can still be written; lists everything that lies there where a quota asks for it."""
    return Room(storage.free_bytes(), quota_bytes, used_bytes(storage) if quota_bytes else 0)


def _full_at(trend: Trend | None, free_bytes: int | None, now: datetime) -> datetime | None:
    if trend is None or free_bytes is None or trend.bytes_per_day <= 0:
        return None
    days = free_bytes / trend.bytes_per_day
    return now + days * _DAY if days < _FAR / _DAY else None


def warned(found: Capacity, *, now: datetime, thresholds: Sequence[Threshold] = THRESHOLDS) -> Warned | None:
    """The worst threshold that a storage reached, or None.

    Args:
        thresholds: the worst first.
    """
    if found.free_bytes is None:
        return None
    share = found.free_bytes / max(found.used_bytes + found.free_bytes, 1)
    for threshold in thresholds:
        soon = found.full_at is not None and found.full_at < now + threshold.full_within
        if share < threshold.free_share or soon:
            return Warned(threshold.severity, _sentence(found, share, now))
    return None


def _sentence(found: Capacity, share: float, now: datetime) -> str:
    said = f"{found.free_bytes:,} bytes are free, {share:.0%} of what the repository and they make together"
    if found.trend is None or found.full_at is None:
        return said
    return f"{said}; at {found.trend.bytes_per_day:,.0f} bytes a day they last {(found.full_at - now) / _DAY:.0f} days"


def used_bytes(storage: Storage) -> int:
    """What the objects of a repository take, hidden versions included; lists all of them."""
    return sum(stat.size_bytes for stat in storage.list()) + hidden_bytes(storage)


def expected_bytes(
    kind: BackupKind, cluster_bytes: int, recent: Sequence[Head], *, full: Head | None = None, wal_bytes: int = 0
) -> int:
    """How much the next backup will probably store; pure.

    Args:
        cluster_bytes: the size of the cluster's files.
        recent: heads of the newest backups of this kind.
        full: the newest full backup, by which compression is judged.
        wal_bytes: what was written to the log since the backup that this one builds on.
    """
    if kind is BackupKind.FULL:
        return round(cluster_bytes * _stored_share(max(recent, key=lambda head: head.ended_at, default=full)))
    if recent:
        # What changed since may be anything; the largest of the last ones is a fair guess.
        return max(head.stored_bytes for head in recent)
    # Pages that changed left about themselves in the log. It may be fewer, but the log itself goes into this storage
    # too: where there is no room for as much once more, there is none for what the cluster writes until the next one.
    return round(min(wal_bytes, cluster_bytes) * _stored_share(full))


def _stored_share(head: Head | None) -> float:
    """Stored by plain bytes of a full backup; all of it where nothing is known."""
    return min(head.stored_bytes / head.plain_bytes, 1.0) if head is not None and head.plain_bytes else 1.0


def refuse_full(room: Room, needed_bytes: int) -> None:
    """Stop before a backup that cannot fit; where neither the storage nor a quota says, nothing is refused.

    Raises:
        StorageFull: with the numbers.
    """
    if room.left_bytes is not None and room.left_bytes < needed_bytes:
        what = "Raise quota_bytes" if room.is_of_quota else "Enlarge the storage"
        raise StorageFull(
            f"{room.sentence}, the next backup takes about {needed_bytes:,}; it was not begun",
            hint=f"{what}, or shorten the retention: what that frees is free 24 hours later.",
        )


def refuse_without_room(
    area: SourceArea,
    kind: BackupKind,
    cluster_bytes: int,
    *,
    wal_bytes: int = 0,
    there_bytes: int = 0,
    quota_bytes: int = 0,
) -> None:
    """Stop before a backup of a source for which its storage, or its quota, has no room; reads a few heads.

    Args:
        kind: the one that will be taken, which need not be what was asked for.
        wal_bytes: what was written to the log since the backup that this one builds on; 0 where that is not known.
        there_bytes: of what it will store, that an attempt before it stored already.
        quota_bytes: what may lie in the storage by its settings; 0 is no limit.

    Raises:
        StorageFull: with the numbers.
    """
    room = room_in(area.storage, quota_bytes)
    if room.left_bytes is None:
        return
    recent = _recent(area, kind)
    full = None if recent or kind is BackupKind.FULL else next(iter(_recent(area, BackupKind.FULL, most=1)), None)
    expected = expected_bytes(kind, cluster_bytes, recent, full=full, wal_bytes=wal_bytes)
    refuse_full(room, max(expected - there_bytes, 0))


def _recent(area: SourceArea, kind: BackupKind, most: int = _RECENT) -> list[Head]:
    found: list[Head] = []
    for label in sorted(area.begun(), key=lambda label: label.begun_at, reverse=True):
        if label.kind is kind and len(found) < most:
            try:
                found.append(area.head(label))
            except (BackupMissing, Damaged, FormatTooNew):
                continue
    return found
