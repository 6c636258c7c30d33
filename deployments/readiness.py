"""Waiting for a Prefect server: alive, then with its database, then with the work pool."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

STARTUP_SECONDS = 180.0


def is_answering(api: str) -> bool:
    """Whether the server is alive and its database answers (`/health`, then `/ready`; both open to everybody)."""
    try:
        # Proxies of the environment are not for this host.
        with httpx.Client(timeout=5, trust_env=False) as client:
            return all(client.get(f"{api}/{look}").status_code == httpx.codes.OK for look in ("health", "ready"))
    except httpx.HTTPError:
        return False


def connect(seconds: float = STARTUP_SECONDS) -> SyncPrefectClient:
    """A client of the server that the environment names, as soon as that answers.

    Raises:
        TimeoutError: it does not within `seconds`.
    """
    api = str(PREFECT_API_URL.value())
    _wait(lambda: is_answering(api), seconds, f"the Prefect server at {api} does not answer")
    return get_client(sync_client=True)


def wait_for_pool(pool: str, seconds: float = STARTUP_SECONDS) -> None:
    """Wait until the keeper has made the work pool.

    Raises:
        TimeoutError: it has not within `seconds`.
    """
    with connect(seconds) as client:
        _wait(lambda: _has_pool(client, pool), seconds, f"there is no work pool {pool}")


def _has_pool(client: SyncPrefectClient, pool: str) -> bool:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        return False
    return True


def _wait(condition: Callable[[], bool], seconds: float, message: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{message} after {seconds:.0f} s")
        time.sleep(0.3)
