"""Progress of a verb: events added up, told as percent, bytes, rate and time left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from seawall.events import Advanced, Began, Ended, Event, Noticed

SECONDS_BETWEEN_UPDATES = 1.0
SECONDS_BETWEEN_LINES = 10.0
_LEVELS = {"low": logging.INFO, "medium": logging.WARNING, "high": logging.ERROR, "critical": logging.CRITICAL}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a verb is; `total_bytes` is 0 when unknown, sizes are of the plain input."""

    step: str = ""
    plain_bytes: int = 0
    stored_bytes: int = 0
    total_bytes: int = 0
    seconds: float = 0.0

    @property
    def percent(self) -> float:
        """0 to 100; estimates can be too small, and then it waits at 99."""
        if self.total_bytes == 0:
            return 0.0
        return min(99.0, 100.0 * self.plain_bytes / self.total_bytes)

    @property
    def bytes_per_second(self) -> float:
        # Within the first millisecond a rate would be noise, or infinite.
        return self.plain_bytes / self.seconds if self.seconds >= 0.001 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None while nothing is known of the total or the rate."""
        left = self.total_bytes - self.plain_bytes
        return left / self.bytes_per_second if self.total_bytes and left >= 0 and self.bytes_per_second else None

    def __str__(self) -> str:
        of_total = f" of {in_units(self.total_bytes)}" if self.total_bytes else ""
        left = self.seconds_left
        ending = "" if left is None else f", {left:.0f} s left"
        rate = in_units(int(self.bytes_per_second))
        return f"{self.step or 'begun'}: {in_units(self.plain_bytes)}{of_total}, {rate}/s{ending}"


def in_units(count: int) -> str:
    """A size in powers of 1024, such as `1.5 GiB`."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


class Progress:
    """Hears the engine's events from any thread; keeps sums and what must be noticed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = clock()
        self._lock = threading.Lock()
        self._step = ""
        self._totals: dict[str, int] = {}
        self._plain = 0
        self._stored = 0
        self._lines: list[tuple[int, str]] = []
        self._notices: list[Noticed] = []

    def hear(self, event: Event) -> None:
        """Add an event up; quick, and never raises."""
        with self._lock:
            match event:
                case Began(step=step, total_bytes=total):
                    self._step, self._totals[step] = step, total
                    self._lines.append((logging.INFO, f"{step} began"))
                case Advanced(plain_bytes=plain, stored_bytes=stored):
                    self._plain += plain
                    self._stored += stored
                case Ended(step=step, seconds=seconds, detail=detail):
                    self._lines.append((logging.INFO, f"{step} ended after {seconds:.1f} s {detail}".rstrip()))
                case Noticed(severity=severity, message=message):
                    self._lines.append((_LEVELS.get(severity, logging.WARNING), message))
                    self._notices.append(event)

    def snapshot(self) -> Snapshot:
        with self._lock:
            seconds = self._clock() - self._began_at
            return Snapshot(self._step, self._plain, self._stored, sum(self._totals.values()), seconds)

    def take_lines(self) -> list[tuple[int, str]]:
        """Log lines since the last call, with their levels."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines

    @property
    def notices(self) -> tuple[Noticed, ...]:
        with self._lock:
            return tuple(self._notices)


class Publisher:
    """Publishes progress from a thread of its own, so that a slow or dead Prefect server slows nothing down."""

    def __init__(self, progress: Progress, log: Log, *, key: str, in_run: bool) -> None:
        self._progress = progress
        self._log = log
        self._key = key
        self._in_run = in_run
        self._artifact: UUID | None = None
        self._last: Snapshot | None = None
        self._line_at = 0.0
        self._ended = threading.Event()
        self._context: Context = copy_context()
        self._thread = threading.Thread(target=self._context.run, args=(self._loop,), name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, completed: bool, seconds: float = 5.0) -> None:
        """Publish the end and wait for that, but not longer than `seconds`."""
        self._completed = completed
        self._ended.set()
        self._thread.join(seconds)

    def _loop(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_UPDATES):
            self._publish(percent=None)
        self._publish(percent=100.0 if self._completed else None)

    def _publish(self, *, percent: float | None) -> None:
        for level, line in self._progress.take_lines():
            self._log.log(level, "%s", line)
        snapshot = self._progress.snapshot()
        if percent is None and self._last is not None and snapshot.plain_bytes == self._last.plain_bytes:
            return
        self._last = snapshot
        if snapshot.seconds - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = snapshot.seconds
            self._log.info("%s", snapshot)
        if self._in_run:
            self._update(snapshot.percent if percent is None else percent, str(snapshot))

    def _update(self, percent: float, text: str) -> None:
        try:
            if self._artifact is None:
                created = create_progress_artifact(progress=percent, key=self._key, description=text)
                self._artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(self._artifact, progress=percent, description=text)
        except Exception as error:  # noqa: BLE001 - whatever the server does, the work goes on without a picture of it
            self._log.debug("progress was not published: %s", type(error).__name__)


def artifact_key(title: str) -> str:
    """A key as Prefect takes it (a-z, 0-9, `-`)."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())


def facts(snapshot: Snapshot) -> Mapping[str, object]:
    """What the catalog keeps of the progress."""
    return {
        "seconds": round(snapshot.seconds, 3),
        "plain_bytes": snapshot.plain_bytes,
        "stored_bytes": snapshot.stored_bytes,
        "bytes_per_second": int(snapshot.bytes_per_second),
    }
