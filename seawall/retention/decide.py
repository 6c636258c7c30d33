"""Which backups a policy keeps and which it lets go, each with every reason. Pure.

Order is by stop time, never by name or LSN alone: numbers may start again, times of one source do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from seawall.errors import ClockWentBackwards, RetentionRefused
from seawall.model import BackupKind, BackupLabel, Head, Health, Hold
from seawall.retention.policy import RetentionPolicy, Slots, slots
from seawall.retention.unneeded import WalRange, unneeded_wal, window_bases

CLOCK_TOLERANCE = timedelta(minutes=5)
# A source that was backed up each day and then not for a week has another trouble than too many backups.
_LEAST_REST = timedelta(days=7)
# So many spans say how often sets come.
_LOOKED_AT = 9


@dataclass(frozen=True, slots=True)
class Decision:
    """One set with every reason for what becomes of it."""

    label: BackupLabel
    reasons: tuple[str, ...]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a policy keeps and lets go at a moment, with reasons; sets in the order in which they began.

    Every moment of `window` up to `made_at` stays restorable. What is `unsound` counted as no good set.
    """

    source: str
    made_at: datetime
    keep: tuple[Decision, ...]
    expire: tuple[Decision, ...]
    wal: tuple[WalRange, ...] = ()
    window: timedelta = timedelta(0)
    unsound: frozenset[BackupLabel] = frozenset()

    @property
    def freed_bytes(self) -> int:
        """At most: what later backups refer to stays."""
        return sum(decision.stored_bytes for decision in self.expire)


def plan(
    source: str,
    heads: Sequence[Head],
    holds: Sequence[Hold],
    policy: RetentionPolicy,
    *,
    now: datetime,
    wal_names: Iterable[str] = (),
    unreadable: Mapping[BackupLabel, str] | None = None,
    unfinished: Sequence[Head] = (),
    awaited: Mapping[BackupLabel, Sequence[str]] | None = None,
    unsound: Mapping[BackupLabel, str] | None = None,
    at_rest: bool = False,
) -> RetentionPlan:
    """Decide about every set of a source.

    Args:
        heads: all committed sets that are not marked.
        holds: the holds in force.
        policy: what to keep.
        now: aware.
        wal_names: the segments of which anything is stored, of all timelines.
        unreadable: committed sets whose heads cannot be read, and why: they stay, and so does all WAL.
        unfinished: sets that have everything but the manifest. They count for nothing, and stay while the window does.
        awaited: sets that other locations shall hold and do not yet, with their names (`copies.awaited`): they stay.
        unsound: sets that were found wrong when they were read back, and why: they count as no good ones.
        at_rest: the source takes no new backups any more, and what it has may grow old.

    Raises:
        ClockWentBackwards: a set stopped after `now`; no age can be trusted.
        RetentionRefused: the plan would let go what must stay, or sets stopped coming, up to now or a week ago.
    """
    unreadable, unsound = unreadable or {}, unsound or {}
    ordered = [_judged(head, unsound) for head in sorted(heads, key=lambda head: head.stopped_at)]
    _refuse_future(ordered, now)
    standing = standing_sets(ordered, policy, now)
    reasons = reasons_to_keep(ordered, holds, policy, now, standing)
    for label, names in (awaited or {}).items():
        reasons[label].append(f"{' and '.join(names)} shall hold it and does not yet")
    for label, why in unsound.items():
        if reasons.get(label):
            reasons[label].append(f"it counts as no good one: {why}")
    kept = [head for head in ordered if reasons[head.label]]
    keep = [Decision(head.label, tuple(reasons[head.label]), head.stored_bytes) for head in kept]
    keep += [Decision(label, (f"its head cannot be read: {why}",), 0) for label, why in unreadable.items()]
    dependents = _dependents(ordered, kept)
    gone = [_let_go(head, standing, dependents, policy, now) for head in ordered if not reasons[head.label]]
    waiting = [head for head in unfinished if head.stopped_at >= now - policy.window]
    keep += [_unfinished(head, policy) for head in waiting]
    gone += [_unfinished(head, policy) for head in unfinished if head not in waiting]
    # An unreadable head may say anything of the WAL that its set needs.
    wal = () if unreadable else tuple(unneeded_wal(kept, holds, policy.window, now, wal_names, waiting=waiting))
    made = RetentionPlan(source, now, _in_time(keep), _in_time(gone), wal, policy.window, frozenset(unsound))
    refuse_unsafe(made, ordered, holds)
    # WAL from before the only set is of no use, whatever the time.
    if (made.expire or (made.wal and len(ordered) > 1)) and not at_rest:
        _refuse_jump(ordered, now)
    return made


