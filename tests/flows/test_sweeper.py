from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from deployments.sweeper import (
    AGAIN,
    FLOW_RUN_VARIABLE,
    Run,
    Verdict,
    decide,
    has_process,
    is_judged_here,
    superseded,
)
from deployments.worker import name_on

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DEPLOYMENT = uuid4()


def waiting(minutes_ago: int, *, name: str = "Late", source: str = "main", by_schedule: bool = True) -> Run:
    moment = NOW - timedelta(minutes=minutes_ago)
    return Run(
        uuid4(),
        DEPLOYMENT,
        StateType.SCHEDULED,
        name,
        moment,
        moment,
        by_schedule=by_schedule,
        parameters={"s": source},
    )


def started(state: StateType, *, minutes_ago: int = 1, tags: tuple[str, ...] = ()) -> Run:
    moment = NOW - timedelta(minutes=minutes_ago)
    return Run(uuid4(), DEPLOYMENT, state, state.value.title(), moment, moment, pid=1, tags=tags)


def verdicts(runs: list[Run], *, dead: frozenset[UUID] = frozenset()) -> dict[UUID, Verdict]:
    actions = decide(runs, now=NOW, dead=lambda run: run.id in dead)
    assert all(action.why for action in actions)
    return {action.run.id: action.verdict for action in actions}


def test_after_an_outage_all_but_the_newest_missed_run_are_cancelled():
    runs = [waiting(45), waiting(15), waiting(30)]
    assert verdicts(runs) == {runs[0].id: Verdict.SUPERSEDE, runs[2].id: Verdict.SUPERSEDE}


def test_missed_runs_of_different_sources_do_not_supersede_each_other():
    assert superseded([waiting(30, source="one"), waiting(15, source="two")]) == ()


def test_a_run_that_somebody_asked_for_is_never_superseded():
    assert superseded([waiting(30, by_schedule=False), waiting(15)]) == ()


def test_a_run_that_waits_to_be_retried_is_left_alone():
    assert superseded([waiting(30, name="AwaitingRetry"), waiting(15)]) == ()


def test_a_started_run_without_a_process_crashed_unless_it_was_to_stop_and_others_go_on():
    gone, alive = started(StateType.RUNNING), started(StateType.RUNNING)
    stopping, unwinding = started(StateType.CANCELLING), started(StateType.CANCELLING)
    assert verdicts([gone, alive, stopping, unwinding], dead=frozenset({gone.id, stopping.id})) == {
        gone.id: Verdict.CRASH,
        stopping.id: Verdict.STOP,
    }


def test_a_run_that_was_about_to_start_for_too_long_crashes_and_is_tried_once_more():
    young, old = started(StateType.PENDING, minutes_ago=4), started(StateType.PENDING, minutes_ago=6)
    second = started(StateType.PENDING, minutes_ago=6, tags=(AGAIN,))
    actions = {action.run.id: action for action in decide([young, old, second], now=NOW, dead=lambda _run: False)}
    assert set(actions) == {old.id, second.id}
    assert actions[old.id].again
    assert not actions[second.id].again


def test_only_this_hosts_runs_are_judged_by_processes_that_are_not_here():
    run, here, there = started(StateType.RUNNING), name_on("db1", 12), name_on("db2.example", 12)
    assert is_judged_here(run, {run.id: "db1"}, [here, there], "db1")
    assert not is_judged_here(run, {run.id: "db2.example"}, [here], "db1")
    # Before its row is made nobody says where it is; then it may be wherever a worker is.
    assert is_judged_here(run, {}, [here], "db1")
    assert is_judged_here(run, {}, [], "db1")
    assert not is_judged_here(run, {}, [here, there], "db1")


def started_program(run_id: UUID) -> subprocess.Popen[bytes]:
    """A process that has its environment: for a moment after `exec` the kernel shows none."""
    process = subprocess.Popen(["sleep", "60"], env={FLOW_RUN_VARIABLE: str(run_id)})
    while not Path(f"/proc/{process.pid}/environ").read_bytes():
        time.sleep(0.01)
    return process


def test_a_process_is_a_runs_own_only_if_it_carries_the_runs_id():
    run = started(StateType.RUNNING)
    mine, other = started_program(run.id), started_program(uuid4())
    try:
        assert has_process(replace(run, pid=mine.pid))
        assert not has_process(replace(run, pid=other.pid))
        assert not has_process(replace(run, pid=None))
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
    assert not has_process(replace(run, pid=mine.pid))


@pytest.mark.parametrize(
    ("stat", "alive"),
    [
        ("7 (python) R 1 7 7 0 -1 4194304 1 0", True),
        ("7 (a) name) S 1 7 7 0 -1 4194304 1 0", True),
        ("7 (python) Z 1 7 7 0 -1 4194316 1 0", False),
        ("7 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0", False),
    ],
)
def test_a_process_without_an_environment_is_alive_only_while_its_program_is_being_started(
    tmp_path: Path, stat: str, alive: bool
):
    place = tmp_path / "7"
    place.mkdir()
    (place / "environ").touch()
    (place / "stat").write_text(stat)
    assert has_process(replace(started(StateType.RUNNING), pid=7), tmp_path) is alive
