"""Costs add up, follow the table that the user wrote, and grow with what is stored."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import prices
from seawall.capacity import Trend
from seawall.costs import monthly, projected
from seawall.errors import SettingsError
from seawall.prices import GIB, ClassPrice, PriceTable
from seawall.usage import Usage

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MONEY = st.floats(0, 10)
TABLE = PriceTable(
    "t", "EUR", date(2026, 1, 1), {"HOT": ClassPrice(0.02), "COLD": ClassPrice(0.004, 0.03, 90)},
    writes_per_1000=0.005, reads_per_1000=0.0004, egress_gb=0.09, read_share_per_month=0.5,
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> PriceTable:
    classes = {kind: ClassPrice(draw(MONEY), draw(MONEY)) for kind in ("HOT", "COLD")}
    numbers = [draw(MONEY) for _ in range(3)]
    return PriceTable("t", "EUR", date(2026, 1, 1), classes, *numbers, draw(st.floats(0, 1)))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    by_class = {kind: draw(st.integers(0, 10**13)) for kind in ("", "COLD")}
    objects = draw(st.integers(0, 10**7))
    return Usage(NOW, objects, sum(by_class.values()), draw(st.integers(0, objects)), 0, by_class)


def test_a_month_is_what_the_table_says_it_is() -> None:
    usage = Usage(NOW, 10_000, 300 * GIB, 2_000, 10 * GIB, {"": 100 * GIB, "COLD": 200 * GIB})
    cost = monthly(usage, TABLE)
    assert cost.storage == pytest.approx({"": 2.0, "COLD": 0.8})
    # 2,000 objects and 1,280 parts of 8 MiB were written; half of 10,000 objects and 38,400 parts are read.
    assert (cost.writes, cost.reads) == (pytest.approx(3.28 * 0.005), pytest.approx(24.2 * 0.0004))
    assert (cost.retrieval, cost.egress) == (pytest.approx(3.0), pytest.approx(13.5))
    assert cost.total == pytest.approx(2.8 + 0.0164 + 0.00968 + 3.0 + 13.5)


@given(usages(), tables())
def test_the_parts_are_never_negative_and_make_the_whole(usage: Usage, table: PriceTable) -> None:
    cost = monthly(usage, table)
    parts = [*cost.storage.values(), cost.writes, cost.reads, cost.retrieval, cost.egress]
    assert min(parts) >= 0
    assert cost.total == pytest.approx(sum(parts))


@given(usages(), tables(), st.integers(2, 9))
def test_so_many_times_as_much_costs_so_many_times_as_much(usage: Usage, table: PriceTable, times: int) -> None:
    more = Usage(
        NOW, usage.objects * times, usage.used_bytes * times, usage.recent_objects * times, 0,
        {kind: count * times for kind, count in usage.by_class.items()},
    )  # fmt: skip
    assert monthly(more, table).total == pytest.approx(times * monthly(usage, table).total)


@given(usages(), tables(), st.floats(-1e9, 1e9), st.integers(1, 120))
def test_what_grows_costs_more_and_what_shrinks_less_but_never_less_than_nothing(
    usage: Usage, table: PriceTable, growth: float, months: int
) -> None:
    now, later = monthly(usage, table).total, projected(usage, table, Trend(growth, NOW), months).total
    slack = 1e-6 * max(now, later, 1)
    assert later >= 0
    assert later >= now - slack if growth >= 0 else later <= now + slack
    assert projected(usage, table, None, months).total == now


def test_a_class_that_the_table_lacks_is_counted_and_named() -> None:
    cost = monthly(Usage(NOW, 1, GIB, 0, 0, {"DEEP": GIB}), TABLE)
    assert (cost.storage["DEEP"], cost.unpriced) == (pytest.approx(0.02), ("DEEP",))


def test_the_example_can_be_read_and_says_that_it_is_one() -> None:
    found = prices.parse(tomllib.loads(prices.example()))
    assert {name.startswith("example-") for name in found} == {True}
    assert all("example" in table.note and table.as_of for table in found.values())
    assert found["example-s3"].first_class == "STANDARD"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"egress_gb": -1}, "at least 0"),
        ({"egress_gb": float("nan")}, "at least 0"),
        ({"egress_gb": "much"}, "at least 0"),
        ({"egres_gb": 1}, "unknown key"),
        ({"currency": 5}, "currency"),
        ({"as_of": "lately"}, "as_of"),
        ({"classes": {}}, "classes"),
        ({"classes": {"HOT": {}}}, "gb_month"),
        ({"bytes_per_gb": 0}, "more than 0"),
    ],
)
def test_a_wrong_table_is_refused_with_the_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    table = {"currency": "EUR", "as_of": date(2026, 1, 1), "classes": {"HOT": {"gb_month": 1}}}
    with pytest.raises(SettingsError, match=said):
        prices.parse({"tables": {"mine": table | change}})
    with pytest.raises(SettingsError, match=r"\[tables.NAME\]"):
        prices.parse({"table": {}})
    with pytest.raises(SettingsError, match="cannot be read"):
        prices.load(tmp_path / "none.toml")
