"""Token buckets that follow the calendar and the settings file while bytes flow.

A bucket asks for its rate at each step; here that question is answered from the windows of the settings, at most once
a second. When the settings file changed since, its windows count from then on: nobody restarts a backup that runs
into business hours.

Not guaranteed: that a wrong edit takes effect. A file that cannot be read leaves the limits as they were, and the log
says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from seawall.errors import SettingsError
from seawall.limits import LimitWindow, limit_at
from seawall.settings import PRIMARY, Settings, load
from seawall.storage.wrappers import Sleep, TokenBucket

log = logging.getLogger(__name__)

Now: TypeAlias = Callable[[], datetime]
_LOOK_SECONDS = 1.0


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that decides one limit: bytes per second outside of all windows, the windows, the site's zone."""

    otherwise: int = 0
    windows: tuple[LimitWindow, ...] = ()
    site_zone: str = "UTC"

    def at(self, now: datetime) -> int:
        """Bytes per second at an aware time; 0 is no limit."""
        return limit_at(self.windows, now, otherwise=self.otherwise, site_zone=self.site_zone)


def limits_of_source(settings: Settings, name: str) -> Limits | None:
    """How fast a source may be read; None where it is not configured."""
    source = settings.sources.get(name)
    if source is None:
        return None
    return Limits(source.max_rate_bytes_per_second, source.limits, settings.server.time_zone)


def limits_of_location(settings: Settings, name: str = PRIMARY) -> Limits | None:
    """How fast a storage location may be written and read; None where it is not configured."""
    if name != PRIMARY and name not in settings.locations:
        return None
    storage = settings.location(name).storage
    return Limits(storage.bandwidth_bytes_per_second, storage.limits, settings.server.time_zone)


Find: TypeAlias = Callable[[Settings], Limits | None]


class Following:
    """The rate of this moment, for `TokenBucket`; called from any thread.

    Args:
        settings: as they were read; `settings.file` is looked at again.
        find: where in settings the limits are.
        now: this host's clock.
        clock: monotonic seconds; the rate is worked out anew once in a second of it.
    """

    def __init__(
        self, settings: Settings, find: Find, *, now: Now = utc_now, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find, self._now, self._clock = find, now, clock
        self._limits = find(settings) or Limits()
        self._file = _watched(settings, find)
        self._mark = _mark(self._file)
        self._looked_at = clock()
        self._rate = self._limits.at(now())

    def __call__(self) -> float:
        seconds = self._clock()
        if seconds - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = seconds
            self._read_again()
            self._rate = self._limits.at(self._now())
        return self._rate

    def _read_again(self) -> None:
        mark = _mark(self._file)
        if self._file is None or mark == self._mark:
            return
        self._mark = mark
        try:
            found = self._find(load(self._file))
        except SettingsError as error:
            log.warning("limits stay as they were: %s", error.message)
            return
        if found is not None and found != self._limits:
            log.info("limits were changed in %s", self._file)
            self._limits = found


def _watched(settings: Settings, find: Find) -> Path | None:
    """The settings file, if what counts comes from there: a section may have been replaced by another's."""
    if settings.file is None:
        return None
    try:
        return settings.file if find(load(settings.file)) == find(settings) else None
    except SettingsError:
        return None


def _mark(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does, also when it is replaced by another of the same time; None if it is gone."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def source_bucket(settings: Settings, name: str, *, now: Now = utc_now, sleep: Sleep = time.sleep) -> TokenBucket:
    """The pace at which a source is read."""
    return TokenBucket(Following(settings, lambda found: limits_of_source(found, name), now=now), sleep=sleep)


def location_bucket(
    settings: Settings, name: str = PRIMARY, *, now: Now = utc_now, sleep: Sleep = time.sleep
) -> TokenBucket:
    """The pace at which a storage location is written and read, together."""
    return TokenBucket(Following(settings, lambda found: limits_of_location(found, name), now=now), sleep=sleep)
