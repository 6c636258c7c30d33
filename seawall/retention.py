"""Which backups to keep, which to let go, and letting them go in two steps.

`plan` is pure and gives a reason for every set, kept or not. `expire` marks what a plan lets go: a marked set
is not listed any more, and can still be brought back. `collect` removes, after a grace of at least 24 hours and
another look, what was marked and what was never committed. Every deletion is in the audit before it happens.

Never let go: the last good full backup, anything held, anything a kept set needs, the WAL that makes a kept
set consistent, and WAL inside the point-in-time window. Order is by stop time, never by name or LSN alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from seawall.audit import AuditLog
from seawall.errors import ClockWentBackwards, ObjectExists, ObjectMissing, StorageDenied, UsageError
from seawall.events import Noticed, Observer
from seawall.model import BackupKind, BackupLabel, Head, Health, Hold
from seawall.repository import Repository, SourceArea, documents, lease
from seawall.wal import Segment

log = logging.getLogger(__name__)
MINIMUM_GRACE = timedelta(hours=24)
_CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long backups are kept.

    Args:
        window: every moment of this span up to now stays restorable.
        minimum_redundancy: so many of the newest good full backups stay whatever their age.
    """

    window: timedelta
    minimum_redundancy: int = 1

    @classmethod
    def of_days(cls, days: int) -> RetentionPolicy:
        """The policy that a job's `retention_days` states.

        Raises:
            UsageError: fewer than one day; a policy that keeps nothing is never meant.
        """
        if days < 1:
            raise UsageError(f"a retention of {days} days would keep nothing", hint="Set retention_days to 1 or more.")
        return cls(timedelta(days=days))


