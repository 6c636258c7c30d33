"""What a bucket's rules do to a repository, beside what its plan wants. Pure.

The worst comes first: a rule that deletes what backups need, one that hides it for hours, one that moves what must be
quick to reach, and last what is merely missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from seawall.lifecycle.classes import by_name
from seawall.lifecycle.rules import ABORT_DAYS, NONCURRENT_DAYS, Action, LifecyclePlan, Rule

_ORDER = ("critical", "high", "medium", "low")
_WORTHLESS = "probes/"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: how grave, of which rule, and a sentence."""

    severity: str
    rule: str
    message: str


def compare(planned: LifecyclePlan, configured: Iterable[Rule]) -> tuple[Difference, ...]:
    """How the rules of a bucket differ from a plan, the gravest first; rules for other names are nobody's business."""
    there = [rule for rule in configured if _touches(planned, rule)]
    found = [one for rule in there for one in _judged(planned, rule)]
    found += [
        Difference("low", rule.id, f"a rule is not configured: {sentence(rule)}")
        for rule in planned.rules
        if not any(rule.same_as(other) for other in there)
    ]
    return tuple(sorted(found, key=lambda one: _ORDER.index(one.severity)))


def _touches(planned: LifecyclePlan, rule: Rule) -> bool:
    """Whether a rule can concern anything of the repository but what is worthless."""
    below = rule.prefix.startswith(planned.root)
    if below and rule.prefix[len(planned.root) :].startswith(_WORTHLESS):
        return False
    return below or planned.root.startswith(rule.prefix)


def _judged(planned: LifecyclePlan, rule: Rule) -> Iterator[Difference]:
    if any(rule.same_as(wanted) for wanted in planned.rules):
        return
    said = sentence(rule)
    if rule.action is Action.DELETE:
        text = f"{said}. That deletes what the retention policy keeps: holds, keys and the last good backup have no age"
        yield Difference("critical", rule.id, text)
    elif rule.action is Action.DELETE_NONCURRENT and rule.days < NONCURRENT_DAYS:
        text = f"{said}. Whoever hides all backups need only wait so long; {NONCURRENT_DAYS} days are planned"
        yield Difference("high", rule.id, text)
    elif rule.action is Action.MOVE:
        yield _moved(planned, rule, said)
    elif rule.action is Action.ABORT_UPLOADS and rule.days < ABORT_DAYS:
        yield Difference("medium", rule.id, f"{said}. A slow upload may take longer; {ABORT_DAYS} days are planned")


def _moved(planned: LifecyclePlan, rule: Rule, said: str) -> Difference:
    kind = by_name(planned.vendor, rule.storage_class)
    if kind is not None and not kind.online:
        text = f"{said}. It must be thawed there before it can be read: no restore or verification works until then"
        return Difference("high", rule.id, text)
    return Difference(
        "medium", rule.id, f"{said}. The plan does not: it may cost more, or slow down what is read often"
    )


def sentence(rule: Rule) -> str:
    """A rule in words."""
    what = f"objects below {rule.prefix!r}" if rule.prefix else "all objects of the bucket"
    narrow = f" of more than {rule.larger_than:,} bytes" if rule.larger_than else ""
    return {
        Action.MOVE: f"{what}{narrow} move to {rule.storage_class} after {rule.days} days",
        Action.ABORT_UPLOADS: f"uploads of {what} are aborted after {rule.days} days",
        Action.DELETE_NONCURRENT: f"earlier versions of {what}{narrow} are deleted after {rule.days} days",
        Action.CLEAN_MARKERS: f"delete markers of {what} with nothing below them go",
        Action.DELETE: f"{what}{narrow} are deleted after {rule.days} days",
    }[rule.action]
