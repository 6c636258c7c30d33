"""Which backups to keep, which to let go, and letting them go in two steps.

`plan` is pure and gives a reason for every set, kept or not. `expire` marks what a plan lets go: a marked set is not
listed any more, and can still be brought back. `collect` removes, after a grace of at least 24 hours and another look,
what was marked and what was never committed. Every deletion is in the audit before it happens.

Never let go: the last good full backup, anything held, any object that a kept set refers to, the WAL that makes a kept
set consistent, and WAL inside the point-in-time window. Order is by stop time, never by name or LSN alone.
"""

from seawall.retention.collect import MINIMUM_GRACE, Collected, collect
from seawall.retention.copies import Cleaned, awaited, clean_copy, clean_copy_alone, unwanted
from seawall.retention.decide import Decision, RetentionPlan, plan
from seawall.retention.marks import expire, plan_for, unexpire
from seawall.retention.policy import RetentionPolicy, policy_for, policy_of
from seawall.retention.unneeded import WalRange, promised

__all__ = [
    "MINIMUM_GRACE",
    "Cleaned",
    "Collected",
    "Decision",
    "RetentionPlan",
    "RetentionPolicy",
    "WalRange",
    "awaited",
    "clean_copy",
    "clean_copy_alone",
    "collect",
    "expire",
    "plan",
    "plan_for",
    "policy_for",
    "policy_of",
    "promised",
    "unexpire",
    "unwanted",
]
