"""`seawall location list` and `cost`: how locations stand by what was measured there, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from seawall import costs, lifecycle, watch
from seawall.capacity import Capacity, Sample, standing, within_quota
from seawall.catalog import Measurement, StorageLocation
from seawall.cli.console import size
from seawall.cli.context import Context
from seawall.costs import Cost
from seawall.errors import SettingsError, UsageError
from seawall.locations import in_order
from seawall.prices import PriceTable
from seawall.settings import PRIMARY, LocationSettings
from seawall.usage import Usage

_MONTHS_AT_MOST = 120


@dataclass(frozen=True, slots=True)
class Standing:
    """A location as the settings name it and as the catalog knows it."""

    location: LocationSettings
    sources: tuple[str, ...]
    row: StorageLocation | None
    measured: Measurement | None
    capacity: Capacity | None

    @property
    def state(self) -> str:
        if self.row is None or self.row.last_health_check is None:
            return "not checked yet"
        return self.row.health_message or "good"


def known(context: Context, names: tuple[str, ...]) -> list[Standing]:
    """How locations stand; nothing but the settings where there is no catalog."""
    settings, now = context.settings, context.now()
    rows: dict[str, StorageLocation] = {}
    measurements: dict[str, tuple[Measurement, ...]] = {}
    with context.catalog_if_any() as catalog:
        if catalog is not None:
            by_name = {row.name: row for row in catalog.storage_locations()}
            for name in names:
                there = watch.known_name(catalog, name, settings.location(name).storage.url)
                if there in by_name:
                    rows[name] = by_name[there]
                    measurements[name] = catalog.measurements(there)
    found = []
    for name in names:
        location = settings.location(name)
        users = tuple(one.name for one in settings.sources.values() if name == PRIMARY or name in one.mirrors)
        there_ = measurements.get(name, ())
        capacity = _capacity(location, there_, now) if there_ else None
        found.append(Standing(location, users, rows.get(name), there_[-1] if there_ else None, capacity))
    return found


def _capacity(location: LocationSettings, measurements: tuple[Measurement, ...], now: datetime) -> Capacity:
    newest = measurements[-1]
    free = None if newest.capacity_bytes is None else max(newest.capacity_bytes - newest.used_bytes, 0)
    free = within_quota(free, watch.usage_of(newest).kept_bytes, location.storage.quota_bytes)
    samples = [Sample(one.measured_at, one.used_bytes) for one in measurements]
    trend = watch.trend_of(samples, newest.details)
    return standing(watch.ratios_in(newest.details), trend, used_bytes=newest.used_bytes, free_bytes=free, now=now)


def show(context: Context) -> int:
    """Show all locations, and what the catalog knows of them."""
    found = known(context, in_order(context.settings))
    tables = {one.location.name: _table(context, one) for one in found}
    values = [_value(one, tables[one.location.name]) for one in found]
    rows = [_row(one, tables[one.location.name]) for one in found]
    columns = (
        "NAME",
        "ROLE",
        "URL",
        "SOURCES",
        "STATE",
        "USED",
        "FREE",
        "FULL",
        "LATENCY",
        "COST",
        "CHECKED",
        "LAST PROOF",
    )
    context.console.result({"locations": values}, context.console.table(columns, rows))
    return 0


def _table(context: Context, one: Standing) -> PriceTable | None:
    """The prices of a location; a table that is missing is said, and the list is shown all the same."""
    try:
        return lifecycle.table_of(context.settings, one.location.storage)
    except SettingsError as error:
        context.console.note(f"{one.location.name}: {error.message}")
        return None


def _value(one: Standing, table: PriceTable | None) -> dict[str, Any]:
    row, capacity = one.row, one.capacity
    month = _month(one, table)
    value: dict[str, Any] = {
        "name": one.location.name,
        "role": one.location.role.value,
        "url": one.location.storage.url,
        "sources": list(one.sources),
        "checked_at": None if row is None else row.last_health_check,
        "problem": None if row is None else row.health_message,
        "latency_ms": None if row is None else row.latency_ms,
        "proved_at": None if row is None else row.last_proof_at,
        "used_bytes": None if one.measured is None else one.measured.used_bytes,
        "objects": None if one.measured is None else one.measured.object_count,
        "measured_at": None if one.measured is None else one.measured.measured_at,
        "capacity_bytes": None if row is None else row.capacity_bytes,
        "free_bytes": None if capacity is None else capacity.free_bytes,
        "quota_bytes": one.location.storage.quota_bytes or None,
        "monthly_cost": None if month is None or table is None else _amount(month.total, table),
    }
    return value | ({} if capacity is None else _growth(capacity))


def _growth(capacity: Capacity) -> dict[str, Any]:
    return {
        "bytes_per_day": None if capacity.trend is None else round(capacity.trend.bytes_per_day),
        "full_at": capacity.full_at,
        "compression_ratio": round(capacity.compression, 3),
        "dedupe_ratio": round(capacity.dedupe, 3),
        "saved_ratio": round(capacity.saved, 3),
    }


def _row(one: Standing, table: PriceTable | None) -> tuple[str, ...]:
    row, capacity = one.row, one.capacity
    month = _month(one, table)
    return (
        one.location.name,
        one.location.role.value,
        one.location.storage.url,
        ", ".join(one.sources) or "-",
        one.state,
        "-" if one.measured is None else size(one.measured.used_bytes),
        "-" if capacity is None or capacity.free_bytes is None else size(capacity.free_bytes),
        "-" if capacity is None or capacity.full_at is None else f"{capacity.full_at:%Y-%m-%d}",
        "-" if row is None or row.latency_ms is None else f"{row.latency_ms} ms",
        "-" if month is None or table is None else f"{month.total:,.2f} {table.currency}",
        _moment(None if row is None else row.last_health_check),
        _moment(None if row is None else row.last_proof_at),
    )


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}Z"


def _month(one: Standing, table: PriceTable | None) -> Cost | None:
    if table is None or one.measured is None:
        return None
    return costs.monthly(watch.usage_of(one.measured), table)


# ---- costs


def cost(context: Context, name: str | None, months: int) -> int:
    """Estimate what locations cost now and later."""
    if not 1 <= months <= _MONTHS_AT_MOST:
        raise UsageError(f"--months {months}: 1 to {_MONTHS_AT_MOST} is wanted")
    names = in_order(context.settings) if name is None else (context.settings.location(name).name,)
    values, lines = [], []
    for one in known(context, names):
        value, said = _estimate(one, _table(context, one), months)
        values.append(value)
        lines += said
    context.console.result({"locations": values}, lines)
    return 0


def _estimate(one: Standing, table: PriceTable | None, months: int) -> tuple[dict[str, Any], list[str]]:
    name = one.location.name
    if table is None:
        why = "no price table: name one as `prices`, see `seawall location prices`"
    elif one.measured is None:
        why = "not measured yet: `seawall location check` does it"
    else:
        return _estimated(one, watch.usage_of(one.measured), table, months)
    return {"name": name, "role": one.location.role.value, "estimated": False, "why": why}, [f"{name}: {why}"]


def _estimated(one: Standing, usage: Usage, table: PriceTable, months: int) -> tuple[dict[str, Any], list[str]]:
    trend = None if one.capacity is None else one.capacity.trend
    month, later = costs.monthly(usage, table), costs.projected(usage, table, trend, months)
    value = {
        "name": one.location.name,
        "role": one.location.role.value,
        "estimated": True,
        "table": table.name,
        "as_of": table.as_of,
        "measured_at": usage.measured_at,
        "month": _parts(month, table),
        "later": {"months": months, **_parts(later, table)},
        "bytes_per_day": None if trend is None else round(trend.bytes_per_day),
    }
    return value, _said(one.location.name, usage, table, month, f"{later.total:,.2f} in {months} months")


def _said(name: str, usage: Usage, table: PriceTable, now: Cost, later: str) -> list[str]:
    kinds = ", ".join(f"{kind or table.first_class} {money:,.2f}" for kind, money in now.storage.items())
    asked = f"writes {now.writes:,.2f}; reads {now.reads:,.2f}; retrieval {now.retrieval:,.2f}"
    month = f"{now.total:,.2f} {table.currency} a month for {size(usage.used_bytes)}"
    lines = [
        f"{name}: about {month}, {later}; prices {table.name} as of {table.as_of:%Y-%m-%d}",
        f"  storage: {kinds or '0'}; {asked}; egress {now.egress:,.2f}",
    ]
    if now.unpriced:
        lines.append(f"  not in the table, counted as {table.first_class}: {', '.join(now.unpriced)}")
    return lines


def _parts(month: Cost, table: PriceTable) -> dict[str, Any]:
    return {
        **_amount(month.total, table),
        "storage": {kind or table.first_class: round(money, 4) for kind, money in month.storage.items()},
        "writes": round(month.writes, 4),
        "reads": round(month.reads, 4),
        "retrieval": round(month.retrieval, 4),
        "egress": round(month.egress, 4),
        "unpriced": list(month.unpriced),
    }


def _amount(money: float, table: PriceTable) -> dict[str, Any]:
    return {"total": round(money, 4), "currency": table.currency}
