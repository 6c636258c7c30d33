"""Against a real Prefect server, worker and keeper."""

from __future__ import annotations

import base64
import os
import random
import signal
import socket
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.artifacts import Artifact
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling, Crashed, Pending, Running, Scheduled
from pydantic import SecretStr

from blocks.cluster import PostgresCluster
from blocks.site import BlockNames, settings_for
from campaigns import kill, live, runs, scenes
from campaigns.doomed import Struck
from campaigns.sample import QuickRing
from deployments import deploy
from deployments import keeper as keeping
from deployments.environment import POOL
from deployments.keeper import Keeper
from deployments.processes import is_alive
from deployments.stack import answers
from deployments.sweeper import Sweeper
from seawall.catalog import JobType, RunStatus
from seawall.model import SealingMode
from seawall.postgres.binaries import Account
from seawall.settings import SourceSettings
from tasks.admission import moved

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


def filter_of(**conditions: object) -> FlowRunFilter:
    return FlowRunFilter.model_validate(conditions)


def alive(pid: int) -> bool:
    return is_alive(pid)


# The server, its secrets, and what it says to strangers


def test_the_api_refuses_whoever_has_no_password(prefect_stack):
    api = prefect_stack.stack.api_url
    assert httpx.get(f"{api}/admin/version").status_code == 401
    assert httpx.get(f"{api}/admin/version", auth=("seawall", "wrong")).status_code == 401
    user, _, password = prefect_stack.stack.place.auth_string().partition(":")
    assert httpx.get(f"{api}/admin/version", auth=(user, password)).status_code == 200
    assert httpx.get(f"{api}/health").status_code == 200


def test_the_api_refuses_changes_from_a_page_that_has_no_csrf_token(prefect_stack):
    secret = base64.b64encode(prefect_stack.stack.place.auth_string().encode()).decode()
    answer = httpx.post(
        f"{prefect_stack.stack.api_url}/variables/",
        json={"name": "x", "value": "y"},
        headers={"Authorization": f"Basic {secret}"},
    )
    assert answer.status_code == 403


def test_everything_listens_on_loopback_only(prefect_stack):
    listening = set()
    for name in ("server", "worker", "keeper"):
        pid = prefect_stack.stack.child(name).pid
        sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    listening.add(fields[1].split(":")[0])
    assert listening == {"0100007F"}


def test_the_keeper_gives_signs_of_life_as_long_as_it_runs(prefect_stack):
    beat = prefect_stack.stack.place.work_directory / "keeper.beat"
    assert datetime.now(UTC) - datetime.fromtimestamp(beat.stat().st_mtime, tz=UTC) < timedelta(minutes=5)
    seen = {one.host: one.silence for one in prefect_stack.catalog.keepers()}
    assert seen[socket.gethostname()] < timedelta(minutes=5)


def test_a_keeper_misses_that_of_another_host_while_it_keeps_and_says_when_it_ends(
    prefect_stack, wait_for, tmp_path, monkeypatch
):
    monkeypatch.setattr(keeping, "OTHERS_EVERY", 0.0)
    monkeypatch.setattr(socket, "gethostname", lambda: "near")
    catalog, settings = prefect_stack.catalog, prefect_stack.settings
    settings = replace(settings, server=replace(settings.server, work_directory=tmp_path))
    catalog.beat("far")
    with sqlite3.connect(catalog.place.file) as database:
        database.execute("UPDATE keepers SET beat_at = '2020-02-02 02:02:02' WHERE host = 'far'")
    keeper, stop = Keeper(prefect_stack.client, catalog, settings, str(prefect_stack.settings_file)), threading.Event()
    thread = threading.Thread(target=keeper.keep, args=(stop, 0.05))
    thread.start()
    try:
        wait_for(lambda: catalog.has_open_alert("keeper-silent", subject="far"))
        assert not catalog.has_open_alert("keeper-silent", subject="near")
        assert "near" in {one.host for one in catalog.keepers()}
    finally:
        stop.set()
        thread.join()
        keeper.leave()
        catalog.end_keeper("far")
    assert "near" not in {one.host for one in catalog.keepers()}


