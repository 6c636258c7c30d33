"""What Prefect leaves open, closed: runs of dead processes, runs that never start, runs that an outage piled up.

`decide` is pure and tells what to do with each run and why; `sweep` looks, decides and acts. The catalog's leases
are the last word on executions: what nobody renews has failed, whatever Prefect believes.

A run counts as dead when no process on this host carries its id, seen twice in a row. That is judged only of runs of
this host: those whose row in the catalog names it, and those that have no row while no worker of another host serves
the pool. Of what runs elsewhere, only the lease is judged: when nobody renews it, it has failed. Where Prefect knows
already that a run is over, its execution, verification or recovery ends as soon as its process is provably gone, and so
does what somebody began by hand.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed

from deployments.processes import end_marked
from deployments.worker import host_of
from seawall.catalog import Catalog, RunStatus
from seawall.catalog.recording import alert_unreported
from seawall.errors import CatalogError, SeawallError

logger = logging.getLogger(__name__)

PENDING_LIMIT = timedelta(minutes=5)
# So long after its end a run is still looked for that Prefect calls crashed and the catalog cancelled.
AGREEMENT = timedelta(minutes=10)
AGAIN = "again"
FLOW_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
_STARTED = (StateType.RUNNING, StateType.CANCELLING)
_WAITING_NAMES = ("Scheduled", "Late")


class Verdict(StrEnum):
    """How a run ends: it broke down, it stopped as it was asked to, or it was never needed."""

    CRASH = "crash"
    STOP = "stop"
    SUPERSEDE = "supersede"


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of a flow run that has not ended."""

    id: UUID
    deployment_id: UUID | None
    state_type: StateType
    state_name: str
    since: datetime
    expected_at: datetime
    pid: int | None = None
    by_schedule: bool = False
    parameters: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """What to do with a run; `again` starts it afresh, once."""

    run: Run
    verdict: Verdict
    why: str
    again: bool = False


def decide(
    runs: Sequence[Run],
    *,
    now: datetime,
    dead: Callable[[Run], bool],
    pending_limit: timedelta = PENDING_LIMIT,
) -> tuple[Action, ...]:
    """What to do with runs that have not ended.

    Args:
        runs: those of one work pool whose time has come.
        dead: whether a started run has no process any more.
        pending_limit: how long a run may be about to start.
    """
    return (
        *(_gone(run) for run in runs if run.state_type in _STARTED and dead(run)),
        *(_stuck(run, now) for run in runs if run.state_type is StateType.PENDING and now - run.since > pending_limit),
        *(
            Action(run, Verdict.SUPERSEDE, "superseded: a later run of the same schedule is waiting too")
            for run in superseded(runs)
        ),
    )


def _gone(run: Run) -> Action:
    # A cancelled run's process is gone while the worker still loads the flow to look for hooks: that takes seconds.
    if run.state_type is StateType.CANCELLING:
        return Action(run, Verdict.STOP, "it was to be cancelled, and its process is gone")
    return Action(run, Verdict.CRASH, "its process is gone")


def _stuck(run: Run, now: datetime) -> Action:
    why = f"it was about to start for {(now - run.since).total_seconds():.0f} s and never did"
    return Action(run, Verdict.CRASH, why, again=AGAIN not in run.tags)


