"""Whether a scheduled run still has to be done, and in which state a flow ends that has nothing to do.

After an outage Prefect starts every run that was missed; only the newest of them matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Completed, Scheduled

from seawall.catalog import Catalog, Job
from seawall.settings import Settings
from tasks import run

_DOES_IT = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.COMPLETED]
# A scheduled run that begins so soon after its time was not held up by anything.
PUNCTUAL = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another run of the same deployment."""

    id: UUID
    expected_at: datetime
    parameters: Mapping[str, object] = field(default_factory=dict)


def why_superseded(
    scheduled_at: datetime,
    parameters: Mapping[str, object],
    siblings: Sequence[Sibling],
    newest_success_at: datetime | None,
    now: datetime,
) -> str:
    """Why a run need not be done any more; empty if it must.

    Args:
        scheduled_at: when it should have begun.
        parameters: its own; a sibling with others does other work.
        siblings: runs of the same deployment that wait, run or completed.
        newest_success_at: when the job's newest completed execution began.
    """
    later = [s for s in siblings if scheduled_at < s.expected_at <= now and s.parameters == parameters]
    if later:
        newest = max(later, key=lambda sibling: sibling.expected_at)
        return f"superseded: flow run {newest.id} was scheduled later, for {newest.expected_at.isoformat()}"
    if newest_success_at is not None and newest_success_at >= scheduled_at and now - scheduled_at > PUNCTUAL:
        return f"superseded: the job was done at {newest_success_at.isoformat()}, after this run should have begun"
    return ""


def why_outside_window(
    scheduled_at: datetime, window: timedelta, newest_success_at: datetime | None, now: datetime
) -> str:
    """Why a run that missed its window waits for the next one; empty if it must not wait.

    A source whose newest full backup is older than a day and a half gets one now: load at noon is better than
    no backup.
    """
    if now - scheduled_at <= window:
        return ""
    if newest_success_at is None or now - newest_success_at > timedelta(hours=36):
        return ""
    ended_at = scheduled_at + window
    return (
        f"outside its window, which ended at {ended_at.isoformat()}; the newest is of {newest_success_at.isoformat()}"
    )


def window_opens_at(scheduled_at: datetime, cron: str, time_zone: str) -> datetime:
    """When a run of a daily (weekly, monthly) schedule may begin: its time by the clock on the wall, or `scheduled_at`.

    On the day when clocks go forward over that time, Prefect schedules the run an hour before the clock would have
    shown it. It may begin as late as the clock skips it: at the first moment after the hour that does not exist.

    Args:
        cron: five fields; one that does not name one minute and one hour says nothing about a window.
        time_zone: an IANA name.
    """
    minute, hour, *_ = cron.split()
    if not (minute.isdigit() and hour.isdigit()):
        return scheduled_at
    day = scheduled_at.astimezone(ZoneInfo(time_zone))
    # Where clocks go forward at midnight, an hour before the time is on the day before.
    for each in (day, day + timedelta(days=1)):
        # In a gap the offset of before counts (PEP 495, fold 0), which puts the moment behind the gap.
        wanted = each.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0, fold=0).astimezone(UTC)
        if timedelta(0) <= wanted - scheduled_at <= timedelta(hours=2):
            return wanted
    return scheduled_at


def moved(client: SyncPrefectClient, mine: FlowRun, opens_at: datetime) -> State[None]:
    """Do the work of a run that came before its window in a run of its own when the window opens."""
    if mine.deployment_id is None:
        raise TypeError("only a run of a deployment was scheduled")
    other = client.create_flow_run_from_deployment(
        mine.deployment_id,
        parameters=mine.parameters,
        state=Scheduled(scheduled_time=opens_at),
        tags=mine.tags,
        idempotency_key=f"moved-{mine.id}",
    )
    return nothing_to_do(f"moved to {opens_at.isoformat()} (flow run {other.id}): clocks go forward over its time")


def refusal(settings: Settings, job_id: UUID | None, *, window: timedelta | None = None) -> State[None] | None:
    """The state to end in at once when this run was scheduled and need not be done (now); None if it must."""
    here = run.current()
    if here.id is None:
        return None
    now = datetime.now(UTC)
    job, newest = _job(settings, job_id)
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(here.id)
        if not mine.auto_scheduled or mine.deployment_id is None or mine.expected_start_time is None:
            return None
        if job is not None and job.schedule_cron:
            opens_at = window_opens_at(mine.expected_start_time, job.schedule_cron, job.time_zone)
            if opens_at > now:
                return moved(client, mine, opens_at)
        siblings = _siblings(client, mine.id, mine.deployment_id, mine.expected_start_time, now)
    why = why_superseded(mine.expected_start_time, mine.parameters, siblings, newest, now)
    if not why and window is not None:
        why = why_outside_window(mine.expected_start_time, window, newest, now)
    return nothing_to_do(why) if why else None


def nothing_to_do(why: str) -> State[None]:
    """The state of a run that had nothing to do: not a failure, and not a success that could be counted."""
    run.run_log().warning("%s", why)
    return Cancelled(message=why)


def ended(facts: Mapping[str, Any]) -> dict[str, Any] | State[Any]:
    """How a flow ends that did its work: with what came of it, and not as if all were well where something is lacking.

    Args:
        facts: of its tasks; what is lacking is told under `partial`.
    """
    lacking = facts.get("partial")
    return Completed(name="Partial", message=lacking, data=dict(facts)) if isinstance(lacking, str) else dict(facts)


def _job(settings: Settings, job_id: UUID | None) -> tuple[Job | None, datetime | None]:
    """The job, and when its newest success began."""
    if job_id is None:
        return None, None
    with Catalog.open(settings.catalog.url) as catalog:
        newest = catalog.newest_success(job_id)
        return catalog.job(job_id), None if newest is None else newest.execution_start


def _siblings(
    client: SyncPrefectClient, own_id: UUID, deployment_id: UUID, scheduled_at: datetime, now: datetime
) -> list[Sibling]:
    found = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_DOES_IT)),
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"after_": scheduled_at, "before_": now}),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=200,
    )
    return [
        Sibling(other.id, other.expected_start_time, other.parameters)
        for other in found
        if other.id != own_id and other.expected_start_time is not None
    ]
