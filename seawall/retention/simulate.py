"""A policy played forward: what a schedule of backups leaves in the storage over years. Pure.

Each simulated day takes the schedule's backups and then decides as `plan` does in earnest, on heads that say nothing
but when they stopped and how large they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from seawall.errors import UsageError
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    SealingMode,
)
from seawall.retention.decide import plan
from seawall.retention.policy import RetentionPolicy
from seawall.retention.unneeded import window_bases
from seawall.wal import Lsn

_DAY = timedelta(days=1)
_LONGEST_YEARS = 100
_MOST_GROWTH = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """When backups are taken, and how large they are.

    Args:
        full_every, incremental_every: from one to the next, counted from the first; without incrementals, zero. A
            multiple of an hour that divides a day, or of a day.
        full_bytes, incremental_bytes: as stored.
        wal_bytes_per_day: as stored.
        growth_per_year: by which factor all of these grow in a year, at most 10; 1 is not at all.

    Raises:
        UsageError: no full backups, incrementals that do not fit between them, or another growth.
    """

    full_every: timedelta = _DAY
    incremental_every: timedelta = timedelta(0)
    full_bytes: int = 0
    incremental_bytes: int = 0
    wal_bytes_per_day: int = 0
    growth_per_year: float = 1.0

    def __post_init__(self) -> None:
        if self.full_every <= timedelta(0):
            raise UsageError("a schedule without full backups protects nothing")
        step = self.incremental_every
        if step < timedelta(0) or step > self.full_every or (step and self.full_every % step):
            raise UsageError(
                f"incrementals every {step} do not fit between full backups every {self.full_every}",
                hint="Take a part of the time between full backups, such as 24 of 168 hours; 0 for none.",
            )
        if not 0 < self.growth_per_year <= _MOST_GROWTH:
            raise UsageError(
                f"a growth to {self.growth_per_year:g} times as much in a year cannot be simulated",
                hint=f"More than 0 and at most {_MOST_GROWTH} times: -99 to {100 * (_MOST_GROWTH - 1)} percent.",
            )


@dataclass(frozen=True, slots=True)
class YearEnd:
    """What lies in the storage when a simulated year is over, after the cleanup of its last day.

    `backups` are those that are listed; `stored_bytes` count also what they refer to of others, and WAL.
    """

    at: datetime
    backups: int
    fulls: int
    stored_bytes: int
    labels: tuple[BackupLabel, ...]


@dataclass(frozen=True, slots=True)
class Simulation:
    """The course of a policy: each year's end, and the most that was stored before a day's cleanup."""

    years: tuple[YearEnd, ...]
    peak_bytes: int
    peak_at: datetime


def simulate(policy: RetentionPolicy, schedule: Schedule, *, years: int, start: datetime) -> Simulation:
    """Play a schedule forward under a policy.

    Args:
        years: how many, of 365 days.
        start: when the first full backup stops; aware. Days are 24 hours from here.

    Raises:
        UsageError: no or too many years.
    """
    if not 1 <= years <= _LONGEST_YEARS:
        raise UsageError(f"{years} years cannot be simulated; 1 to {_LONGEST_YEARS} can")
    stored: list[Head] = []
    ends, peak, peak_at = [], 0, start
    taken = _backups(schedule, start)
    following = next(taken)
    for day in range(365 * years):
        now = start + (day + 1) * _DAY - timedelta(microseconds=1)
        while following.stopped_at <= now:
            stored.append(following)
            following = next(taken)
        before = _stored_bytes(stored, policy, schedule, start, now)
        if before > peak:
            peak, peak_at = before, now
        kept = {decision.label for decision in plan("simulated", stored, (), policy, now=now, at_rest=True).keep}
        # What is let go is counted as long as a kept set builds on it.
        stored = [head for head in stored if head.label in kept]
        if (day + 1) % 365 == 0:
            ends.append(_year_end(stored, policy, schedule, start, now))
    return Simulation(tuple(ends), peak, peak_at)


def _year_end(
    kept: Sequence[Head], policy: RetentionPolicy, schedule: Schedule, start: datetime, now: datetime
) -> YearEnd:
    fulls = sum(head.kind is BackupKind.FULL for head in kept)
    size = _stored_bytes(kept, policy, schedule, start, now)
    return YearEnd(now, len(kept), fulls, size, tuple(head.label for head in kept))


def _backups(schedule: Schedule, start: datetime) -> Iterator[Head]:
    """Every backup of the schedule, for ever; where both kinds are due, the full one is taken."""
    step = schedule.incremental_every or schedule.full_every
    moment, due, base = start, start, start
    while True:
        if moment >= due:
            base, due = moment, due + schedule.full_every
            yield _head(schedule, BackupKind.FULL, moment, base, start)
        else:
            yield _head(schedule, BackupKind.INCREMENTAL, moment, base, start)
        moment += step if schedule.incremental_every else due - moment


def _head(schedule: Schedule, kind: BackupKind, moment: datetime, base: datetime, start: datetime) -> Head:
    full = kind is BackupKind.FULL
    size = schedule.full_bytes if full else schedule.incremental_bytes
    label = BackupLabel(moment.replace(microsecond=0), kind, None if full else base)
    return replace(
        _PATTERN, label=label, kind=kind, began_at=moment, ended_at=moment, stopped_at=moment,
        stored_bytes=round(size * _growth(schedule, moment, start)), prior="" if full else str(BackupLabel(base)),
    )  # fmt: skip


def _growth(schedule: Schedule, moment: datetime, start: datetime) -> float:
    return float(schedule.growth_per_year ** ((moment - start) / timedelta(days=365)))


def _stored_bytes(
    kept: Sequence[Head], policy: RetentionPolicy, schedule: Schedule, start: datetime, now: datetime
) -> int:
    """What kept sets take, with the full sets that they build on and the WAL of the window."""
    own = sum(head.stored_bytes for head in kept)
    listed = {str(head.label) for head in kept}
    built_on = {head.label.base_begun_at for head in kept if head.prior and head.prior not in listed}
    bases = sum(
        _head(schedule, BackupKind.FULL, base, base, start).stored_bytes for base in built_on if base is not None
    )
    oldest = min((head.stopped_at for head in window_bases(kept, now - policy.window)), default=now)
    wal = schedule.wal_bytes_per_day * ((now - oldest) / _DAY) * _growth(schedule, now, start)
    return own + bases + round(wal)


_NEVER = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
_PATTERN = Head(
    label=BackupLabel(_NEVER), source="simulated", kind=BackupKind.FULL, mode=CopyMode.DIRECT,
    cluster=ClusterIdentity(1, 18, (1,)), server_version=180000, timeline=1, start_lsn=Lsn(0), stop_lsn=Lsn(1),
    segment_bytes=1 << 24, began_at=_NEVER, ended_at=_NEVER, stopped_at=_NEVER, plain_bytes=0, stored_bytes=0,
    file_count=0, object_count=0, compression=Compression.ZSTD, sealing=SealingMode.NONE, key_id="",
    manifest_sha256="", manifest_bytes=0,
)  # fmt: skip