def superseded(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Scheduled runs that still wait although a later one of the same schedule waits as well."""
    groups: dict[tuple[UUID | None, str], list[Run]] = {}
    for run in runs:
        if run.by_schedule and run.state_type is StateType.SCHEDULED and run.state_name in _WAITING_NAMES:
            key = (run.deployment_id, json.dumps(run.parameters, sort_keys=True, default=str))
            groups.setdefault(key, []).append(run)
    return tuple(
        run for group in groups.values() for run in sorted(group, key=lambda waiting: waiting.expected_at)[:-1]
    )


def is_judged_here(run: Run, hosts: Mapping[UUID, str], workers: Iterable[str], here: str) -> bool:
    """Whether a missing process on this host proves that a run is dead.

    Args:
        hosts: where flow runs are at work, as their rows in the catalog tell.
        workers: names of the pool's workers that are online (`deployments.worker.name_on`).
        here: this host.
    """
    if run.id in hosts:
        return hosts[run.id] == here
    return all(host_of(worker) in {here, ""} for worker in workers)


class Sweeper:
    """Looks after one work pool; remembers from one look to the next which runs seemed dead."""

    def __init__(
        self, client: SyncPrefectClient, catalog: Catalog, *, pool: str, pending_limit: timedelta, scratch: Path
    ) -> None:
        self._client = client
        self._scratch = scratch
        self._catalog = catalog
        self._pool = pool
        self._pending_limit = pending_limit
        self._here = socket.gethostname()
        self._suspects: frozenset[UUID] = frozenset()

    def sweep(self, now: datetime) -> tuple[Action, ...]:
        """Look once, and act; returns what was done to runs."""
        runs = self._runs(now)
        missing = frozenset(run.id for run in self._of_here(runs) if not has_process(run))
        seen_twice, self._suspects = missing & self._suspects, missing
        actions = decide(runs, now=now, dead=lambda run: run.id in seen_twice, pending_limit=self._pending_limit)
        for action in actions:
            logger.warning("%s flow run %s: %s", action.verdict, action.run.id, action.why)
            self._act(action, now)
        self._end_what_prefect_closed(now)
        self._give_up_on_lapsed(now)
        self._agree_on_cancelled(now)
        return actions

    def _of_here(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """The started runs whose processes would be on this host."""
        started = [run for run in runs if run.state_type in _STARTED]
        if not started:
            return ()
        hosts = self._catalog.hosts_of_running()
        found = self._client.read_workers_for_work_pool(self._pool)
        online = [worker.name for worker in found if worker.status is WorkerStatus.ONLINE]
        return tuple(run for run in started if is_judged_here(run, hosts, online, self._here))

    def _runs(self, now: datetime) -> tuple[Run, ...]:
        wanted = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
        found = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=wanted)),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": now}),
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._pool])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=200,
        )
        return tuple(run for one in found if (run := _facts(one, now)) is not None)

    def _act(self, action: Action, now: datetime) -> None:
        run = action.run
        if action.verdict is Verdict.SUPERSEDE:
            self._client.set_flow_run_state(run.id, Cancelled(message=action.why))
            return
        is_stopped = action.verdict is Verdict.STOP
        # The catalog first: if this process ends between the two, the lease would do it later, Prefect never would.
        self._end_rows(run.id, action.why, now, is_stopped=is_stopped)
        state = Cancelled if is_stopped else Crashed
        self._client.set_flow_run_state(run.id, state(message=action.why), force=True)
        if action.again and run.deployment_id is not None:
            self._client.create_flow_run_from_deployment(
                run.deployment_id,
                parameters=dict(run.parameters),
                tags=[*run.tags, AGAIN],
                idempotency_key=f"{AGAIN}-{run.id}",
            )

    def _end_rows(self, flow_run_id: UUID, why: str, now: datetime, *, is_stopped: bool) -> None:
        # What a killed process started holds locks and memory, and may still write.
        end_marked(FLOW_RUN_VARIABLE, str(flow_run_id), scratch=self._scratch, seconds=5)
        status = RunStatus.CANCELLED if is_stopped else RunStatus.FAILED
        error = SeawallError(f"the run ended without a report: {why}", hint="The worker's log may say more.")
        ended = self._catalog.end_run(flow_run_id, status=status, now=now, error=error)
        if not is_stopped:
            alert_unreported(self._catalog, ended, why, now=now)

    def _end_what_prefect_closed(self, now: datetime) -> None:
        """End what is open of runs whose process died: Prefect hears that of the worker, the catalog of nobody."""
        for flow_run_id in self._catalog.runs_of_killed():
            states = [run.state for run in self._read(flow_run_id)]
            # One that Prefect takes for running is judged as all are, and may have to be stopped.
            if all(state is not None and state.is_final() for state in states):
                logger.warning("flow run %s is still at work in the catalog: its process is gone", flow_run_id)
                is_stopped = any(state is not None and state.is_cancelled() for state in states)
                self._end_rows(flow_run_id, "its process is gone", now, is_stopped=is_stopped)

    def _give_up_on_lapsed(self, now: datetime) -> None:
        killed, lapsed = self._catalog.reconcile_killed(now), self._catalog.reconcile(now)
        alert_unreported(self._catalog, killed, "its process is gone", now=now)
        alert_unreported(self._catalog, lapsed, "its lease ran out", now=now)
        for record_id in killed:
            logger.warning("%s was begun by hand and counts as failed: its process is gone", record_id)
        for record_id in lapsed:
            flow_run_id = self._catalog.flow_run_of(record_id)
            logger.warning("the lease of %s ran out; it counts as failed", record_id)
            if flow_run_id is not None:
                self._crash_unless_ended(flow_run_id)

    def _agree_on_cancelled(self, now: datetime) -> None:
        """Have Prefect call cancelled what was.

        Its worker waits one second for a run to hear that it is cancelled (`prefect.runner._control_channel`). On a
        busy machine that is too short, and Prefect takes the signal that follows for a crash; the run itself asked why
        it was to end, and wrote it down.
        """
        if not (cancelled := _cancelled_since(self._catalog, now - AGREEMENT)):
            return
        found = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {"id": {"any_": sorted(cancelled)}, "state": {"type": {"any_": [StateType.CRASHED]}}}
            )
        )
        for run in found:
            logger.warning("flow run %s did not crash: it was cancelled", run.id)
            self._client.set_flow_run_state(run.id, Cancelled(message="the run was cancelled"), force=True)

    def _crash_unless_ended(self, flow_run_id: UUID) -> None:
        for run in self._read(flow_run_id):
            if run.state is not None and not run.state.is_final():
                self._client.set_flow_run_state(flow_run_id, Crashed(message="its lease ran out"), force=True)

    def _read(self, flow_run_id: UUID) -> list[FlowRun]:
        """The flow run of that id; nothing if Prefect does not have it any more."""
        wanted = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
        return self._client.read_flow_runs(flow_run_filter=wanted, limit=1)


def _cancelled_since(catalog: Catalog, moment: datetime) -> frozenset[UUID]:
    """The flow runs that the catalog says were cancelled since then, among the newest of each kind."""
    ends = (
        *((one.flow_run_id, one.status, one.execution_end) for one in catalog.executions(status=RunStatus.CANCELLED)),
        *((one.flow_run_id, one.status, one.verification_end) for one in catalog.verifications()),
        *((one.flow_run_id, one.status, one.recovery_end) for one in catalog.recoveries()),
    )
    return frozenset(
        flow_run_id
        for flow_run_id, status, ended_at in ends
        if flow_run_id is not None and status is RunStatus.CANCELLED and ended_at is not None and ended_at >= moment
    )


_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h


def has_process(run: Run, processes: Path = Path("/proc")) -> bool:
    """Whether the process that Prefect names is alive and is this run's: process ids are used again."""
    if run.pid is None:
        return False
    place = processes / str(run.pid)
    try:
        environment = (place / "environ").read_bytes()
        if not environment:
            return _is_being_started((place / "stat").read_text(encoding="utf-8"))
    except PermissionError:
        return True
    except OSError:
        return False
    return f"{FLOW_RUN_VARIABLE}={run.id}".encode() in environment.split(b"\0")


def _is_being_started(stat: str) -> bool:
    """Whether a process whose environment is empty may be one that the kernel is just putting a program into.

    What has ended and the kernel's own threads have no environment either (proc_pid_stat(5): state and flags, fields
    3 and 9, after the name in parentheses, which may hold anything).
    """
    state, *_, flags = stat.rpartition(")")[2].split()[:7]
    return state not in "ZXx" and not int(flags) & _KERNEL_THREAD


def _facts(found: FlowRun, now: datetime) -> Run | None:
    if found.state is None:
        return None
    pid = found.infrastructure_pid or ""
    return Run(
        id=found.id,
        deployment_id=found.deployment_id,
        state_type=found.state.type,
        state_name=found.state.name or "",
        since=found.state.timestamp,
        expected_at=found.expected_start_time or now,
        pid=int(pid) if pid.isdigit() else None,
        by_schedule=bool(found.auto_scheduled),
        parameters=found.parameters,
        tags=tuple(found.tags),
    )


def swept(sweeper: Sweeper, now: datetime) -> bool:
    """Sweep once; a catalog that does not answer is reported and tried again next time."""
    try:
        sweeper.sweep(now)
    except CatalogError:
        logger.exception("the catalog could not be swept")
        return False
    return True
