"""What a person or a program sees: progress bars, tables, sentences, or one JSON object.

Standard output carries results, standard error everything else, so that `seawall list > file` is useful.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from seawall.errors import SeawallError
from seawall.events import Advanced, Began, Ended, Event, Noticed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """A number of bytes for people, in decimal units."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit always returns")


def span(duration: timedelta | float) -> str:
    """A span of time for people."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Console:
    """The terminal of one run.

    Args:
        json: one JSON object on standard output and nothing else.
        quiet: no progress.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self._quiet = quiet or json
        self._progress: Progress | None = None
        self._steps: dict[str, TaskID] = {}
        self._drawing = threading.Lock()

    def result(self, value: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
        """Print the outcome: `value` as JSON, or `lines` for people."""
        self.close()
        if self.json:
            print(json.dumps({"ok": True, **value}, default=_plain))
        else:
            self.say(*lines)

    def say(self, *lines: str) -> None:
        """Print a part of a result that comes bit by bit; JSON output has it at the end."""
        if not self.json:
            for line in lines:
                print(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Aligned lines with a heading, no wider than they need."""
        widths = [max(len(column), *(len(row[n]) for row in rows), 0) for n, column in enumerate(columns)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (tuple(columns), *rows)
        ]

    def note(self, message: str) -> None:
        """Say something that is not a result."""
        if not self.json:
            print(message, file=sys.stderr)

    def failed(self, error: SeawallError, value: Mapping[str, Any] | None = None, lines: Sequence[str] = ()) -> None:
        """Print an error with its hint, and before it what was found all the same."""
        self.close()
        if self.json:
            print(json.dumps({"ok": False, "error": error.as_dict(), **(value or {})}, default=_plain))
            return
        self.say(*lines)
        print(f"seawall: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)

    def hear(self, event: Event) -> None:
        """The engine's events as progress bars and notes."""
        if isinstance(event, Noticed):
            self.note(f"{event.severity}: {event.message}")
        elif not self._quiet and sys.stderr.isatty():
            # Workers tell of themselves side by side, but a terminal has one set of bars.
            with self._drawing:
                self._draw(event)

    def _draw(self, event: Event) -> None:
        if isinstance(event, Began):
            if event.step in self._steps:  # a step may come again; one line is enough for it
                self._bars().remove_task(self._steps[event.step])
            self._steps[event.step] = self._bars().add_task(event.step, total=event.total_bytes or None)
        elif isinstance(event, Advanced) and event.step in self._steps:
            self._bars().advance(self._steps[event.step], event.plain_bytes)
        elif isinstance(event, Ended) and event.step in self._steps:
            self._bars().stop_task(self._steps[event.step])

    def _bars(self) -> Progress:
        if self._progress is None:
            from rich.console import Console as Terminal
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (TextColumn("{task.description:<14}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True))
            self._progress.start()
        return self._progress

    def close(self) -> None:
        """End the progress bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
