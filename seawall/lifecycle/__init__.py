"""Lifecycle rules of buckets: made from the retention policy, and compared with what a bucket has.

Invariants: no rule deletes what a reader could still want. Old data moves to classes that answer at once; what must be
quick to reach stays; uploads that nobody finishes are aborted; versions that something hid or wrote over go after a
long while. Deleting backups stays Seawall's own work, with its audit, grace, holds and second look.

Not guaranteed: that moving pays. A colder class costs more to read, and verification reads.
"""

from seawall.lifecycle.bucket import Inspected, apply, inspect, merged, plan_for, table_of, wanted
from seawall.lifecycle.classes import Vendor, vendor_of
from seawall.lifecycle.compare import Difference, compare
from seawall.lifecycle.forms import document, parsed
from seawall.lifecycle.rules import Action, LifecyclePlan, Rule, SourcePolicy, class_at, plan

__all__ = [
    "Action",
    "Difference",
    "Inspected",
    "LifecyclePlan",
    "Rule",
    "SourcePolicy",
    "Vendor",
    "apply",
    "class_at",
    "compare",
    "document",
    "inspect",
    "merged",
    "parsed",
    "plan",
    "plan_for",
    "table_of",
    "vendor_of",
    "wanted",
]