def test_no_secret_is_on_any_command_line(prefect_stack):
    place = prefect_stack.stack.place
    for name in ("server", "worker", "keeper"):
        arguments = Path(f"/proc/{prefect_stack.stack.child(name).pid}/cmdline").read_bytes()
        for secret in (place.auth_string().partition(":")[2], place.encryption_key()):
            assert secret.encode() not in arguments


def test_a_stolen_database_tells_no_block_secret(prefect_stack):
    PostgresCluster(conninfo="host=db", password=SecretStr("hunter2-very-secret")).save("stolen", overwrite=True)
    assert PostgresCluster.load("stolen").password.get_secret_value() == "hunter2-very-secret"
    place = prefect_stack.stack.place
    content = b"".join(path.read_bytes() for path in place.home.glob("prefect.db*"))
    assert b"seawall-postgres-cluster" in content
    for secret in (b"hunter2-very-secret", place.encryption_key().encode()):
        assert secret not in content
    with sqlite3.connect(f"file:{place.home}/prefect.db?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM configuration WHERE key = 'ENCRYPTION_KEY'").fetchone() == (0,)


def test_a_source_can_be_described_by_blocks_instead_of_the_file(prefect_stack):
    PostgresCluster(conninfo="host=db port=5433", password=SecretStr("a:b")).save("main", overwrite=True)
    settings = settings_for("main", str(prefect_stack.settings_file), BlockNames(cluster="main"))
    source = settings.source("main")
    assert source.conninfo == "host=db port=5433"
    assert source.passfile.read_text() == "*:*:*:*:a\\:b\n"
    assert settings.catalog == prefect_stack.settings.catalog


# One run


def test_a_run_leaves_its_result_and_progress_and_asks_nobody_outside(prefect_stack):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=2.5)
    run = prefect_stack.ended(prefect_stack.start(parameters))
    assert run.state.type.value == "COMPLETED", run.state.message
    execution = prefect_stack.execution(job)
    assert (execution.status, execution.flow_run_id) == (RunStatus.COMPLETED, run.id)
    assert execution.details["answer"] == 42
    # Not in the temporary directory that all accounts share.
    assert (prefect_stack.stack.place.home / "runner_storage").is_dir()
    artifact = Artifact.get("probe-main")
    assert artifact.flow_run_id == run.id
    assert float(artifact.data) == 100.0
    done = prefect_stack.noted(parameters, "done")
    assert done["strangers"] == []
    assert done["cloud"] == []
    assert not {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_ENCRYPTION_KEY"} & set(done["environment"])


def test_results_are_json_and_nothing_is_cached(prefect_stack):
    environment = prefect_stack.stack.environments.worker
    assert environment["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    parameters = prefect_stack.parameters(prefect_stack.job())
    for _ in range(2):
        assert prefect_stack.ended(prefect_stack.start(parameters)).state.type.value == "COMPLETED"
    # The same inputs twice: a cache would have skipped the second.
    assert len([note for note in prefect_stack.notes(parameters) if note["event"] == "done"]) == 2
    storage = prefect_stack.stack.place.home / "storage"
    assert not storage.exists() or not any(storage.iterdir())


def test_a_failure_is_failed_in_prefect_and_in_the_catalog_and_alerts(prefect_stack):
    job = prefect_stack.job()
    run = prefect_stack.ended(prefect_stack.start(prefect_stack.parameters(job, behaviour="fail")))
    assert run.state.type.value == "FAILED"
    execution = prefect_stack.execution(job)
    assert execution.status is RunStatus.FAILED
    assert "server-unreachable" in execution.error_message
    assert {"bad-pages", "probe-failed"} <= {alert.alert_type for alert in prefect_stack.catalog.alerts()}


def test_cancelling_stops_the_verb_and_what_it_started_and_says_cancelled_everywhere(prefect_stack):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=120)
    run = prefect_stack.start(parameters)
    begun = prefect_stack.noted(parameters, "begun")
    prefect_stack.client.set_flow_run_state(run.id, Cancelling())
    prefect_stack.cancelled(run)
    assert prefect_stack.noted(parameters, "unwound")
    assert not alive(begun["child"])
    assert prefect_stack.execution(job).status is RunStatus.CANCELLED
    assert not [note for note in prefect_stack.notes(parameters) if note["event"] == "done"]


def test_the_same_job_never_runs_twice_at_once_and_the_second_is_no_failure(prefect_stack):
    job = prefect_stack.job()
    # Long enough for the second to start on a busy machine; it is cancelled when its work here is done.
    first = prefect_stack.parameters(job, seconds=120)
    running = prefect_stack.start(first)
    prefect_stack.noted(first, "begun")
    second = prefect_stack.parameters(job)
    refused = prefect_stack.ended(prefect_stack.start(second))
    assert refused.state.type.value == "CANCELLED"
    assert "already running" in refused.state.message
    assert not [note for note in prefect_stack.notes(second) if note["event"] == "begun"]
    assert prefect_stack.run(running).state.type.value == "RUNNING"
    prefect_stack.client.set_flow_run_state(running.id, Cancelling())
    prefect_stack.cancelled(running)
    assert len(prefect_stack.catalog.executions(job)) == 1


# Schedules


def test_a_cron_schedule_really_yields_runs(prefect_stack, wait_for):
    slug = str(uuid4())
    schedule = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="*/15 * * * *", timezone="UTC"),
        parameters=prefect_stack.parameters(prefect_stack.job()),
        slug=slug,
    )
    (made,) = prefect_stack.client.create_deployment_schedules(prefect_stack.probe_id, [schedule])
    try:
        runs = wait_for(lambda: found if len(found := scheduled(prefect_stack)) >= 3 else None)
        moments = sorted(run.expected_start_time for run in runs)
        assert {(later - earlier).total_seconds() for earlier, later in pairwise(moments)} == {900.0}
    finally:
        prefect_stack.client.delete_deployment_schedule(prefect_stack.probe_id, made.id)


