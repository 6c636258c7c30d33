"""The Prefect run that code is in, if it is in one; everything here works outside of Prefect too."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import httpx
from prefect import runtime
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from tasks.progress import Log

ENGINE_LOGGER = "seawall"


@dataclass(frozen=True, slots=True)
class FlowRun:
    """Where code runs; `id` is None outside of a flow run."""

    id: UUID | None
    deployment_id: UUID | None = None
    scheduled_at: datetime | None = None
    name: str = ""


def current() -> FlowRun:
    """The flow run that this code is in."""
    found = runtime.flow_run.id
    if not found:
        return FlowRun(None)
    deployment = runtime.deployment.id
    return FlowRun(
        id=UUID(str(found)),
        deployment_id=UUID(str(deployment)) if deployment else None,
        scheduled_at=runtime.flow_run.scheduled_start_time,
        name=str(runtime.flow_run.name or ""),
    )


def run_log() -> Log:
    """The run's logger, or the engine's outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(ENGINE_LOGGER)


@contextmanager
def engine_log_to(log: Log) -> Iterator[None]:
    """Send what the engine logs, from any thread, to a run's log."""
    engine = logging.getLogger(ENGINE_LOGGER)
    if log is engine:
        yield
        return
    handler = _Relay(log)
    before = engine.level
    engine.addHandler(handler)
    engine.setLevel(logging.INFO)
    try:
        yield
    finally:
        engine.removeHandler(handler)
        engine.setLevel(before)


class _Relay(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, "%s", record.getMessage())


def is_being_cancelled(flow_run_id: UUID, seconds: float = 3.0) -> bool:
    """Whether somebody asked Prefect to cancel this run; a server that does not answer says nothing of the kind.

    Asked over plain HTTP with a short time limit: the run's process has little time left, and Prefect's own client
    would go on trying for longer than that.
    """
    settings = get_current_settings().api
    secret = "" if settings.auth_string is None else settings.auth_string.get_secret_value()
    headers = {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}
    try:
        with httpx.Client(timeout=seconds, trust_env=False, headers=headers) as client:
            answer = client.get(f"{settings.url}/flow_runs/{flow_run_id}")
            return bool(answer.status_code == httpx.codes.OK and answer.json()["state"]["type"] in _CANCELLED)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


_CANCELLED = ("CANCELLING", "CANCELLED")
