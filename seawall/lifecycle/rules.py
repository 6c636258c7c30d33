"""From a retention policy to lifecycle rules, each with its reason. Pure.

A rule knows an object's age and the beginning of its name, nothing of backups. So data moves at ages at which the
policy has let go whatever it keeps for shorter: what is left then stays for as long as the next rule says at least, and
that must be longer than the colder class charges for anyway.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from seawall.lifecycle.classes import StorageClass, Vendor
from seawall.repository.layout import SourceLayout
from seawall.retention.policy import RetentionPolicy

# No upload of Seawall's is silent for so long, and every vendor counts in whole days.
ABORT_DAYS = 7
# Whoever hides or overwrites everything must not win by waiting: nightly proofs notice long before.
NONCURRENT_DAYS = 90
# Two days of grace before a marked set is gone, two more until the cleanup came by.
_SLACK_DAYS = 4
_DAYS_OF_MONTH = 365.2425 / 12
# A slot's last backup may be a week older than the slot's end, and months differ by three days.
_UNEVEN_DAYS = 10
# Above every head and key (a reader refuses documents of more than 4 MiB), below most bundles.
LARGE_BYTES = 8 * 1024 * 1024
_HEX = tuple("0123456789abcdef")


class Action(StrEnum):
    MOVE = "move"
    ABORT_UPLOADS = "abort-uploads"
    DELETE_NONCURRENT = "delete-noncurrent"
    CLEAN_MARKERS = "clean-markers"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, in no vendor's form.

    Args:
        id: its name in the bucket; Seawall's begin with `seawall-`.
        days: the age of the object, of the upload, or since something lay over the version.
        prefix: of the whole names in the bucket, that of the repository included; empty for all.
        storage_class: where to, of `MOVE`.
        larger_than: only objects of more bytes.
        suffixes: only names that end with one of them; empty for all.
        reason: why Seawall wants it.
    """

    id: str
    action: Action
    days: int
    prefix: str
    storage_class: str = ""
    larger_than: int = 0
    suffixes: tuple[str, ...] = ()
    reason: str = ""

    def same_as(self, other: Rule) -> bool:
        """Whether both do the same, whatever they are called."""
        return self._effect() == other._effect()

    def _effect(self) -> tuple[object, ...]:
        kind = self.storage_class.lower()
        return (self.action, self.days, self.prefix, kind, self.larger_than, frozenset(self.suffixes))


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """How long one source's backups stay in the location.

    Args:
        full_after_days: how old a full backup may be that others build on; 0 is no limit.
    """

    source: str
    policy: RetentionPolicy
    full_after_days: int = 0


@dataclass(frozen=True, slots=True)
class LifecyclePlan:
    """The rules for one location, and why others are not there.

    Args:
        root: the beginning of all names of the repository in the bucket.
        mark: the beginning of the ids of all rules for this root.
    """

    vendor: Vendor
    root: str
    mark: str
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tier:
    """What one rule keeps: for `least_days` at least, and gone after `most_days` unless another rule keeps it."""

    name: str
    least_days: int
    most_days: int


@dataclass(frozen=True, slots=True)
class Move:
    """At which age what is left moves, where to, and for how long it stays after that at least."""

    days: int
    to: StorageClass
    tier: Tier


def plan(vendor: Vendor, root: str, classes: Sequence[StorageClass], sources: Iterable[SourcePolicy]) -> LifecyclePlan:
    """The rules that fit the policies of all sources in one location.

    Args:
        root: the beginning of all names of the repository in the bucket, empty or ending with `/`; for Azure with the
            container before it.
        classes: where old data may move to, warmest first.
    """
    mark = f"seawall-{hashlib.sha256(root.encode()).hexdigest()[:8]}-"
    rules: list[Rule] = []
    notes: list[str] = []
    for source in sources:
        found = moves(source, classes)
        rules += [_moving(vendor, root, mark, source.source, move) for move in found]
        if not found:
            notes.append(f"{source.source}: nothing is moved; {_why_not(source, classes)}")
    housekeeping, more = _housekeeping(vendor, root, mark)
    return LifecyclePlan(vendor, root, mark, (*rules, *housekeeping), (*notes, *more, *_NOTES[vendor]))


def class_at(rules: Iterable[Rule], name: str, size_bytes: int, age_days: float) -> str:
    """The class that rules have moved an object to; empty for the one that new objects lie in.

    Args:
        name: the whole one in the bucket.
    """
    there = [rule for rule in rules if rule.action is Action.MOVE and _moves(rule, name, size_bytes, age_days)]
    return max(there, key=lambda rule: rule.days).storage_class if there else ""


def _moves(rule: Rule, name: str, size_bytes: int, age_days: float) -> bool:
    named = name.startswith(rule.prefix) and (not rule.suffixes or name.endswith(rule.suffixes))
    return named and size_bytes > rule.larger_than and age_days >= rule.days


