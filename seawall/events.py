"""Typed progress events and the observer that hears them.

The engine never prints and never knows who listens: the command line draws a bar, a task updates an artifact,
a test collects. `Observer` is also how a caller cancels: a `Cancel` that was set makes the next `checkpoint`
raise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from seawall.errors import Cancelled


@dataclass(frozen=True, slots=True)
class Event:
    """Base of everything that an observer hears."""


@dataclass(frozen=True, slots=True)
class Began(Event):
    """A step began; `total_bytes` is an estimate, 0 when unknown."""

    step: str
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Advanced(Event):
    """`plain_bytes` more of the step's input were handled and became `stored_bytes`."""

    step: str
    plain_bytes: int
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """A step ended after `seconds`."""

    step: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Noticed(Event):
    """Something the administrator should know; `severity` is low, medium, high or critical."""

    severity: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """A backup took over what attempts before it had stored.

    Args:
        attempts: their labels.
        objects, stored_bytes: what became part of the backup.
        of_objects, of_bytes: what was there and sound.
    """

    attempts: tuple[str, ...]
    objects: int
    of_objects: int
    stored_bytes: int
    of_bytes: int

    @property
    def sentence(self) -> str:
        """For people."""
        reused = f"{self.objects} of {self.of_objects} objects ({self.stored_bytes:,} of {self.of_bytes:,} bytes)"
        return f"resumed: {reused} of {' and '.join(self.attempts)} reused"


class Cancel:
    """A request to stop that any thread may make and every worker looks at between two pieces of work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep up to `seconds`; true as soon as somebody asked to stop."""
        return self._event.wait(seconds)


@dataclass(frozen=True, slots=True)
class Observer:
    """Who hears events, and whether to stop.

    Args:
        hear: called with each event, from any worker thread; must be quick and must not raise.
        cancel: looked at by `checkpoint`.
    """

    hear: Callable[[Event], None] = field(default=lambda _event: None)
    cancel: Cancel = field(default_factory=Cancel)

    def checkpoint(self) -> None:
        """Raise if somebody asked to stop.

        Raises:
            Cancelled: somebody did.
        """
        if self.cancel.is_set():
            raise Cancelled("stopped on request")

    def wait(self, seconds: float) -> None:
        """Sleep up to `seconds`, and raise as soon as somebody asks to stop.

        Raises:
            Cancelled: somebody did.
        """
        self.cancel.wait(seconds)
        self.checkpoint()


def keeping(observe: Observer, into: list[Resumed]) -> Observer:
    """The same observer, that keeps what it hears of resuming as well."""

    def hear(event: Event) -> None:
        if isinstance(event, Resumed):
            into.append(event)
        observe.hear(event)

    return Observer(hear, observe.cancel)


def silent() -> Observer:
    """An observer that hears nothing and is never cancelled."""
    return Observer()