@dataclass(frozen=True, slots=True)
class Decision:
    """One set with every reason for what becomes of it."""

    label: BackupLabel
    reasons: tuple[str, ...]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class WalRange:
    """Segments of one timeline, first and last included."""

    timeline: int
    first: str
    last: str
    count: int


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a policy keeps and lets go at a moment, with reasons."""

    source: str
    made_at: datetime
    keep: tuple[Decision, ...]
    expire: tuple[Decision, ...]
    wal: tuple[WalRange, ...] = ()

    @property
    def freed_bytes(self) -> int:
        return sum(decision.stored_bytes for decision in self.expire)


def plan(
    source: str,
    heads: Sequence[Head],
    holds: Sequence[Hold],
    policy: RetentionPolicy,
    *,
    now: datetime,
    wal_names: Iterable[str] = (),
) -> RetentionPlan:
    """Decide about every set of a source.

    Args:
        heads: all committed sets that are not marked.
        holds: the holds in force.
        policy: what to keep.
        now: aware.
        wal_names: the complete segments that are stored, of all timelines.

    Raises:
        ClockWentBackwards: a set stopped after `now`; no age can be trusted.
    """
    ordered = sorted(heads, key=lambda head: head.stopped_at)
    if ordered and ordered[-1].stopped_at > now + _CLOCK_TOLERANCE:
        raise ClockWentBackwards(f"backup {ordered[-1].label} stopped after {now.isoformat()}, which should be now")
    reasons = _reasons(ordered, holds, policy, now)
    _keep_what_kept_ones_need(ordered, reasons)
    keep = tuple(_decision(head, reasons[head.label]) for head in ordered if reasons[head.label])
    gone = tuple(
        _decision(head, [f"stopped more than {policy.window.days} days ago and nothing needs it"])
        for head in ordered
        if not reasons[head.label]
    )
    kept = [head for head in ordered if reasons[head.label]]
    return RetentionPlan(source, now, keep, gone, tuple(_unneeded_wal(kept, policy, now, wal_names)))


def _decision(head: Head, reasons: Iterable[str]) -> Decision:
    return Decision(head.label, tuple(reasons), head.stored_bytes)


def _reasons(
    ordered: Sequence[Head], holds: Sequence[Hold], policy: RetentionPolicy, now: datetime
) -> dict[BackupLabel, list[str]]:
    begins = now - policy.window
    reasons: dict[BackupLabel, list[str]] = {head.label: [] for head in ordered}
    for head in ordered:
        if head.stopped_at >= begins:
            reasons[head.label].append(f"within {policy.window.days} days")
    before = [head for head in ordered if head.stopped_at < begins]
    for health in (None, Health.GOOD):
        # The newest set from before the window makes its first moments restorable; a degraded one does not
        # take the place of the newest good one.
        candidates = [head for head in before if health is None or head.health is health]
        if candidates and not reasons[candidates[-1].label]:
            reasons[candidates[-1].label].append("the window begins with it")
    good = [head for head in ordered if head.kind is BackupKind.FULL and head.health is Health.GOOD]
    fulls = good or [head for head in ordered if head.kind is BackupKind.FULL]
    for head in fulls[-max(policy.minimum_redundancy, 1) :]:
        reasons[head.label].append("one of the last good full backups")
    for hold in holds:
        if hold.label in reasons:
            reasons[hold.label].append(f"held by {hold.owner}: {hold.reason}")
    return reasons


def _keep_what_kept_ones_need(ordered: Sequence[Head], reasons: dict[BackupLabel, list[str]]) -> None:
    by_text = {str(head.label): head for head in ordered}
    for head in sorted(ordered, key=lambda h: h.label.begun_at, reverse=True):
        needed = by_text.get(head.prior)
        if reasons[head.label] and needed is not None:
            reasons[needed.label].append(f"needed by {head.label}")


def _unneeded_wal(
    kept: Sequence[Head], policy: RetentionPolicy, now: datetime, names: Iterable[str]
) -> Iterator[WalRange]:
    """Runs of stored segments that no kept set and no moment of the window needs.

    Replay may begin at any kept set from which the window is reached: everything from the oldest such start on
    stays, on its timeline and on every later one. An older kept set needs only its own start to stop.
    """
    if not kept:
        return
    begins = now - policy.window
    before = [head for head in kept if head.stopped_at < begins]
    open_ended = [head for head in kept if head.stopped_at >= begins] + before[-1:]
    oldest = min(open_ended, key=lambda head: (head.timeline, head.start_lsn))
    first = Segment.containing(oldest.start_lsn, oldest.timeline, oldest.segment_bytes)
    protected = {name for head in kept for name in _own_wal(head)}
    run: list[str] = []
    for name in sorted(names):
        segment = Segment.parse(name, oldest.segment_bytes)
        # Positions are compared too: a later timeline's segment below the first position was never written.
        free = segment.timeline <= first.timeline and segment.number < first.number and name not in protected
        if run and (not free or run[-1][:8] != name[:8]):
            yield WalRange(int(run[0][:8], 16), run[0], run[-1], len(run))
            run = []
        if free:
            run.append(name)
    if run:
        yield WalRange(int(run[0][:8], 16), run[0], run[-1], len(run))


def _own_wal(head: Head) -> Iterator[str]:
    first = Segment.containing(head.start_lsn, head.timeline, head.segment_bytes)
    last = Segment.ending_at(head.stop_lsn, head.timeline, head.segment_bytes)
    return (Segment(head.timeline, n, head.segment_bytes).name for n in range(first.number, last.number + 1))


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, and what it left and why; `swept` counts leftovers of interrupted puts."""

    sets: tuple[str, ...] = ()
    objects: int = 0
    freed_bytes: int = 0
    left: Mapping[str, str] = field(default_factory=dict)
    swept: int = 0


