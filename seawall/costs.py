"""What a location costs in a month, and in later ones if it grows as it does. Pure.

An estimate: of what lies there now, in the classes that its bucket's rules say, with the requests of the last 30 days
and the reading that the price table assumes. Taxes, discounts, minimum sizes and early deletion are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from seawall.capacity import Trend
from seawall.prices import PriceTable
from seawall.storage.parts import PART_BYTES
from seawall.usage import Usage

_DAYS_OF_MONTH = 365.2425 / 12


@dataclass(frozen=True, slots=True)
class Cost:
    """One month of one location, in the table's currency.

    Args:
        storage: by class.
        retrieval: reading from classes that charge for it.
        unpriced: classes that the table does not have; they are counted at the price of its first.
    """

    storage: Mapping[str, float]
    writes: float
    reads: float
    retrieval: float
    egress: float
    unpriced: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.storage.values()) + self.writes + self.reads + self.retrieval + self.egress


def monthly(usage: Usage, prices: PriceTable) -> Cost:
    """What a month costs as things are; the class without a name is the one that new objects lie in."""
    share = prices.read_share_per_month
    storage: dict[str, float] = {}
    retrieval = 0.0
    for kind, count in usage.by_class.items():
        price = prices.classes.get(kind or prices.first_class, prices.classes[prices.first_class])
        size = count / prices.bytes_per_gb
        storage[kind] = size * price.gb_month
        retrieval += size * share * price.retrieve_gb
    return Cost(
        storage,
        _requests(usage.recent_objects, usage.recent_bytes) / 1000 * prices.writes_per_1000,
        _requests(usage.objects, usage.used_bytes) * share / 1000 * prices.reads_per_1000,
        retrieval,
        usage.used_bytes / prices.bytes_per_gb * share * prices.egress_gb,
        tuple(sorted(kind for kind in usage.by_class if kind and kind not in prices.classes)),
    )


def _requests(objects: int, size_bytes: int) -> float:
    """How many requests carry so many objects: one for each, and one for each part of a larger one."""
    return objects + size_bytes / PART_BYTES


def projected(usage: Usage, prices: PriceTable, trend: Trend | None, months: int) -> Cost:
    """What the month costs that is so many months away, if use changes as it did and the mix of classes stays."""
    if trend is None or not usage.used_bytes:
        return monthly(usage, prices)
    later = max(0.0, usage.used_bytes + trend.bytes_per_day * _DAYS_OF_MONTH * months)
    factor = later / usage.used_bytes
    grown = replace(
        usage,
        used_bytes=round(later),
        objects=round(usage.objects * factor),
        by_class={kind: round(count * factor) for kind, count in usage.by_class.items()},
    )
    return monthly(grown, prices)
