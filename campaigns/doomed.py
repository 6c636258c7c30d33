"""A flow that takes a backup as the real one does, and that is struck at a write boundary: what a worker runs here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from campaigns.boundaries import Boundaries
from flows.backup import backup
from seawall.model import BackupKind


class Struck(StrEnum):
    """Which processes get SIGKILL."""

    RUN = "run"
    WORKER = "worker"
    BOTH = "run and worker"


@flow(name="doomed", retries=0)
def doomed(  # noqa: PLR0917 - Prefect passes parameters by name
    source: str, job_id: UUID, settings_file: str, places: list[str], report: str, number: int, struck: Struck
) -> dict[str, Any] | State[Any]:
    """Take a backup and prove it, with a SIGKILL on the way.

    Args:
        places: what happens below them is counted.
        report: a file that gets a line for each boundary.
        number: at which boundary, from 1; 0 for none.
        struck: who is killed then; a run whose worker alone is killed goes on.
    """
    Path(report).unlink(missing_ok=True)
    boundaries = Boundaries([Path(place) for place in places], number, Path(report), strike=_STRIKES[struck])
    boundaries.watch_statements()
    boundaries.install()
    return backup.fn(source, kind=BackupKind.FULL, job_id=job_id, settings_file=settings_file)


def _kill_run() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_worker() -> None:
    # The worker starts the interpreter of a run itself, with no shell between.
    os.kill(os.getppid(), signal.SIGKILL)


def _kill_both() -> None:
    _kill_worker()
    _kill_run()


_STRIKES: dict[Struck, Callable[[], None]] = {
    Struck.RUN: _kill_run,
    Struck.WORKER: _kill_worker,
    Struck.BOTH: _kill_both,
}
