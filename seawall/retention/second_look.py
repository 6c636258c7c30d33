"""What is not removed though it was marked: asked once more of all that is there when the grace is over.

Between a mark and a removal lies a day or more. Meanwhile the backup that was to stand instead may have been lost or
found damaged, a hold may have come, or the policy may have been mended after a slip. So the policy decides again, over
the marked sets too: they are what can still be brought back. Reads only.

Not asked again: which copies other locations lack. They had them, or did not want them, when the mark was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from seawall.model import BackupLabel, Head, Health, Hold
from seawall.repository import SourceArea
from seawall.retention.decide import plan, redundant
from seawall.retention.policy import RetentionPolicy
from seawall.retention.unneeded import WalRange


@dataclass(frozen=True, slots=True)
class SecondLook:
    """Why sets stay after all, and which WAL may go; `free_wal` is None where no policy was asked."""

    staying: Mapping[BackupLabel, str] = field(default_factory=dict)
    free_wal: tuple[WalRange, ...] | None = None

    def frees(self, segment: str) -> bool:
        """Whether the WAL of this name may go."""
        return self.free_wal is None or any(wal.first <= segment <= wal.last for wal in self.free_wal)


def look_again(
    area: SourceArea,
    holds: Sequence[Hold],
    policy: RetentionPolicy | None,
    *,
    now: datetime,
    unsound: Mapping[BackupLabel, str] | None = None,
) -> SecondLook:
    """Decide once more about all that is committed, marked or not.

    Args:
        policy: of this location; without one only the last good backups, full and of any kind, are kept back.
        unsound: sets that were found wrong here when they were read back, and why.

    Raises:
        ClockWentBackwards: a set stopped after `now`.
    """
    heads, _ = area.readable_heads(with_expired=True)
    if policy is None:
        return SecondLook(dict.fromkeys(_last_good(heads), "no newer good backup is there any more"))
    made = plan(
        area.name,
        heads,
        holds,
        policy,
        now=now,
        wal_names=area.wal.segments(),
        unfinished=area.unfinished(),
        unsound=unsound,
        at_rest=True,
    )
    return SecondLook({decision.label: "; ".join(decision.reasons) for decision in made.keep}, made.wal)


def _last_good(heads: Sequence[Head]) -> set[BackupLabel]:
    ordered = sorted(heads, key=lambda head: head.stopped_at)
    good = [head for head in ordered if head.health is Health.GOOD]
    return {head.label for head in (*good[-1:], *redundant(ordered, 1))}


def holds_on(area: SourceArea, origin: SourceArea | None, now: datetime) -> tuple[Hold, ...]:
    """The holds in force on a source's sets in one location: those that lie there, and those of the primary.

    A hold is placed in the primary and brought elsewhere by the next mirror; what is held must not go before that.

    Args:
        origin: the source in the primary location, when `area` is another one.
    """
    own = area.holds(now)
    known = {hold.id for hold in own}
    return own + tuple(hold for hold in (origin.holds(now) if origin else ()) if hold.id not in known)