def moves(source: SourcePolicy, classes: Sequence[StorageClass]) -> tuple[Move, ...]:
    """When a source's data moves: one class colder whenever the next of the policy's rules has let go what it kept."""
    found: list[Move] = []
    left = list(classes)
    for days, tier in _boundaries(source):
        free = found[-1].days + found[-1].to.least_days if found else 0
        fitting = next((one for one in left if _fits(one, days, tier, free)), None)
        if fitting is not None:
            found.append(Move(max(days, fitting.earliest_days), fitting, tier))
            left = left[left.index(fitting) + 1 :]
    return tuple(found)


def _fits(one: StorageClass, days: int, tier: Tier, free: int) -> bool:
    begins = max(days, one.earliest_days)
    return begins >= free and tier.least_days - begins >= max(one.least_days, 1)


def _boundaries(source: SourcePolicy) -> list[tuple[int, Tier]]:
    """Each age from which on only longer rules keep anything, with the shortest-lived of those."""
    tiers = tiers_of(source)
    ages = sorted({tier.most_days for tier in tiers})
    found = []
    for age in ages:
        staying = [tier for tier in tiers if tier.most_days > age]
        if staying:
            found.append((age, min(staying, key=lambda tier: tier.least_days)))
    return found


def tiers_of(source: SourcePolicy) -> list[Tier]:
    """The spans of a policy in days, from below and from above.

    A backup that others build on, or that the window begins with, stays until the last of these went: as much longer
    as a chain may be.
    """
    policy, chain = source.policy, source.full_after_days
    spans = [("the window", policy.window), ("daily backups", policy.daily)]
    spans += [(f"every {kind.value} backup", span) for kind, span in policy.kept_for.items()]
    days = [(name, span / timedelta(days=1)) for name, span in spans if span]
    found = [Tier(name, math.floor(span), math.ceil(span) + chain + _SLACK_DAYS) for name, span in days]
    months = [("weekly backups", policy.weekly_months), ("monthly backups", 12 * policy.monthly_years)]
    for name, count in months:
        if count:
            span = count * _DAYS_OF_MONTH
            most = math.ceil(span) + _UNEVEN_DAYS + chain + _SLACK_DAYS
            found.append(Tier(name, max(math.floor(span) - _UNEVEN_DAYS, 0), most))
    return found


def _why_not(source: SourcePolicy, classes: Sequence[StorageClass]) -> str:
    if not classes:
        return "cold_classes names no class"
    longest = max((tier.least_days for tier in tiers_of(source)), default=0)
    return f"no class charges for less than what stays longest, {longest} days, has left when shorter rules are over"


def _moving(vendor: Vendor, root: str, mark: str, source: str, move: Move) -> Rule:
    rest = move.tier.least_days - move.days
    return Rule(
        f"{mark}{source}-{move.to.name.lower().replace('_', '-')}",
        Action.MOVE,
        move.days,
        f"{root}{SourceLayout(source).backups}",
        move.to.name,
        LARGE_BYTES if vendor is Vendor.S3 else 0,
        _HEX if vendor is Vendor.GCS else (),
        f"from day {move.days} on only {move.tier.name} and what stays longer are left of {source}, for at least "
        f"{rest} days more; {move.to.name} charges for {move.to.least_days}",
    )


def _housekeeping(vendor: Vendor, root: str, mark: str) -> tuple[list[Rule], list[str]]:
    """What has nothing to do with policies."""
    abort = Rule(
        f"{mark}abort-uploads", Action.ABORT_UPLOADS, ABORT_DAYS, root,
        reason=f"parts of an upload that is not finished after {ABORT_DAYS} days are nobody's, and are charged for",
    )  # fmt: skip
    noncurrent = Rule(
        f"{mark}noncurrent", Action.DELETE_NONCURRENT, NONCURRENT_DAYS, root,
        reason="Seawall overwrites nothing and deletes whole versions: what lies below something else was hidden by "
        f"another, and {NONCURRENT_DAYS} days are left to notice it and bring it back",
    )  # fmt: skip
    if vendor is Vendor.AZURE:
        return [], [_NO_UPLOADS, _NO_VERSIONS]
    markers = Rule(
        f"{mark}markers", Action.CLEAN_MARKERS, 0, root, reason="a delete marker with nothing below it hides nothing"
    )
    return [abort, noncurrent, *([markers] if vendor is Vendor.S3 else [])], []


_NO_UPLOADS = "no rule for uploads: the service removes blocks that were not committed after a week by itself"
_NO_VERSIONS = (
    "no rule for earlier versions: this service counts from when a version was made, not from when something hid it, "
    "so that the rule would delete an old backup on the day on which somebody overwrote it"
)
_KEPT = "identity, keys, audit, holds, leases and WAL are not moved; of a backup,"
_LARGE_ONLY = (
    f"{_KEPT} only objects of more than {LARGE_BYTES >> 20} MiB are: bundles, and the manifest and block map of a very "
    "large source"
)
_BUNDLES_ONLY = f"{_KEPT} only bundles are: their names end with a hexadecimal digit, no others do"
_ALL_OF_A_BACKUP = (
    f"{_KEPT} head and manifest move with the bundles, because rules of this service see only the beginning of a name; "
    "Cool and Cold are read as quickly as Hot"
)
_NOTES = {Vendor.S3: (_LARGE_ONLY,), Vendor.GCS: (_BUNDLES_ONLY,), Vendor.AZURE: (_ALL_OF_A_BACKUP,)}