def scheduled(prefect_stack):
    return prefect_stack.client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[prefect_stack.probe_id])),
        flow_run_filter=filter_of(state={"type": {"any_": ["SCHEDULED"]}}),
    )


def test_redeploying_keeps_which_schedules_are_active_as_the_catalog_says(prefect_stack):
    client, catalog, file = prefect_stack.client, prefect_stack.catalog, str(prefect_stack.settings_file)
    settings = prefect_stack.settings
    object.__setattr__(settings, "sources", {"main": SourceSettings("main", retention_days=7)})

    def redeploy() -> dict[str, tuple[str, bool]]:
        deploy.deploy(client, working_directory=str(prefect_stack.stack.place.home))
        deploy.ensure_jobs(catalog, settings, now=datetime.now(UTC))
        deploy.reconcile_schedules(catalog, client, settings_file=file)
        return in_prefect()

    def in_prefect() -> dict[str, tuple[str, bool]]:
        found = {}
        for name in ("backup", "archive-wal", "verify", "restore-test", "retention-cleanup"):
            deployment = client.read_deployment_by_name(f"{name}/{name}")
            for one in client.read_deployment_schedules(deployment.id):
                found[one.slug] = (f"{one.schedule.cron} {one.schedule.timezone}", one.active)
        return found

    first = redeploy()
    wal, full = catalog.job_named("main-wal"), catalog.job_named("main-full")
    test, cleaning = catalog.job_named("main-restore-test"), catalog.job_named("retention-cleanup")
    assert first[str(wal.id)] == ("*/15 * * * * UTC", True)
    assert first[str(full.id)] == ("0 2 * * * Europe/Berlin", True)
    assert first[str(cleaning.id)] == ("30 6 * * * Europe/Berlin", True)

    for job in (wal, test):
        catalog.set_job_active(job.id, False, now=datetime.now(UTC))
    # In Prefect's page somebody stops the full, which the catalog wants.
    deployment = client.read_deployment_by_name("backup/backup")
    (one,) = [s for s in client.read_deployment_schedules(deployment.id) if s.slug == str(full.id)]
    client.update_deployment_schedule(deployment.id, one.id, active=False)
    second = redeploy()
    assert second[str(wal.id)][1] is False
    assert second[str(full.id)][1] is True
    assert second[str(test.id)][1] is False
    assert set(second) == set(first)

    object.__setattr__(settings, "sources", {})
    third = redeploy()
    assert third == second, "history keeps its jobs, also of a source that the settings no longer have"
    for job in catalog.jobs():
        catalog.set_job_active(job.id, False, now=datetime.now(UTC))
    redeploy()


