"""What storage costs, from a file that the user writes. Pure but for reading it.

No price is built in: the example that comes along is a form to fill in, not a claim.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

from seawall.errors import SettingsError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ClassPrice:
    """One storage class.

    Args:
        gb_month: for one GB for a month.
        retrieve_gb: for reading one GB.
        least_days: for so many days it charges at least.
    """

    gb_month: float
    retrieve_gb: float = 0.0
    least_days: int = 0


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The prices of one location.

    Args:
        as_of: the day on which they were looked up.
        classes: the first is the one that new objects lie in.
        writes_per_1000, reads_per_1000: requests.
        egress_gb: for one GB that is read from outside.
        read_share_per_month: how much of what is stored is read in a month.
    """

    name: str
    currency: str
    as_of: date
    classes: Mapping[str, ClassPrice]
    writes_per_1000: float = 0.0
    reads_per_1000: float = 0.0
    egress_gb: float = 0.0
    read_share_per_month: float = 0.0
    bytes_per_gb: int = GIB
    note: str = ""

    @property
    def first_class(self) -> str:
        return next(iter(self.classes))


def example() -> str:
    """The text of the example file."""
    return (resources.files("seawall") / "prices.example.toml").read_text(encoding="utf-8")


def load(path: Path) -> Mapping[str, PriceTable]:
    """The tables of a price file, by name.

    Raises:
        SettingsError: it cannot be read, or is malformed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"the price file {path} cannot be read: {error.strerror}",
            hint="`seawall location prices` prints one to begin with.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    return parse(document, origin=str(path))


def parse(document: Mapping[str, Any], *, origin: str = "prices") -> Mapping[str, PriceTable]:
    """The tables of a decoded price file; `origin` names it in messages.

    Raises:
        SettingsError: a key or value is wrong.
    """
    tables = document.get("tables")
    if not isinstance(tables, dict) or set(document) != {"tables"}:
        raise SettingsError(f"{origin}: write each table as a section [tables.NAME], and nothing else")
    return {name: _table(name, values, f"{origin}: [tables.{name}]") for name, values in tables.items()}


def _table(name: str, values: object, where: str) -> PriceTable:
    if not isinstance(values, dict) or not isinstance(values.get("classes"), dict) or not values["classes"]:
        raise SettingsError(f"{where} wants its classes as sections [tables.{name}.classes.CLASS]")
    classes = {
        kind: ClassPrice(**_numbers(ClassPrice, one, f"{where} {kind}")) for kind, one in values["classes"].items()
    }
    currency, as_of = values.get("currency"), values.get("as_of")
    if not isinstance(currency, str) or type(as_of) is not date:
        raise SettingsError(f"{where} wants currency as text and as_of as a day, such as 2026-01-31")
    rest = {key: value for key, value in values.items() if key not in ("classes", "currency", "as_of", "note")}
    numbers = _numbers(PriceTable, rest, where)
    if numbers.get("bytes_per_gb") == 0:
        raise SettingsError(f"{where} bytes_per_gb must be more than 0")
    return PriceTable(name, currency, as_of, classes, note=str(values.get("note", "")), **numbers)


def _numbers(cls: type[ClassPrice] | type[PriceTable], values: object, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must be a section")
    known = {one.name for one in fields(cls) if one.type in ("float", "int")}
    for key, value in values.items():
        if key not in known:
            raise SettingsError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SettingsError(f"{where} {key} = {value!r}: a number of at least 0 is wanted")
    missing = {"gb_month"} - values.keys() if cls is ClassPrice else set()
    if missing:
        raise SettingsError(f"{where} has no gb_month")
    return dict(values)