def expire(repository: Repository, plan_: RetentionPlan, *, actor: str, now: datetime) -> int:
    """Mark what a plan lets go; the first of two steps. Returns how many marks are new.

    Raises:
        ClockWentBackwards: this host's clock and the storage's disagree.
    """
    _compare_clocks(repository, now)
    area, audit = repository.source(plan_.source), AuditLog(repository.storage)
    marked = 0
    # Newest first, so that an interruption never leaves a dependent whose base is already marked.
    for decision in reversed(plan_.expire):
        # The audit precedes the deed: a mark without a record cannot exist.
        audit.append(actor, "expire", f"{plan_.source} {decision.label}", {"why": "; ".join(decision.reasons)}, now=now)
        marked += _mark(area, area.layout.expiry(decision.label), {"label": str(decision.label)}, actor, now)
    for wal in plan_.wal:
        name = f"{area.layout.expired}wal-{wal.first}-{wal.last}.json"
        details = {"timeline": wal.timeline, "first": wal.first, "last": wal.last, "count": wal.count}
        text = {member: str(value) for member, value in details.items()}
        audit.append(actor, "expire-wal", f"{plan_.source} {wal.first}..{wal.last}", text, now=now)
        marked += _mark(area, name, details, actor, now)
    return marked


def _mark(area: SourceArea, name: str, details: Mapping[str, object], actor: str, now: datetime) -> int:
    try:
        documents.put(area.storage, name, {**details, "actor": actor, "marked_at": now.isoformat()})
    except ObjectExists:
        return 0
    return 1


def unexpire(repository: Repository, source: str, label: BackupLabel, *, actor: str, now: datetime) -> None:
    """Take a mark back while the set is still there.

    Raises:
        BackupMissing: its removal has begun, or it never was.
        ObjectMissing: it is not marked.
    """
    area = repository.source(source)
    area.head(label)
    area.storage.stat(area.layout.expiry(label))
    AuditLog(repository.storage).append(actor, "unexpire", f"{source} {label}", {}, now=now)
    # WAL that this set leads on to may be marked, too. All marks on WAL go: the next `expire` makes those that
    # are still right, and until then nothing of it is removed.
    for stat in list(area.storage.list(f"{area.layout.expired}wal-")):
        area.storage.delete(stat.name)
    area.storage.delete(area.layout.expiry(label))


def collect(
    repository: Repository,
    source: str,
    *,
    actor: str,
    now: datetime,
    observe: Observer,
    grace: timedelta = MINIMUM_GRACE,
    dry_run: bool = False,
) -> Collected:
    """Remove what was marked at least `grace` ago, and sets never committed that are as old; the second step.

    An interrupted collection finishes next time: every deletion of something absent is success.

    Raises:
        UsageError: a grace below 24 hours.
        ClockWentBackwards: this host's clock and the storage's disagree.
    """
    if grace < MINIMUM_GRACE:
        raise UsageError(f"a grace of {grace} is below the least of 24 hours")
    _compare_clocks(repository, now)
    return _Collection(repository, source, actor=actor, now=now, observe=observe, grace=grace, dry_run=dry_run).run()


def _compare_clocks(repository: Repository, now: datetime) -> None:
    theirs = repository.storage.now()
    if abs(theirs - now) > _CLOCK_TOLERANCE:
        raise ClockWentBackwards(
            f"this host says {now.isoformat()}, the storage says {theirs.isoformat()}; nothing is deleted by guess"
        )


