"""Until when a policy surely keeps what is there, whatever comes later: the dates that objects may be locked to. Pure.

A date is certain where the policy counts from the set itself: the span of its kind, and each calendar slot that is over
and that the set stands for. What is kept without a date (the newest good backups, what the window begins with, who
stands for a slot that still runs) is kept up to the next look; for that there is a short date, which later looks move
on. So nothing is locked for longer than the policy keeps it, but for that short date and the rest of a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, time, timedelta

from seawall.model import BackupLabel, Head, Health
from seawall.retention.decide import redundant, standing_sets
from seawall.retention.policy import RetentionPolicy, months_before
from seawall.retention.unneeded import window_bases

# The short date lies between one and two of these ahead, so that a missed week of looks unlocks nothing.
_LOOK = timedelta(days=7)
_DAY = timedelta(days=1)
_EPOCH_MONDAY = datetime.fromisoformat("1970-01-05T00:00:00+00:00")


def kept_until(
    heads: Sequence[Head], policy: RetentionPolicy, *, at_most: timedelta = timedelta(0), now: datetime
) -> dict[BackupLabel, datetime]:
    """The date up to which each set is kept, full days of UTC; a set that the policy lets go has none.

    Args:
        heads: of the committed sets that are not marked.
        at_most: no date is farther ahead than this, and a week; 0 for as far as the policy keeps.
    """
    # A date that moved on every day would have every object locked anew every day.
    farthest = _up(now + at_most, _LOOK) if at_most else None
    ordered = sorted(heads, key=lambda head: head.stopped_at)
    found: dict[BackupLabel, datetime] = {}
    for head, until in (*_dated(ordered, policy, now), *_undated(ordered, policy, now)):
        if until > now:
            date = _up(until, _DAY) if farthest is None else min(_up(until, _DAY), farthest)
            found[head.label] = max(date, found.get(head.label, now))
    return found


def wal_kept_until(policy: RetentionPolicy, *, now: datetime) -> datetime:
    """Up to when WAL that comes now is kept: the window, and a day for the backup that the window begins with."""
    return _up(now + policy.window + _DAY, _DAY)


def longest(policy: RetentionPolicy) -> timedelta:
    """The longest that a policy surely keeps a single set, about: how far ahead a lock may reach. Pure."""
    months = (timedelta(days=31 * policy.weekly_months), timedelta(days=366 * policy.monthly_years))
    return max((*policy.kept_for.values(), policy.daily, *months), default=timedelta(0))


def _dated(ordered: Sequence[Head], policy: RetentionPolicy, now: datetime) -> Iterator[tuple[Head, datetime]]:
    for head in ordered:
        yield head, head.stopped_at + policy.kept_for.get(head.kind, timedelta(0))
    spans: dict[str, Callable[[datetime], datetime]] = {
        "daily": lambda local: local + policy.daily,
        "weekly": lambda local: _months_after(local, policy.weekly_months),
        "monthly": lambda local: _months_after(local, 12 * policy.monthly_years),
    }
    today = now.astimezone(policy.zone)
    for one in standing_sets(ordered, policy, now):
        for slot, head in one.sets.items():
            # As long as its slot runs, a later set may take its place.
            if slot != one.rule.of(today):
                yield head, spans[one.rule.name](head.stopped_at.astimezone(policy.zone))


def _undated(ordered: Sequence[Head], policy: RetentionPolicy, now: datetime) -> Iterator[tuple[Head, datetime]]:
    soon = _up(now + _LOOK, _LOOK)
    good = [head for head in ordered if head.health is Health.GOOD][-1:]
    last = ordered[len(ordered) - min(policy.keep_last, len(ordered)) :]
    bases = window_bases(ordered, now - policy.window) if policy.window else []
    for head in (*good, *last, *bases, *redundant(ordered, policy.minimum_redundancy)):
        yield head, soon
    today = now.astimezone(policy.zone)
    for one in standing_sets(ordered, policy, now):
        head_now = one.sets.get(one.rule.of(today))
        if head_now is not None:
            yield head_now, soon


def _months_after(local: datetime, months: int) -> datetime:
    """From when on `months_before` no longer reaches back to this moment."""
    later = months_before(local, -months)
    if later.day == local.day:
        return later
    # That month is too short for this day: what `months_before` reaches from the next one begins after it.
    return datetime.combine(later.date() + timedelta(days=1), time(0), local.tzinfo)


def _up(moment: datetime, step: timedelta) -> datetime:
    """The next multiple of a step, in UTC, counted from a Monday; so that dates do not differ by when one looks."""
    steps, rest = divmod(moment - _EPOCH_MONDAY, step)
    return _EPOCH_MONDAY + (steps + bool(rest)) * step
