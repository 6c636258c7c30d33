"""`python -m deployments.worker`: a Prefect process worker that ends its flow runs before itself.

Prefect's own worker exits at once on SIGTERM; its flow processes die without unwinding and their runs stay
"Running" for ever. This one stops taking work, sends SIGTERM to its flow processes (they abort, end what they
started and record how they ended), waits for them, and only then leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.workers.process import ProcessWorker

from deployments.environment import POOL
from deployments.readiness import wait_for_pool

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, WorkerMetadata

logger = logging.getLogger("prefect.seawall.worker")
DRAIN_SECONDS = 40.0


class DrainingWorker(ProcessWorker):
    """A process worker that can be told to take no more work."""

    type = "process"
    draining = False

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect's registry keeps its own worker of the type "process"; this one is started by name.
        return "seawall-process"

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        return [] if self.draining else await super().get_and_submit_flow_runs()

    async def _worker_metadata(self) -> WorkerMetadata | None:
        # The inherited one imports every installed cloud package (8 s of CPU) only to report their versions.
        return None


def name_on(host: str, pid: int) -> str:
    """A worker's name, which tells where its runs are: Prefect itself notes a process id without a host."""
    return f"seawall-{pid}@{host}"


def host_of(name: str) -> str:
    """The host in a worker's name; empty in a name that says nothing of it."""
    return name.partition("@")[2]


async def serve(pool: str, *, limit: int) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    name = name_on(socket.gethostname(), os.getpid())
    worker = DrainingWorker(name=name, work_pool_name=pool, limit=limit, create_pool_if_not_found=False)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    working = asyncio.create_task(worker.start(printer=logger.info))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        worker.draining = True
        await drain(DRAIN_SECONDS)
        working.cancel()
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def drain(seconds: float) -> None:
    """Ask every flow process to end and wait until all did, at most `seconds`."""
    asked: set[int] = set()
    for _ in range(int(seconds * 10)):
        # Looked at again and again: a run that was just being started gets its signal too.
        running = set(children(os.getpid()))
        for pid in running - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        asked |= running
        if not running:
            break
        await asyncio.sleep(0.1)
    # A moment for the worker to hear of the exits and to report them.
    await asyncio.sleep(1)


def children(parent: int) -> Iterator[int]:
    """The living children of a process (proc(5), `/proc/<pid>/task/<tid>/children`)."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        with suppress(OSError):
            yield from (int(pid) for pid in (task / "children").read_text(encoding="ascii").split())


def main() -> int:
    limit = int(os.environ.get("SEAWALL_WORKER_LIMIT", "4"))
    # Prefect's runner makes `runner_storage` in the system's temporary directory, where the first account that ran
    # a worker shuts out every other one. Of this process alone: flow runs keep the system's own.
    tempfile.tempdir = os.environ["PREFECT_HOME"]
    wait_for_pool(POOL)
    asyncio.run(serve(POOL, limit=limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
