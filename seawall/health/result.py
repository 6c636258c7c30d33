"""What one check found, and the round that makes checks one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from seawall.errors import Cancelled, SeawallError
from seawall.events import Observer

_T = TypeVar("_T")


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw when it did not fail; a failure is an error that it raises."""

    status: Status
    sentence: str
    hint: str = ""


def good(sentence: str) -> Finding:
    return Finding(Status.OK, sentence)


def warning(sentence: str, hint: str) -> Finding:
    return Finding(Status.WARNING, sentence, hint)


def skipped(sentence: str) -> Finding:
    return Finding(Status.SKIPPED, sentence)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check.

    Args:
        name: what was checked; stable, for programs.
        sentence: what was found, with the facts.
        hint: what to do about a warning or failure.
        seconds: how long it took.
        source: whose check it is; empty for those of the host and the repository.
        error: what failed, else None.
    """

    name: str
    status: Status
    sentence: str
    hint: str
    seconds: float
    source: str = ""
    error: SeawallError | None = None


class Round:
    """Makes checks and keeps what they found; one that fails never keeps the others from being made.

    Args:
        observe: can stop the round between two checks.
        hear: called with each result as it comes.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        observe: Observer,
        hear: Callable[[CheckResult], None] = lambda _result: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.results: list[CheckResult] = []
        self._observe = observe
        self._hear = hear
        self._clock = clock

    def learn(self, name: str, ask: Callable[[], tuple[_T, Finding]], source: str = "") -> _T | None:
        """Make a check that later ones need something of; None if it failed."""
        learned: list[_T] = []

        def check() -> Finding:
            value, finding = ask()
            learned.append(value)
            return finding

        self.make(name, check, source)
        return learned[0] if learned else None

    def make(self, name: str, check: Callable[[], Finding], source: str = "") -> None:
        """Make one check.

        Raises:
            Cancelled: somebody asked to stop.
        """
        self._observe.checkpoint()
        begin = self._clock()
        try:
            found, error = check(), None
        except Cancelled:
            raise
        except SeawallError as raised:
            found, error = Finding(Status.FAILED, raised.message, raised.hint), raised
        took = self._clock() - begin
        self._keep(CheckResult(name, found.status, found.sentence, found.hint, took, source, error))

    def skip(self, names: Iterable[str], why: str, source: str = "") -> None:
        """Note checks that cannot be made, and why."""
        for name in names:
            self._keep(CheckResult(name, Status.SKIPPED, why, "", 0.0, source))

    def _keep(self, result: CheckResult) -> None:
        self.results.append(result)
        self._hear(result)