def test_a_run_that_comes_before_its_window_is_moved_to_when_it_opens(prefect_stack):
    client = prefect_stack.client
    deployment = client.read_deployment_by_name("backup/backup")
    opens_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    early = client.create_flow_run_from_deployment(
        deployment.id, parameters={"source": "main"}, state=Scheduled(scheduled_time=opens_at + timedelta(days=1))
    )
    first, again = (moved(client, early, opens_at) for _ in range(2))
    assert first.message == again.message, "told twice, it is moved once"
    (other,) = [
        run
        for run in client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        )
        if str(run.id) in (first.message or "")
    ]
    assert other.expected_start_time == opens_at
    assert (other.parameters, other.auto_scheduled) == (early.parameters, False)
    for run in (early, other):
        client.delete_flow_run(run.id)


# What Prefect leaves open


def test_a_stuck_pending_run_does_not_block_the_next_and_is_tried_again(prefect_stack, wait_for):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job)
    stuck = prefect_stack.start(parameters, state=Pending())
    other = prefect_stack.parameters(job)
    assert prefect_stack.ended(prefect_stack.start(other)).state.type.value == "COMPLETED"
    crashed = prefect_stack.ended(stuck)
    assert crashed.state.type.value == "CRASHED"
    assert "never did" in crashed.state.message
    assert prefect_stack.noted(parameters, "done")


def test_a_run_whose_process_is_gone_when_it_was_to_be_cancelled_was_cancelled_and_did_not_crash(prefect_stack):
    job, here = prefect_stack.job(), socket.gethostname()
    # As the keeper finds it when the process has ended and the worker has not yet said so, or never will. It looks
    # twice, so the row is there in time.
    run = prefect_stack.start(prefect_stack.parameters(job), state=Cancelling())
    lease = timedelta(minutes=5)
    prefect_stack.catalog.begin_execution(job, now=datetime.now(UTC), lease=lease, flow_run_id=run.id, host=here)
    ended = prefect_stack.ended(run)
    assert ended.state.type.value == "CANCELLED", prefect_stack.story(run)
    assert "its process is gone" in ended.state.message
    assert prefect_stack.execution(job).status is RunStatus.CANCELLED


def test_a_run_that_prefect_calls_crashed_and_the_catalog_cancelled_was_cancelled(prefect_stack, wait_for):
    job, client, catalog = prefect_stack.job(), prefect_stack.client, prefect_stack.catalog
    # Far away, so that no worker takes it up; then as Prefect leaves one whose process did not hear in time.
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    run = prefect_stack.start(prefect_stack.parameters(job), state=Scheduled(scheduled_time=tomorrow))
    lease = timedelta(minutes=5)
    execution = catalog.begin_execution(job, now=datetime.now(UTC), lease=lease, flow_run_id=run.id)
    client.set_flow_run_state(run.id, Crashed(message="it was ended by a signal"), force=True)
    catalog.finish_execution(execution, status=RunStatus.CANCELLED, now=datetime.now(UTC))
    wait_for(lambda: prefect_stack.run(run).state.type.value == "CANCELLED")