def _judged(head: Head, unsound: Mapping[BackupLabel, str]) -> Head:
    return replace(head, health=Health.DEGRADED) if head.label in unsound else head


def _in_time(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    return tuple(sorted(decisions, key=lambda decision: decision.label.begun_at))


@dataclass(frozen=True, slots=True)
class Standing:
    """A slot rule with the one set that stands for each of its slots."""

    rule: Slots
    sets: Mapping[str, Head]


def standing_sets(ordered: Sequence[Head], policy: RetentionPolicy, now: datetime) -> tuple[Standing, ...]:
    """For each slot rule, the last good full set of each slot, else the last good one, else the last."""
    there = [(head, head.stopped_at.astimezone(policy.zone)) for head in ordered]
    return tuple(Standing(rule, _last_of_slots(there, rule)) for rule in slots(policy, now))


def _last_of_slots(there: Iterable[tuple[Head, datetime]], rule: Slots) -> dict[str, Head]:
    chosen: dict[str, Head] = {}
    for head, local in there:
        slot = rule.of(local)
        # They come in the order in which they stopped, so among equals the later one takes the place.
        if slot not in chosen or _rank(head) >= _rank(chosen[slot]):
            chosen[slot] = head
    return chosen


def reasons_to_keep(
    ordered: Sequence[Head],
    holds: Sequence[Hold],
    policy: RetentionPolicy,
    now: datetime,
    standing: Sequence[Standing],
) -> dict[BackupLabel, list[str]]:
    """Every reason that keeps a set, by label; none for what may go."""
    reasons: dict[BackupLabel, list[str]] = {head.label: [] for head in ordered}
    for head in ordered:
        span = policy.kept_for.get(head.kind, timedelta(0))
        if span and head.stopped_at >= now - span:
            reasons[head.label].append(f"{head.kind.value}, within {span.days} days")
    for one in standing:
        for slot, head in one.sets.items():
            if head.stopped_at >= one.rule.since:
                reasons[head.label].append(f"{one.rule.name}: the last of {slot}")
    if policy.window:
        for head in window_bases(ordered, now - policy.window):
            reasons[head.label].append(f"the window of {policy.window.days} days begins with it")
    for head in ordered[len(ordered) - min(policy.keep_last, len(ordered)) :]:
        reasons[head.label].append(f"one of the last {policy.keep_last}")
    for head in redundant(ordered, policy.minimum_redundancy):
        reasons[head.label].append("one of the last good full backups")
    for head in [head for head in ordered if head.health is Health.GOOD][-1:]:
        reasons[head.label].append("the newest good backup")
    for hold in holds:
        if hold.label in reasons:
            reasons[hold.label].append(f"held by {hold.owner}: {hold.reason}")
    return reasons


def _rank(head: Head) -> int:
    if head.health is not Health.GOOD:
        return 0
    return 2 if head.kind is BackupKind.FULL else 1


def redundant(ordered: Sequence[Head], number: int) -> Sequence[Head]:
    full = [head for head in ordered if head.kind is BackupKind.FULL]
    good = [head for head in full if head.health is Health.GOOD]
    return (good or full)[-max(number, 1) :]


def _let_go(
    head: Head,
    standing: Sequence[Standing],
    dependents: Mapping[BackupLabel, Sequence[str]],
    policy: RetentionPolicy,
    now: datetime,
) -> Decision:
    """Why a set goes: its age, and for each slot rule what stands there instead of it, or that its time is over."""
    reasons = [f"stopped {(now - head.stopped_at).days} days ago"]
    local = head.stopped_at.astimezone(policy.zone)
    for one in standing:
        slot = one.rule.of(local)
        if one.sets[slot] is head:
            reasons.append(f"{one.rule.name} keeps what stopped since {one.rule.since:%Y-%m-%d}")
        else:
            reasons.append(f"{one.sets[slot].label} stands for {slot}")
    if not standing:
        reasons.append("no rule keeps it")
    if head.label in dependents:
        reasons.append(f"its data stays as far as {', '.join(dependents[head.label])} refers to it")
    return Decision(head.label, tuple(reasons), head.stored_bytes)


def _dependents(ordered: Sequence[Head], kept: Sequence[Head]) -> dict[BackupLabel, list[str]]:
    """The kept sets that build on a set, directly or by others."""
    by_text = {str(head.label): head for head in ordered}
    found: dict[BackupLabel, list[str]] = defaultdict(list)
    for head in kept:
        prior = by_text.get(head.prior)
        while prior is not None:
            found[prior.label].append(str(head.label))
            prior = by_text.get(prior.prior)
    return found


def _unfinished(head: Head, policy: RetentionPolicy) -> Decision:
    return Decision(
        head.label,
        (f"its manifest is missing while its copy is there; it is looked at for {policy.window.days} days",),
        head.stored_bytes,
    )


def _refuse_future(ordered: Sequence[Head], now: datetime) -> None:
    if ordered and ordered[-1].stopped_at > now + CLOCK_TOLERANCE:
        raise ClockWentBackwards(f"backup {ordered[-1].label} stopped after {now.isoformat()}, which should be now")


def _refuse_jump(ordered: Sequence[Head], now: datetime) -> None:
    """Stop when the newest set is much older than sets of this source used to be when the next one came.

    Either the clock jumped ahead, and every age is wrong; or backups fail, and what there is must last. A backup that
    is taken after such a rest proves neither: it has the time of the same clock. So a week is left to notice it.
    """
    for earlier, later in _rests([head.stopped_at for head in ordered], now):
        rested = f"{(later - earlier).days} days"
        if later == now:
            raise RetentionRefused(
                f"the newest backup stopped {rested} ago, and they used to come more often: the clock jumped, or "
                "backups fail; nothing is let go"
            )
        raise RetentionRefused(
            f"the backup that stopped at {later.isoformat()} came {rested} after the one before it, and they used to "
            "come more often: the clock jumped, or backups failed; nothing is let go for a week",
            hint="If this host's clock is right, `seawall expire --at-rest` does not wait.",
        )


def _rests(stops: Sequence[datetime], now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Spans without a backup that ended this week: longer than a week, and four times the longest before them."""
    moments = [*stops, now]
    for number, (earlier, later) in enumerate(pairwise(moments)):
        before = moments[max(number - _LOOKED_AT, 0) : number + 1]
        usual = max((two - one for one, two in pairwise(before)), default=timedelta(0))
        # How often the first ones come is not known yet, unless none came any more.
        is_known = len(before) > 1 or later == now
        if is_known and later >= now - _LEAST_REST and later - earlier > max(_LEAST_REST, 4 * usual):
            yield earlier, later


def refuse_unsafe(made: RetentionPlan, heads: Sequence[Head], holds: Sequence[Hold]) -> None:
    """Look at a finished plan once more, by other means than those that made it.

    Args:
        heads: all committed sets that are not marked, in any order.

    Raises:
        RetentionRefused: it lets go everything, the last good full set, something held, or what begins the window.
    """
    gone = {decision.label for decision in made.expire}
    if heads and gone >= {head.label for head in heads}:
        raise RetentionRefused(f"the plan lets go of every backup of {made.source}")
    held = [hold for hold in holds if hold.label in gone]
    if held:
        raise RetentionRefused(f"{held[0].label} is held by {held[0].owner}: {held[0].reason}")
    good = [head for head in heads if head.health is Health.GOOD and head.label not in made.unsound]
    fulls = [head for head in good if head.kind is BackupKind.FULL]
    if fulls and max(fulls, key=lambda head: head.stopped_at).label in gone:
        raise RetentionRefused(f"the plan lets go of the last good full backup of {made.source}")
    early = [head for head in good if head.stopped_at < made.made_at - made.window]
    if made.window and early and max(early, key=lambda head: head.stopped_at).label in gone:
        raise RetentionRefused(f"the plan breaks the window of {made.window.days} days at its beginning")
