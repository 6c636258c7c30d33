"""Kill with Prefect around the worker: the process of a flow run, its worker, or both, at a write of the run.

Prefect's server, its worker and the keeper are the real ones. After each kill Prefect and the catalog must both say
that the run is over, by themselves; nothing of it is left running; and the same job runs again at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)

from campaigns import scenes, victims
from campaigns.doomed import Struck
from campaigns.kill import Tally
from campaigns.live import Live
from campaigns.sample import SOURCE
from deployments.deploy import Served, deploy
from deployments.environment import Timing
from deployments.processes import marked, until
from deployments.stack import Options, Stack
from deployments.sweeper import FLOW_RUN_VARIABLE
from seawall.catalog import Catalog, Execution, JobType, RunStatus
from seawall.settings import load

DOOMED = Served("doomed", "campaigns.doomed.doomed", "backup", "for the kill campaign")
NOT_REACHED = "it ended before"
_CHECKOUT = Path(__file__).resolve().parent.parent
_OWN = """
[repository]
url = "{home}/unused"
[sealing]
mode = "none"
keyring = "{home}/unused-ring"
[catalog]
url = "{catalog}"
[server]
work_directory = "{home}/work"
"""


@contextmanager
def stack_at(home: Path) -> Iterator[tuple[Stack, SyncPrefectClient]]:
    """A stack whose own settings name no source, so that no schedule comes between; and a client of it."""
    home.mkdir()
    settings_file, url = home / "seawall.toml", f"sqlite:///{home}/catalog.db"
    settings_file.write_text(_OWN.format(home=home, catalog=url), encoding="utf-8")
    Catalog.open(url, create=True).close()
    stack = Stack(load(settings_file), settings_file, options=Options(sweep_seconds=2, timing=Timing(poll_seconds=1)))
    with stack, client_of(stack) as client:
        yield stack, client


@contextmanager
def client_of(stack: Stack) -> Iterator[SyncPrefectClient]:
    """A client of the server of a stack that has started."""
    reached = {
        PREFECT_API_URL: stack.api_url,
        PREFECT_API_AUTH_STRING: stack.place.auth_string(),
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    }
    with temporary_settings(reached), get_client(sync_client=True) as client:
        yield client


@dataclass
class Runs:
    """Kills runs of one job on one stack.

    Args:
        beside: the server that is backed up; its catalog is the stack's.
        over_seconds: how long each killed run took until catalog and Prefect said so.
    """

    beside: Live
    stack: Stack
    client: SyncPrefectClient
    over_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.beside.catalog_url = self.stack.settings.catalog.url
        self.beside.write_settings()
        environment = {"PYTHONPATH": str(_CHECKOUT)}
        ids = deploy(
            self.client, working_directory=str(self.stack.place.home), served=[DOOMED], environment=environment
        )
        self._deployment = ids[DOOMED.name]
        with self.beside.catalog() as catalog:
            targets = {"source": SOURCE}
            self._job = catalog.ensure_job(
                "doomed", JobType.FULL, backup_targets=targets, destination_config={}, is_active=False,
                now=victims.now(),
            )  # fmt: skip

    def kill_each(self, points: int, tally: Tally) -> None:
        """Kill a run at so many boundaries, by turns alone, with its worker, and its worker alone."""
        self.beside.carry()
        try:
            self._finish()
            count = len(self._report.read_text(encoding="utf-8").splitlines())
            for turn, number in enumerate(scenes.spread(count, points)):
                struck = (Struck.RUN, Struck.BOTH, Struck.WORKER)[turn % 3]
                tally.boundaries[_name(struck)] = count
                self.kill_one(struck, number, tally)
        finally:
            self.beside.drop_carrier()

    def kill_one(self, struck: Struck, number: int, tally: Tally) -> None:
        """Kill at one boundary, look, and run the job again; a receiver must be carrying WAL."""
        looker = self.beside.looker
        before = looker.labels()
        run = self._start(number, struck)
        faults = list(self._over(run, struck))
        point = self._report.read_text(encoding="utf-8").splitlines()[number - 1 :][:1]
        faults += looker.listed(before)
        self._finish()
        faults += looker.listed(before)
        faults += looker.without_gap()
        faults += self.beside.recorded()
        faults += looker.garbage()
        tally.add(_name(struck), number, point[0] if point else NOT_REACHED, faults)
        self.beside.thin_out()

    def _over(self, run: FlowRun, struck: Struck) -> Iterator[str]:
        """A killed run is over everywhere, by itself."""
        worker = self.stack.child("worker")
        if struck is not Struck.RUN:
            scenes.until(lambda: worker.exit_code is not None or self._is_over(run), "the worker's end")
        else:
            scenes.until(lambda: self._is_over(run) or self._has_died(run), "the run's end")
        begin = time.monotonic()
        if worker.exit_code is not None:
            # As `seawall up` does; whoever uses systemd has that do it.
            self.stack.restart("worker")
        scenes.until(lambda: self._is_over(run) and not self._running(run), f"the end of flow run {run.id}")
        if struck is not Struck.WORKER:
            self.over_seconds.append(time.monotonic() - begin)
        state, rows = self.client.read_flow_run(run.id).state, self._executions(run)
        ended = [row.status for row in rows]
        if any(status not in (RunStatus.FAILED, RunStatus.COMPLETED) for status in ended):
            yield f"the execution is {ended}"
        if struck is Struck.WORKER and ended != [RunStatus.COMPLETED]:
            yield f"the worker was killed, and the run that went on is {ended} in the catalog"
        if struck is not Struck.WORKER and (state is None or state.type.value not in ("CRASHED", "COMPLETED")):
            yield f"the run is {state}"
        if not until(lambda: not self._processes(run), 30):
            yield f"processes {self._processes(run)} of the run were left behind"

    def _has_died(self, run: FlowRun) -> bool:
        return self._report.exists() and not self._processes(run)

    def _is_over(self, run: FlowRun) -> bool:
        state = self.client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    def _processes(self, run: FlowRun) -> list[int]:
        return list(marked(FLOW_RUN_VARIABLE, str(run.id)))

    def _executions(self, run: FlowRun) -> list[Execution]:
        with self.beside.catalog() as catalog:
            return [row for row in catalog.executions(self._job) if row.flow_run_id == run.id]

    def _running(self, run: FlowRun) -> bool:
        return any(not row.status.is_final for row in self._executions(run))

    def _finish(self) -> None:
        """Run the job to its end."""
        run = self._start(0, Struck.RUN)
        scenes.until(lambda: self._is_over(run) and not self._running(run), f"the end of flow run {run.id}")
        state = self.client.read_flow_run(run.id).state
        if state is None or not state.is_completed():
            raise RuntimeError(f"the job did not run again: {state}")

    def _start(self, number: int, struck: Struck) -> FlowRun:
        self.beside.wait_for_free_second()
        self._report.unlink(missing_ok=True)
        scene = self.beside.scene
        parameters = {
            "source": SOURCE,
            "job_id": str(self._job),
            "settings_file": str(scene.settings_file),
            "places": [str(scene.place), str(scene.spool)],
            "report": str(self._report),
            "number": number,
            "struck": struck.value,
        }
        return self.client.create_flow_run_from_deployment(self._deployment, parameters=parameters)

    @property
    def _report(self) -> Path:
        return self.beside.scene.home / "boundaries"


def _name(struck: Struck) -> str:
    return f"Prefect's {struck}"