class _Collection:
    """One run of the second step."""

    def __init__(
        self,
        repository: Repository,
        source: str,
        *,
        actor: str,
        now: datetime,
        observe: Observer,
        grace: timedelta,
        dry_run: bool,
    ) -> None:
        self._area = repository.source(source)
        self._audit = AuditLog(repository.storage)
        self._actor, self._now, self._observe = actor, now, observe
        self._grace, self._dry_run = grace, dry_run
        self._sets: list[str] = []
        self._left: dict[str, str] = {}
        self._objects = self._freed = 0

    def run(self) -> Collected:
        for stat in list(self._area.storage.list(self._area.layout.expired)):
            self._observe.checkpoint()
            mark = documents.get(self._area.storage, stat.name)
            if self._now - documents.moment(mark["marked_at"], name=stat.name) < self._grace:
                self._left[stat.name] = "its grace has not passed"
            elif "label" in mark:
                self._collect_set(BackupLabel.parse(mark["label"]), stat.name)
            else:
                self._collect_wal(str(mark["first"]), str(mark["last"]), stat.name)
        self._collect_uncommitted()
        swept = 0 if self._dry_run else self._area.storage.sweep(self._grace)
        return Collected(tuple(self._sets), self._objects, self._freed, self._left, swept)

    def _collect_set(self, label: BackupLabel, mark: str) -> None:
        # The second look: a hold may have come, or a new set may build on this one.
        if any(hold.label == label for hold in self._area.holds(self._now)):
            self._left[str(label)] = "a hold was placed on it"
        elif any(head.prior == str(label) for head in self._area.heads()):
            self._left[str(label)] = "a listed backup builds on it"
        elif self._remove(label, "collect"):
            # The mark goes only with the last object: without it, what a lock kept would be listed again.
            self._delete(mark)

    def _collect_wal(self, first: str, last: str, mark: str) -> None:
        kept = {name for head in self._area.heads() for name in _own_wal(head)}
        names = [n for n in sorted(self._area.wal.names(int(first[:8], 16))) if first <= n <= last and n not in kept]
        self._audit_unless_dry("collect-wal", f"{first}..{last}", {"segments": str(len(names))})
        gone = True
        for name in names:
            self._observe.checkpoint()
            gone = self._delete(self._area.layout.segment(name)) and gone
        if gone:
            self._delete(mark)

    def _collect_uncommitted(self) -> None:
        running = lease.newest(self._area.storage, self._area.layout)
        committed = set(self._area.labels(with_expired=True))
        for label in self._area.begun():
            if label in committed or self._area.is_expired(label):
                continue
            newest = max(
                (s.modified_at for s in self._area.storage.list(self._area.layout.backup(label))), default=self._now
            )
            if running is not None and running.runs_at(self._area.storage.now()):
                self._left[str(label)] = "a writer is at work on this source"
            elif self._now - newest < self._grace:
                self._left[str(label)] = "it was never committed, but its grace has not passed"
            else:
                self._remove(label, "collect-uncommitted")

    def _remove(self, label: BackupLabel, action: str) -> bool:
        """Remove everything of a set; false when something had to stay."""
        self._audit_unless_dry(action, str(label), {})
        layout = self._area.layout
        # The manifest goes first: from then on no reader takes what is left for a backup. If it must stay, so
        # does all that it names.
        for name in (layout.manifest(label), layout.manifest_copy(label)):
            if not self._delete(name):
                return False
        gone = True
        for stat in list(self._area.storage.list(layout.backup(label))):
            self._observe.checkpoint()
            gone = self._delete(stat.name) and gone
        # The key goes last; without it nothing that a failing storage brings back could be read.
        for name in self._area.keychain.generations(str(label)) if gone else ():
            gone = self._delete(name) and gone
        self._sets.append(str(label))
        return gone

    def _audit_unless_dry(self, action: str, subject: str, details: Mapping[str, str]) -> None:
        if not self._dry_run:
            self._audit.append(self._actor, action, f"{self._area.name} {subject}", details, now=self._now)

    def _delete(self, name: str) -> bool:
        """Delete one object; true when it is gone (or would be, in a dry run), false when it is locked."""
        try:
            size = self._area.storage.stat(name).size_bytes
            if not self._dry_run:
                self._area.storage.delete(name)
        except ObjectMissing:
            return True
        except StorageDenied as error:
            # Locked is a normal state: the object goes when its lock ends.
            self._left[name] = error.message
            self._observe.hear(Noticed("low", "locked", f"{name} stays: {error.message}"))
            return False
        self._objects += 1
        self._freed += size
        return True
