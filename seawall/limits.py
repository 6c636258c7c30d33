"""Limits by calendar: how many bytes per second are allowed at a moment.

Pure: the caller says what time it is. A window is meant in the clock of its time zone, so it moves with summer time
as people do. Windows are looked at in the order in which they are written, and the first that holds counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from seawall.errors import SettingsError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

# Units of amounts of bytes, as people write them.
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(rf"(\d+)\s*({'|'.join(BYTES)})?")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_KEYS = {"days", "from", "to", "time_zone", "bytes_per_second"}
_MIDNIGHT = time(0)


@dataclass(frozen=True, slots=True)
class LimitWindow:
    """When another limit holds than the section's own; the first window that holds counts.

    Args:
        days: on which days it begins, of `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`; every day when omitted.
        from_: when it begins, such as `"08:00"`; midnight when omitted.
        to: when it ends, exclusive; `"24:00"` when omitted. One that is not after `from` is of the next day.
        time_zone: whose clock is meant, such as `Europe/Berlin`; the site's (`[server] time_zone`) when omitted.
        bytes_per_second: the limit that holds then; 0 lifts it.
    """

    days: tuple[str, ...] = DAYS
    from_: time = _MIDNIGHT
    to: time = _MIDNIGHT
    time_zone: str = ""
    bytes_per_second: int = 0

    def holds(self, now: datetime, site_zone: str = "UTC") -> bool:
        """Whether it holds at `now`, an aware time."""
        local = now.astimezone(_zone(self.time_zone or site_zone))
        clock = local.time()
        if self.from_ < self.to:
            return self.from_ <= clock < self.to and DAYS[local.weekday()] in self.days
        # It goes past midnight, and what belongs to a day is what begins on it.
        if clock >= self.from_:
            return DAYS[local.weekday()] in self.days
        return clock < self.to and DAYS[(local - timedelta(days=1)).weekday()] in self.days


def limit_at(windows: Sequence[LimitWindow], now: datetime, *, otherwise: int = 0, site_zone: str = "UTC") -> int:
    """The bytes per second that are allowed at `now`; 0 is no limit.

    Args:
        now: aware.
        otherwise: the limit where no window holds.
        site_zone: for windows that name no zone of their own.
    """
    return next((w.bytes_per_second for w in windows if w.holds(now, site_zone)), otherwise)


def highest(windows: Sequence[LimitWindow], otherwise: int = 0) -> int:
    """The most that any moment may allow; 0 is no limit. For what takes one limit and cannot change it later."""
    limits = [otherwise, *(window.bytes_per_second for window in windows)]
    return 0 if 0 in limits else max(limits)


def parsed(value: object) -> tuple[LimitWindow, ...]:
    """Windows from the decoded TOML of `[[….limits]]`.

    Raises:
        ValueError: a key or value is wrong; the message says which.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("write each window as a section [[….limits]]")
    return tuple(_window(item) for item in value)


def amount(value: object) -> int:
    """Bytes from a whole number, or from text that is one, or one with a unit such as `500GB` or `64MiB`.

    Raises:
        ValueError: it is neither.
    """
    match = None if isinstance(value, bool) else _AMOUNT.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("a whole number of bytes is wanted, or one with a unit such as 500GB or 64MiB")
    return int(match[1]) * BYTES[match[2] or "B"]


def refuse_unknown_zone(name: str) -> None:
    """Stop at a time zone that this host does not know.

    Raises:
        SettingsError: it does not.
    """
    _zone(name)


def _window(item: object) -> LimitWindow:
    if not isinstance(item, Mapping):
        raise ValueError("write each window as a section [[….limits]]")
    if unknown := sorted(set(item) - _KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    zone = str(item.get("time_zone", ""))
    if zone:
        refuse_unknown_zone(zone)
    return LimitWindow(
        days=_days(item.get("days", DAYS)),
        from_=_moment(item.get("from", _MIDNIGHT)),
        to=_moment(item.get("to", _MIDNIGHT)),
        time_zone=zone,
        bytes_per_second=_rate(item.get("bytes_per_second")),
    )


def _days(value: object) -> tuple[str, ...]:
    days = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not days or any(day not in DAYS for day in days):
        raise ValueError(f"days = {value!r}: some of {', '.join(DAYS)} are wanted")
    return days


def _moment(value: object) -> time:
    if value == "24:00":
        return _MIDNIGHT
    moment = value if isinstance(value, time) else time.fromisoformat(str(value))
    if moment.tzinfo is not None:
        raise ValueError(f"{value!r}: name the zone with time_zone")
    return moment


def _rate(value: object) -> int:
    try:
        return amount(value)
    except ValueError as error:
        raise ValueError(f"bytes_per_second: {error}") from error


@lru_cache(maxsize=32)
def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - the WAL path has no windows to look at

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(f"time zone {name!r} is not known", hint="Use a name such as Europe/Berlin.") from error
