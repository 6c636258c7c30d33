"""When a failed request to a storage is made again, and how long to wait before.

A storage that asks to slow down (`StorageBusy`) is obeyed: such answers are no failures, they only cost time, and the
pauses grow faster and longer than after a failure. Who gave up once marks the error as `exhausted`, so that nothing
above repeats what was already repeated.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from seawall.errors import StorageBusy, StorageError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

Sleep = Callable[[float], None]


def jitter() -> float:
    """A random number from 0 up to 1 (without the price of importing `random` for each WAL segment)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently one call is repeated.

    Args:
        attempts: tries in a row without progress, the first one included.
        first_delay_seconds: longest pause after the first failure; it doubles with each one.
        longest_delay_seconds: where doubling ends.
        budget_seconds: all pauses of one call together.
        busy_delay_seconds: longest pause after the first request to slow down; it doubles with each one.
        busy_budget_seconds: all pauses of one call together while the storage only asks to slow down.
    """

    attempts: int = 5
    first_delay_seconds: float = 0.25
    longest_delay_seconds: float = 15.0
    budget_seconds: float = 120.0
    busy_delay_seconds: float = 1.0
    busy_budget_seconds: float = 900.0


class Tries:
    """The failures of one call so far."""

    def __init__(self, policy: RetryPolicy, sleep: Sleep, randomness: Callable[[], float], what: str) -> None:
        self._policy = policy
        self._sleep = sleep
        self._randomness = randomness
        self._what = what
        self._failures = 0
        self._busy = 0
        self._slept = 0.0

    def again(self, error: StorageError) -> bool:
        """Pause and say true, or say false because another try is useless or one too many."""
        if not error.retryable or error.exhausted:
            return False
        delay = self._delay(isinstance(error, StorageBusy))
        if self._spent(delay, isinstance(error, StorageBusy)):
            error.exhausted = True
            return False
        logger.warning("%s failed (%s); next try in %.1f s", self._what, error, delay)
        self._sleep(delay)
        self._slept += delay
        return True

    def progressed(self) -> None:
        self._failures = self._busy = 0

    def _spent(self, delay: float, busy: bool) -> bool:
        if busy:
            return self._slept + delay > self._policy.busy_budget_seconds
        return self._failures >= self._policy.attempts or self._slept + delay > self._policy.budget_seconds

    def _delay(self, busy: bool) -> float:
        if busy:
            self._busy += 1
            longest, doubled = self._policy.busy_delay_seconds, self._busy
        else:
            self._failures += 1
            longest, doubled = self._policy.first_delay_seconds, self._failures
        # Half fixed, half random: writers that failed together do not come back together, and none at once.
        bounded = min(self._policy.longest_delay_seconds, longest * 2.0 ** (doubled - 1))
        return bounded * (0.5 + 0.5 * self._randomness())


def repeated(
    what: str,
    call: Callable[[], _T],
    policy: RetryPolicy,
    sleep: Sleep = time.sleep,
    randomness: Callable[[], float] = jitter,
) -> _T:
    """What `call` returns, called again as long as the policy allows.

    Raises:
        StorageError: the last one, `exhausted` if it could have passed.
    """
    tries = Tries(policy, sleep, randomness, what)
    while True:
        try:
            return call()
        except StorageError as error:
            if not tries.again(error):
                raise