def test_a_stopped_worker_leaves_failed_executions_and_no_process(prefect_stack):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=120)
    run = prefect_stack.start(parameters)
    begun = prefect_stack.noted(parameters, "begun")
    worker = prefect_stack.stack.child("worker")
    worker.ask_to_end()
    try:
        assert worker.wait(120)
        assert prefect_stack.noted(parameters, "unwound")
        assert not alive(begun["pid"]) and not alive(begun["child"])
        execution = prefect_stack.execution(job)
        assert execution.status is RunStatus.FAILED
        assert "interrupted" in execution.error_message
        assert prefect_stack.ended(run).state.type.value == "CRASHED"
    finally:
        worker.kill()
        prefect_stack.stack.restart("worker")


def test_a_worker_killed_with_its_run_leaves_a_failed_execution_and_no_process(prefect_stack, wait_for):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=120)
    run = prefect_stack.start(parameters)
    begun = prefect_stack.noted(parameters, "begun")
    worker = prefect_stack.stack.child("worker")
    os.kill(worker.pid, signal.SIGKILL)
    os.kill(begun["pid"], signal.SIGKILL)
    try:
        assert prefect_stack.ended(run).state.type.value == "CRASHED"
        assert prefect_stack.execution(job).status is RunStatus.FAILED
        # The job is one of backups, and nobody is left who could say that this one failed.
        wait_for(lambda: prefect_stack.catalog.has_open_alert("backup-failed", subject="elsewhere"))
        wait_for(lambda: not alive(begun["child"]))
    finally:
        worker.kill()
        prefect_stack.stack.restart("worker")
    again = prefect_stack.parameters(job)
    assert prefect_stack.ended(prefect_stack.start(again)).state.type.value == "COMPLETED"


# Keeper first: it is what puts the story right; then also what it asks, and whoever would have told that.
@pytest.mark.repeats
@pytest.mark.parametrize("struck", [("keeper",), ("server",), ("keeper", "server"), ("keeper", "server", "worker")])
def test_a_run_killed_with_the_stack_around_it_is_over_when_that_is_back_and_runs_again(
    prefect_stack, wait_for, struck
):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=120)
    run = prefect_stack.start(parameters)
    begun = prefect_stack.noted(parameters, "begun")
    children = [prefect_stack.stack.child(name) for name in struck]
    for pid in (*(child.pid for child in children), begun["pid"]):
        os.kill(pid, signal.SIGKILL)
    try:
        for child in children:
            wait_for(lambda child=child: child.exit_code is not None)
        if "keeper" in struck:
            assert socket.gethostname() in {one.host for one in prefect_stack.catalog.keepers()}, "it is to be missed"
            assert prefect_stack.settings.keeper_beat.exists()
    finally:
        for name in sorted(struck, key=("server", "worker", "keeper").index):
            prefect_stack.stack.child(name).kill()
            prefect_stack.stack.restart(name)
            wait_for(lambda: answers(prefect_stack.stack.api_url))
    assert prefect_stack.ended(run, 200).state.type.value == "CRASHED", prefect_stack.story(run)
    ended = prefect_stack.execution(job)
    assert ended.status is RunStatus.FAILED
    assert "its process is gone" in ended.error_message, "nobody waited for the lease"
    wait_for(lambda: not alive(begun["child"]))
    again = prefect_stack.parameters(job)
    assert prefect_stack.ended(prefect_stack.start(again), 200).state.type.value == "COMPLETED"
    assert prefect_stack.execution(job).status is RunStatus.COMPLETED
    assert not prefect_stack.catalog.has_open_alert("keeper-silent", subject=socket.gethostname())


def test_a_run_of_another_host_is_judged_by_its_lease_alone(prefect_stack, wait_for):
    client, catalog = prefect_stack.client, prefect_stack.catalog
    deployment = client.read_deployment_by_name("backup/backup")
    job = catalog.ensure_job("elsewhere", JobType.FULL, backup_targets={}, destination_config={}, now=datetime.now(UTC))
    run = client.create_flow_run_from_deployment(
        deployment.id,
        parameters={"source": "elsewhere"},
        state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)),
    )
    client.set_flow_run_state(run.id, Running(), force=True)
    begun = catalog.begin_execution(
        job, now=datetime.now(UTC), lease=timedelta(minutes=30), flow_run_id=run.id, host="another.example"
    )
    sweeper = Sweeper(
        client, catalog, pool=POOL, pending_limit=timedelta(minutes=5), scratch=prefect_stack.settings_file.parent
    )
    for _ in range(2):
        assert run.id not in [action.run.id for action in sweeper.sweep(datetime.now(UTC))]
    assert catalog.execution(begun).status is RunStatus.RUNNING
    catalog.renew(begun, datetime.now(UTC), timedelta(seconds=1))
    wait_for(lambda: catalog.execution(begun).status is RunStatus.FAILED)
    wait_for(lambda: prefect_stack.run(run).state.is_crashed() or None)


