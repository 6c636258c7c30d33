"""`python -m deployments.stack` as an administrator runs it: started, used badly, and stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.environment import STACK_VARIABLE, Place
from deployments.processes import is_alive, marked
from seawall.catalog import RunStatus

pytestmark = [pytest.mark.prefect, pytest.mark.slow]
ROOT = Path(__file__).parent.parent.parent


@dataclass
class Started:
    """What `surroundings` needs to know of a stack."""

    place: Place
    api_url: str


def start(settings_file: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.stack", "--config", str(settings_file)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            # As a terminal does: its Ctrl-C goes to this group only.
            start_new_session=True,
        )


def test_the_first_ctrl_c_unwinds_what_runs_and_leaves_no_process_behind(tmp_path, settings_in, surroundings, wait_for):
    settings_file, log = settings_in(tmp_path), tmp_path / "log"
    place = Place(tmp_path / "work")
    stack = start(settings_file, log)
    try:
        wait_for(lambda: place.deployed.exists() or stack.poll() is not None, 180)
        assert stack.poll() is None, log.read_text()
        state = json.loads(place.state.read_text())
        assert place.auth_string() not in place.state.read_text()
        with surroundings(Started(place, state["api_url"]), tmp_path) as around:
            jobs = around.job(), around.job()
            runs = [
                around.parameters(jobs[0], seconds=120),
                around.parameters(jobs[1], seconds=120, behaviour="deaf"),
            ]
            for parameters in runs:
                around.start(parameters)
            begun = [around.noted(parameters, "begun") for parameters in runs]

            second = subprocess.run(
                [sys.executable, "-m", "deployments.stack", "--config", str(settings_file)],
                check=False,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert second.returncode == 2
            assert "already runs here" in second.stderr

            os.kill(stack.pid, signal.SIGINT)
            assert stack.wait(120) == 0, log.read_text()
            assert around.noted(runs[0], "unwound", 1)
            for job in jobs:
                assert around.execution(job, seconds=1).status is RunStatus.CANCELLED
        assert list(marked(STACK_VARIABLE, state["stack_id"])) == []
        assert not any(is_alive(note[who]) for note in begun for who in ("pid", "child"))
        assert not any(is_alive(pid) for pid in state["pids"].values())
        assert not place.state.exists()
    finally:
        if stack.poll() is None:
            os.kill(stack.pid, signal.SIGTERM)
            stack.wait(150)


def test_a_part_that_cannot_start_is_named_with_its_log_and_nothing_is_left(tmp_path, settings_in):
    settings_file = settings_in(tmp_path)
    # The keeper finds a catalog that is none.
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 100)
    log = tmp_path / "log"
    stack = start(settings_file, log)
    assert stack.wait(120) == 54
    assert "the keeper ended with exit code" in log.read_text()
    assert not (tmp_path / "work" / "stack.json").exists()
