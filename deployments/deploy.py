"""What is served: one deployment for each flow, its work pool and queues; idempotent.

Deploying again changes definitions and keeps schedules. Which job schedules exist and which of them are active is
read from the catalog afterwards, so a schedule that an administrator stopped stays stopped.

Limits of concurrency here are admission only. That the same job never runs twice at once is kept by the catalog, and
that one source has one writer by the lease in its repository.
"""

from __future__ import annotations

import importlib
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    DeploymentSchedule,
    WorkPool,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.environment import POOL
from deployments.schedules import JOBS, Schedule, job_schedules
from seawall import __version__
from seawall.catalog import Catalog
from seawall.errors import RecordMissing
from seawall.settings import Settings, SourceSettings

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

logger = logging.getLogger(__name__)

# The smaller, the sooner: a WAL segment or a restore never waits for a nightly backup or a cleanup.
QUEUES = {"critical": 1, "backup": 2, "maintenance": 5}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many runs of a deployment; the next one waits in the queue, or is cancelled."""

    runs: int
    cancel_next: bool


@dataclass(frozen=True, slots=True)
class Served:
    """One deployment: it has the name of its flow.

    Args:
        name: of flow and deployment.
        entrypoint: `module.function`, importable wherever a worker runs.
        limit: only for flows of which one run serves the whole site: a limit on a deployment that several sources
            share would let the backup of one cancel that of another.
    """

    name: str
    entrypoint: str
    queue: str
    description: str
    limit: Limit | None = None


SERVED = (
    Served("backup", "flows.backup.backup", "backup", "Take a backup of a source, verify it, record it."),
    Served("archive-wal", "flows.archive_wal.archive_wal", "critical", "Switch WAL, ship it, prove it continuous."),
    Served("verify", "flows.verify.verify", "maintenance", "Read backups back and prove what they hold."),
    Served("restore", "flows.restore.restore", "critical", "Restore a source to a recovery target."),
    Served(
        "restore-test",
        "flows.restore_test.restore_test",
        "maintenance",
        "Restore into a scratch instance, check it, measure the RTO.",
        # Tests of two sources would share disk and memory of one host; the second waits.
        Limit(1, cancel_next=False),
    ),
    Served(
        "retention-cleanup",
        "flows.retention_cleanup.retention_cleanup",
        "maintenance",
        "Let backups go by policy, in two audited steps.",
        # One run cleans all sources, so a second one has nothing to do.
        Limit(1, cancel_next=True),
    ),
    Served(
        "mirror",
        "flows.mirror.mirror",
        "maintenance",
        "Bring the copies in other locations up to date.",
        # One run serves all sources and goes on where the last one stopped.
        Limit(1, cancel_next=True),
    ),
    Served(
        "renew-proofs",
        "flows.renew_proofs.renew_proofs",
        "maintenance",
        "Read what was proved longest ago, within a budget, and heal what is wrong.",
        Limit(1, cancel_next=True),
    ),
    Served(
        "location-health",
        "flows.location_health.location_health",
        "maintenance",
        "Look whether every storage location works.",
        Limit(1, cancel_next=True),
    ),
    Served(
        "immutability-probe",
        "flows.immutability_probe.immutability_probe",
        "maintenance",
        "Attack a locked canary in every location that claims to lock.",
        Limit(1, cancel_next=True),
    ),
)


def deploy(
    client: SyncPrefectClient,
    *,
    working_directory: str,
    served: Sequence[Served] = SERVED,
    pool: str = POOL,
    environment: dict[str, str] | None = None,
) -> dict[str, UUID]:
    """Bring work pool, queues and deployments to these definitions; schedules stay as they are.

    Args:
        working_directory: where flow runs start; flows are found by module, not by path.
        environment: additional variables of flow runs; never a secret, Prefect shows them.

    Returns:
        The deployments' ids by name.
    """
    ensure_pool(client, pool)
    variables = job_variables(working_directory) | ({"env": environment} if environment else {})
    return {one.name: _deploy_one(client, one, pool, variables) for one in served}


def ensure_pool(client: SyncPrefectClient, pool: str = POOL) -> WorkPool:
    """The work pool with its queues; an existing one is left as it is, paused or not."""
    try:
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=ProcessWorker.get_default_base_job_template())
        )
    except ObjectAlreadyExists:
        logger.debug("the work pool %s is there already", pool)
    known = {queue.name: queue for queue in client.read_work_queues(work_pool_name=pool)}
    for name, priority in QUEUES.items():
        if name not in known:
            client.create_work_queue(name=name, priority=priority, work_pool_name=pool)
    return client.read_work_pool(pool)


def job_variables(working_directory: str) -> dict[str, object]:
    """How a worker starts a run; with the command named, it skips a second interpreter that would only find it."""
    command = shlex.join([sys.executable, "-m", "prefect.engine"])
    return {"command": command, "working_dir": working_directory, "stream_output": True}


def _deploy_one(client: SyncPrefectClient, one: Served, pool: str, variables: dict[str, object]) -> UUID:
    flow = _flow(one.entrypoint)
    existing = _find(client, one.name)
    # An update names every field; what it does not name (schedules, paused) Prefect keeps.
    definition: dict[str, Any] = {
        "entrypoint": one.entrypoint,
        "version": __version__,
        "description": one.description,
        "work_pool_name": pool,
        "work_queue_name": one.queue,
        "job_variables": variables,
        "parameter_openapi_schema": flow.parameters.model_dump(),
        "enforce_parameter_schema": True,
        "tags": ["seawall"],
        "concurrency_limit": one.limit.runs if one.limit else None,
    }
    if one.limit:
        strategy = ConcurrencyLimitStrategy.CANCEL_NEW if one.limit.cancel_next else ConcurrencyLimitStrategy.ENQUEUE
        definition["concurrency_options"] = ConcurrencyOptions(collision_strategy=strategy)
    if existing is not None:
        client.update_deployment(existing.id, DeploymentUpdate(**definition))
        return existing.id
    return client.create_deployment(flow_id=client.create_flow(flow), name=one.name, **definition)


def _flow(entrypoint: str) -> Flow[..., Any]:
    module, _, function = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), function)
    if not isinstance(flow, Flow):
        raise TypeError(f"{entrypoint} is no flow")
    return flow


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return None


def ensure_jobs(catalog: Catalog, settings: Settings, *, now: datetime) -> None:
    """Give every configured source, and the site, its jobs.

    Retention and time zone follow the settings. A job that exists keeps its schedule and whether it is active:
    those are the catalog's.
    """
    for plan in JOBS:
        for source in settings.sources.values() if plan.for_each_source else [None]:
            name = plan.suffix if source is None else f"{source.name}-{plan.suffix}"
            catalog.ensure_job(
                name,
                plan.job_type,
                schedule_cron=_kept_cron(catalog, name, plan.cron),
                time_zone=settings.server.time_zone if plan.is_local else "UTC",
                retention_days=30 if source is None else source.retention_days,
                backup_targets={} if source is None else {"source": source.name},
                destination_config={"repository": settings.repository.url},
                notification_config=_channel_of(source),
                now=now,
            )


def _channel_of(source: SourceSettings | None) -> dict[str, object] | None:
    """Who hears of a job by the settings; None leaves it as the catalog has it."""
    return None if source is None or not source.notification_channel else {"channel": source.notification_channel}


def _kept_cron(catalog: Catalog, name: str, default: str) -> str | None:
    try:
        return catalog.job_named(name).schedule_cron
    except RecordMissing:
        return default


def reconcile_schedules(catalog: Catalog, client: SyncPrefectClient, *, settings_file: str) -> tuple[str, ...]:
    """Make Prefect's schedules those of the catalog; returns the slugs that had to change.

    Schedules without a slug were made by hand in Prefect's own pages and are left alone.
    """
    wanted = job_schedules(catalog.jobs(), settings_file)
    changed: list[str] = []
    for name in {one.name for one in SERVED}:
        deployment = _find(client, name)
        if deployment is not None:
            ours = [schedule for schedule in wanted if schedule.deployment == name]
            changed += _reconcile_one(client, deployment.id, ours)
    return tuple(changed)


def _reconcile_one(client: SyncPrefectClient, deployment_id: UUID, wanted: Sequence[Schedule]) -> list[str]:
    present = {found.slug: found for found in client.read_deployment_schedules(deployment_id) if found.slug}
    changed: list[str] = []
    for schedule in wanted:
        found = present.pop(schedule.slug, None)
        if found is None:
            client.create_deployment_schedules(deployment_id, [_creation(schedule)])
        elif differs(schedule, found):
            client.update_deployment_schedule(
                deployment_id,
                found.id,
                active=schedule.active,
                schedule=CronSchedule(cron=schedule.cron, timezone=schedule.time_zone),
                parameters=dict(schedule.parameters),
            )
        else:
            continue
        changed.append(schedule.slug)
    for slug, left in present.items():
        if _is_ours(slug):
            client.delete_deployment_schedule(deployment_id, left.id)
            changed.append(slug)
    return changed


def differs(wanted: Schedule, found: DeploymentSchedule) -> bool:
    """Whether Prefect's schedule is another one than the catalog's."""
    schedule = found.schedule
    same_times = (
        isinstance(schedule, CronSchedule)
        and schedule.cron == wanted.cron
        and (schedule.timezone or "UTC") == wanted.time_zone
    )
    return not (same_times and found.active is wanted.active and dict(found.parameters) == dict(wanted.parameters))


def _creation(schedule: Schedule) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=schedule.cron, timezone=schedule.time_zone),
        active=schedule.active,
        parameters=dict(schedule.parameters),
        slug=schedule.slug,
    )


def _is_ours(slug: str) -> bool:
    """Whether a schedule that nobody wants any more was made by an earlier deployment."""
    try:
        return str(UUID(slug)) == slug
    except ValueError:
        return False