def test_after_an_outage_only_the_newest_missed_run_is_executed(prefect_stack, wait_for):
    worker = prefect_stack.stack.child("worker")
    worker.kill()
    parameters = prefect_stack.parameters(prefect_stack.job())
    schedule = DeploymentScheduleCreate(
        # Long enough for a run to begin before the next one is due, also on a busy machine.
        schedule=IntervalSchedule(interval=timedelta(seconds=15), anchor_date=datetime.now(UTC), timezone="UTC"),
        parameters=parameters,
        slug=str(uuid4()),
    )
    (made,) = prefect_stack.client.create_deployment_schedules(prefect_stack.probe_id, [schedule])

    def of_schedule():
        return prefect_stack.client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[prefect_stack.probe_id])),
            flow_run_filter=filter_of(expected_start_time={"before_": datetime.now(UTC)}),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )

    try:
        missed = wait_for(
            lambda: found if len(found := [r for r in of_schedule() if r.parameters == parameters]) >= 3 else None
        )
        prefect_stack.stack.restart("worker")
        prefect_stack.noted(parameters, "done")
    finally:
        prefect_stack.client.delete_deployment_schedule(prefect_stack.probe_id, made.id)
    earlier = [prefect_stack.ended(run) for run in missed[:-1]]
    assert {run.state.type.value for run in earlier} == {"CANCELLED"}
    assert all("superseded" in run.state.message for run in earlier)


def test_a_result_is_in_the_catalog_although_the_server_died_meanwhile(prefect_stack, wait_for):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=4)
    run = prefect_stack.start(parameters)
    prefect_stack.noted(parameters, "begun")
    prefect_stack.stack.child("server").kill()
    try:
        execution = prefect_stack.execution(job)
        assert execution.status is RunStatus.COMPLETED
        assert execution.details["answer"] == 42
        assert not answers(prefect_stack.stack.api_url)
    finally:
        prefect_stack.stack.restart("server")
        wait_for(lambda: answers(prefect_stack.stack.api_url))
    # A run that lost sight of its server may end either way in Prefect; the catalog does not change its mind.
    prefect_stack.ended(run, 200)
    assert prefect_stack.execution(job).status is RunStatus.COMPLETED


@pytest.mark.postgres
@pytest.mark.parametrize(
    "struck", [Struck.RUN, *(pytest.param(more, marks=pytest.mark.repeats) for more in (Struck.BOTH, Struck.WORKER))]
)
def test_a_backup_killed_with_prefect_around_it_is_over_by_itself_and_costs_nothing_that_was_listed(
    prefect_stack, struck
):
    """A bounded part of `python -m campaigns runs`."""
    tally, number = kill.Tally(), random.Random(f"20261123 {struck}").randrange(30, 300)
    with scenes.workplace() as place:
        scenes.make_keys(place)
        with (
            QuickRing(place / "ring") as ring,
            scenes.live(place / "live", place, SealingMode.AES_256_GCM) as (scene, instance),
        ):
            beside = live.Live(scene, instance, ring)
            killer = runs.Runs(beside, prefect_stack.stack, prefect_stack.client)
            beside.carry()
            try:
                killer.kill_one(struck, number, tally)
            finally:
                beside.drop_carrier()
            assert tally.faults == []
            assert tally.kills[0].point != runs.NOT_REACHED
            assert list(beside.start_restored(Account.for_servers())) == []
