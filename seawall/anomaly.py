"""What is unusual about a backup, beside the history of its own source.

A backup that is far smaller than all before it may have lost its data before it was taken; one that hardly compresses
any more may hold what a thief encrypted. So four measures are compared with those of earlier backups of the same kind
by median and median absolute deviation, which a few odd ones do not move. To be marked, a measure must be off by more
than a number of deviations, by more than a share of the usual, and by more than an absolute amount: a source whose
backups never vary is not alarmed by a trifle.

Not guaranteed: that a marked backup is bad, or another one good. A mark is a reason to look, before the good ones go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from seawall.errors import BackupMissing, Damaged, FormatTooNew, NameRefused
from seawall.model import BackupKind, BackupLabel, Head
from seawall.repository import SourceArea

# Of a normal distribution, 1.4826 times the median absolute deviation is the standard deviation (Rousseeuw and Croux,
# "Alternatives to the Median Absolute Deviation", 1993).
_TO_SIGMA = 1.4826


class Measure(StrEnum):
    """What is compared: bytes of the cluster, seconds, the share stored anew, and stored bytes for each of these."""

    SIZE = "size"
    DURATION = "duration"
    CHANGED = "changed"
    COMPRESSION = "compression"


@dataclass(frozen=True, slots=True)
class Threshold:
    """When a measure is off; all three must be exceeded.

    Args:
        deviations: so many standard deviations, estimated from the median absolute deviation.
        relative: a share of the usual value.
        absolute: in the measure's own unit.
    """

    deviations: float
    relative: float
    absolute: float


# Defaults: bytes, seconds, shares of 1.
THRESHOLDS = {
    Measure.SIZE: Threshold(5, 0.25, 64 * 1024 * 1024),
    Measure.DURATION: Threshold(6, 1.0, 300),
    Measure.CHANGED: Threshold(6, 1.0, 0.1),
    Measure.COMPRESSION: Threshold(5, 0.25, 0.1),
}
LEAST_HISTORY = 5
_LONGEST_HISTORY = 30


@dataclass(frozen=True, slots=True)
class Measured:
    """One backup's measures; one that is None is not compared.

    Args:
        new_bytes: of the cluster, that this backup itself stored, before compression.
        stored_bytes: what became of them.
    """

    kind: BackupKind
    plain_bytes: int
    seconds: float
    new_bytes: int | None = None
    stored_bytes: int | None = None

    @classmethod
    def of(cls, head: Head, new_bytes: int | None = None, stored_bytes: int | None = None) -> Measured:
        """From a head; what an incremental stored anew must be told."""
        if head.kind is BackupKind.FULL and new_bytes is None:
            new_bytes, stored_bytes = head.plain_bytes, head.stored_bytes
        seconds = (head.ended_at - head.began_at).total_seconds()
        return cls(head.kind, head.plain_bytes, seconds, new_bytes, stored_bytes)


@dataclass(frozen=True, slots=True)
class Mark:
    """One measure that is off: what it is, what is usual, and how many deviations lie between."""

    measure: Measure
    value: float
    usual: float
    deviations: float

    @property
    def sentence(self) -> str:
        """For people."""
        show = _SHOWN[self.measure]
        return f"{self.measure.value}: {show(self.value)} where {show(self.usual)} is usual"


def marks(
    history: Sequence[Measured], newest: Measured, thresholds: dict[Measure, Threshold] | None = None
) -> tuple[Mark, ...]:
    """What is unusual about a backup; pure.

    Args:
        history: of the same source, oldest first; only backups of the same kind count, and the newest 30 of them.
        newest: the one that is judged.
    """
    alike = [known for known in history if known.kind is newest.kind][-_LONGEST_HISTORY:]
    found = (
        _mark(measure, [_value(measure, known) for known in alike], _value(measure, newest), threshold)
        for measure, threshold in (thresholds or THRESHOLDS).items()
    )
    return tuple(mark for mark in found if mark is not None)


def judged(area: SourceArea, label: BackupLabel) -> tuple[Mark, ...]:
    """What is unusual about one listed backup beside those before it; reads their lists of objects.

    Raises:
        BackupMissing, Damaged: the backup itself cannot be read; earlier ones that cannot be are left out.
    """
    newest = area.head(label)
    earlier = [known for known in area.labels() if known.kind is label.kind and known.begun_at < label.begun_at]
    return marks(list(_read(area, earlier[-_LONGEST_HISTORY:])), _measured(area, newest))


def _read(area: SourceArea, labels: Sequence[BackupLabel]) -> Iterator[Measured]:
    for label in labels:
        with contextlib.suppress(BackupMissing, Damaged, FormatTooNew):
            yield _measured(area, area.head(label))


def _measured(area: SourceArea, head: Head) -> Measured:
    try:
        rows = area.stored_objects(head.label)
    except Damaged:
        return Measured.of(head)
    try:
        bundles = [r for r in rows if "/bundles/" in r.name and area.layout.is_new(r.name, head.label, head.prior)]
    except NameRefused:
        return Measured.of(head)
    return Measured.of(head, sum(row.plain_bytes for row in bundles), sum(row.stored_bytes for row in bundles))


def suspicions(heads: Sequence[Head]) -> dict[str, tuple[Mark, ...]]:
    """What is unusual about each backup of a source beside those before it, as far as heads tell; by label.

    Args:
        heads: of the listed sets, oldest first.
    """
    measured = [Measured.of(head) for head in heads]
    return {str(head.label): marks(measured[:n], measured[n]) for n, head in enumerate(heads)}


def _value(measure: Measure, backup: Measured) -> float | None:
    if measure is Measure.SIZE:
        return float(backup.plain_bytes)
    if measure is Measure.DURATION:
        return backup.seconds
    if backup.new_bytes is None or backup.stored_bytes is None:
        return None
    if measure is Measure.CHANGED:
        # A full backup stores everything; that says nothing.
        return None if backup.kind is BackupKind.FULL else backup.new_bytes / max(backup.plain_bytes, 1)
    return backup.stored_bytes / backup.new_bytes if backup.new_bytes else None


def _mark(measure: Measure, history: Sequence[float | None], value: float | None, threshold: Threshold) -> Mark | None:
    known = [earlier for earlier in history if earlier is not None]
    if value is None or len(known) < LEAST_HISTORY:
        return None
    usual = median(known)
    deviation = _TO_SIGMA * median(abs(earlier - usual) for earlier in known)
    off = abs(value - usual)
    if off <= max(threshold.deviations * deviation, threshold.relative * abs(usual), threshold.absolute):
        return None
    return Mark(measure, value, usual, off / deviation if deviation else float("inf"))


def _bytes(value: float) -> str:
    power = next((n for n in range(4) if value < 1024 ** (n + 1)), 4)
    return f"{value / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


_SHOWN: dict[Measure, Callable[[float], str]] = {
    Measure.SIZE: _bytes,
    Measure.DURATION: lambda seconds: f"{seconds:.0f} s",
    Measure.CHANGED: lambda share: f"{share:.1%}",
    Measure.COMPRESSION: lambda share: f"{share:.1%} of the size",
}
