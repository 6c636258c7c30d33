"""One stack (Prefect server, worker, keeper) for these tests, and what tests need to speak with it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun

from campaigns.runs import client_of
from deployments.deploy import Served, deploy
from deployments.environment import Timing
from deployments.stack import Options, Stack
from seawall.catalog import Catalog, Execution, JobType, RunStatus
from seawall.settings import Settings, load

HERE = Path(__file__).parent
PROBE = Served("probe", "probe_flow.probe", "default", "for tests")
# Only a run that never ends takes so long: the time is for machines that do much else at once.
PATIENCE_SECONDS = 180
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def write_settings(directory: Path, sources: str = "") -> Path:
    path = directory / "seawall.toml"
    path.write_text(
        f"""
[repository]
url = "{directory}/repository"
[sealing]
mode = "none"
keyring = "{directory}/keyring"
[catalog]
url = "sqlite:///{directory}/catalog.db"
[server]
work_directory = "{directory}/work"
time_zone = "Europe/Berlin"
{sources}
""",
        encoding="utf-8",
    )
    return path


@dataclass
class Surroundings:
    """A running stack and what belongs to it."""

    stack: Stack
    settings: Settings
    settings_file: Path
    client: SyncPrefectClient
    catalog: Catalog
    probe_id: UUID
    directory: Path

    def job(self) -> UUID:
        """A new job that nothing has run yet."""
        return self.catalog.ensure_job(
            f"probe-{uuid4()}",
            JobType.FULL,
            backup_targets={"source": "elsewhere"},
            destination_config={},
            is_active=False,
            now=datetime.now(UTC),
        )

    def parameters(self, job: UUID, **extra: object) -> dict[str, Any]:
        notes = str(self.directory / f"{uuid4()}.notes")
        return {"settings_file": str(self.settings_file), "job_id": str(job), "notes": notes, **extra}

    def start(self, parameters: dict[str, Any], **options: Any) -> FlowRun:
        return self.client.create_flow_run_from_deployment(self.probe_id, parameters=parameters, **options)

    def run(self, run: FlowRun | UUID) -> FlowRun:
        return self.client.read_flow_run(run if isinstance(run, UUID) else run.id)

    def ended(self, run: FlowRun | UUID, seconds: float = PATIENCE_SECONDS) -> FlowRun:
        """The run as soon as it is in a final state."""
        try:
            return wait_for(lambda: found if (found := self.run(run)).state.type.value in FINAL else None, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story(run)}") from None

    def cancelled(self, run: FlowRun) -> None:
        """Wait until Prefect calls the run cancelled: it may say crashed first, until the keeper puts that right."""
        try:
            wait_for(lambda: self.run(run).state.type.value == "CANCELLED", PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story(run)}") from None

    def story(self, run: FlowRun | UUID) -> str:
        """What Prefect, the run and the stack's processes say of a run: why it did not end shows nowhere else."""
        asked = self.run(run)
        mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[asked.id]))
        return "\n".join(
            (
                *(
                    f"{state.timestamp} {state.name} {state.message}"
                    for state in self.client.read_flow_run_states(asked.id)
                ),
                *(f"{log.timestamp} {log.message}" for log in self.client.read_logs(mine, limit=100)),
                *(f"{path.name}: {line}" for path in sorted(self.stack.place.logs.iterdir()) for line in tail(path)),
            )
        )

    def notes(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        path = Path(parameters["notes"])
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def noted(self, parameters: dict[str, Any], event: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The first note of an event, as soon as there is one."""
        return wait_for(lambda: next((n for n in self.notes(parameters) if n["event"] == event), None), seconds)

    def execution(self, job: UUID, status: RunStatus | None = None, seconds: float = PATIENCE_SECONDS) -> Execution:
        """The newest execution of a job, as soon as it has that status (or any end)."""

        def look() -> Execution | None:
            newest = self.catalog.executions(job, limit=1)
            if not newest or (newest[0].status is not status if status else not newest[0].status.is_final):
                return None
            return newest[0]

        return wait_for(look, seconds)


def tail(path: Path, lines: int = 25) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def wait_for(look: Callable[[], Any], seconds: float = PATIENCE_SECONDS, pause: float = 0.2) -> Any:
    """What `look` returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} s"
        time.sleep(pause)
    return found


@pytest.fixture
def surroundings() -> Any:
    """How to speak with a stack that a test started itself; a context manager of stack-like things."""
    return contextmanager(surround)


@pytest.fixture
def settings_in() -> Callable[..., Path]:
    return write_settings


@pytest.fixture(name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    return wait_for


def begin(directory: Path, **options: Any) -> Stack:
    settings_file = write_settings(directory)
    with Catalog.open(load(settings_file).catalog.url, create=True):
        pass
    chosen = Options(sweep_seconds=2, timing=Timing(poll_seconds=1), **options)
    stack = Stack(load(settings_file), settings_file, options=chosen)
    stack.start()
    return stack


def surround(stack: Stack, directory: Path) -> Iterator[Surroundings]:
    sys.path.insert(0, str(HERE))
    settings_file = directory / "seawall.toml"
    settings = load(settings_file)
    with client_of(stack) as client, Catalog.open(settings.catalog.url) as catalog:
        environment = {"PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
        ids = deploy(client, working_directory=str(stack.place.home), served=[PROBE], environment=environment)
        yield Surroundings(stack, settings, settings_file, client, catalog, ids["probe"], directory)
    sys.path.remove(str(HERE))


# Of the package, not of the session: a stack that nobody asks any more takes a tenth of a processor all the same.
@pytest.fixture(scope="package")
def stack_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A space in the path, because people have them.
    directory = tmp_path_factory.mktemp("stack") / "with space"
    directory.mkdir()
    return directory


@pytest.fixture(scope="package")
def running_stack(stack_directory: Path) -> Iterator[Stack]:
    stack = begin(stack_directory, pending_seconds=25)
    try:
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def prefect_stack(running_stack: Stack, stack_directory: Path) -> Iterator[Surroundings]:
    yield from surround(running_stack, stack_directory)
