"""The first of two steps: mark what a plan lets go, or take a mark back.

A marked set is not listed any more and nothing of it is gone. The source's lease is held meanwhile, so that no backup
builds on a set at the moment at which it is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from seawall import traces
from seawall.audit import AuditLog
from seawall.errors import BackupMissing, ClockWentBackwards, ObjectExists
from seawall.model import BackupLabel, Head
from seawall.repository import Repository, SourceArea, documents
from seawall.repository.lease import CLEANUP
from seawall.retention.decide import CLOCK_TOLERANCE, RetentionPlan, plan, refuse_unsafe
from seawall.retention.policy import RetentionPolicy
from seawall.retention.second_look import holds_on


def plan_for(
    area: SourceArea,
    policy: RetentionPolicy,
    *,
    now: datetime,
    at_rest: bool = False,
    awaited: Callable[[Sequence[Head]], Mapping[BackupLabel, Sequence[str]]] | None = None,
    origin: SourceArea | None = None,
    unsound: Mapping[BackupLabel, str] | None = None,
) -> RetentionPlan:
    """What a policy means for a source as it lies in the storage now; reads only. See `decide.plan`.

    Args:
        awaited: which of the listed sets other locations still wait for (`copies.awaited`).
        origin: the source in the primary location when this is another one; holds there are in force here too.
        unsound: sets that were found wrong here when they were read back, and why (`catalog.doubts`).

    Raises:
        ClockWentBackwards, RetentionRefused: nothing should be let go.
    """
    heads, unreadable = area.readable_heads()
    return plan(
        area.name,
        heads,
        holds_on(area, origin, now),
        policy,
        now=now,
        wal_names=area.wal.segments(),
        unreadable={label: error.message for label, error in unreadable.items()},
        unfinished=area.unfinished(),
        awaited=awaited(heads) if awaited else None,
        unsound=unsound,
        at_rest=at_rest,
    )


def expire(
    repository: Repository,
    plan_: RetentionPlan,
    *,
    actor: str,
    now: datetime,
    audit: AuditLog | None = None,
    origin: SourceArea | None = None,
) -> int:
    """Mark what a plan lets go; returns how many marks are new.

    Args:
        audit: where it is recorded, that of the primary location when this is another one; else the repository's own.
        origin: the source in the primary location when this is another one; holds there are in force here too.

    Raises:
        ClockWentBackwards: this host's clock and the storage's disagree.
        LeaseHeld: a backup runs.
        RetentionRefused: the repository changed since the plan was made, and it would now let go what must stay.
    """
    compare_clocks(repository, now)
    if not plan_.expire and not plan_.wal:
        return 0
    area = repository.source(plan_.source)
    with area.lease(actor, CLEANUP) as held:
        heads, _ = area.readable_heads()
        refuse_unsafe(plan_, heads, holds_on(area, origin, now))
        held.check()
        return _mark_all(audit or AuditLog(repository.storage), area, plan_, actor, now)


def _mark_all(audit: AuditLog, area: SourceArea, plan_: RetentionPlan, actor: str, now: datetime) -> int:
    marked, where = 0, {"location": area.storage.url}
    # Newest first, so that an interruption never leaves a dependent whose base is already marked.
    for decision in reversed(plan_.expire):
        # The audit precedes the deed: a mark without a record cannot exist.
        why = {"why": "; ".join(decision.reasons)} | where
        audit.append(actor, "expire", f"{plan_.source} {decision.label}", why, now=now)
        marked += _mark(area, area.layout.expiry(decision.label), {"label": str(decision.label)}, actor, now)
    for wal in plan_.wal:
        name = f"{area.layout.expired}wal-{wal.first}-{wal.last}.json"
        details = {"timeline": wal.timeline, "first": wal.first, "last": wal.last, "count": wal.count}
        text = {member: str(value) for member, value in details.items()} | where
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
        ObjectMissing: it is not marked, and the audit tells of no mark that was lost.
        LeaseHeld: its removal may be under way at this moment, or a backup runs.
    """
    area = repository.source(source)
    with area.lease(actor, CLEANUP) as held:
        if label not in area.labels(with_expired=True):
            raise BackupMissing(f"{source} has no backup {label} any more")
        if not traces.forgotten_mark(repository, source, label):
            area.storage.stat(area.layout.expiry(label))
        held.check()
        AuditLog(repository.storage).append(actor, "unexpire", f"{source} {label}", {}, now=now)
        # WAL that this set leads on to may be marked, too. All marks on WAL go: the next `expire` makes those that
        # are still right, and until then nothing of it is removed.
        for stat in list(area.storage.list(f"{area.layout.expired}wal-")):
            area.storage.delete(stat.name)
        area.storage.delete(area.layout.expiry(label))


def compare_clocks(repository: Repository, now: datetime) -> None:
    """Stop where ages cannot be trusted.

    Raises:
        ClockWentBackwards: this host's clock and the storage's differ by more than five minutes.
    """
    theirs = repository.storage.now()
    if abs(theirs - now) > CLOCK_TOLERANCE:
        raise ClockWentBackwards(
            f"this host says {now.isoformat()}, the storage says {theirs.isoformat()}; nothing is deleted by guess"
        )
