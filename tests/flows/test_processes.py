from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from deployments.processes import Child, Command, end_marked, is_alive, marked, until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
)

# What is waited for comes at once; only a machine that does much else at once takes longer.
PATIENCE_SECONDS = 60


@pytest.fixture
def mark() -> dict[str, str]:
    return {"SEAWALL_TEST": uuid4().hex}


def command(tmp_path: Path, *arguments: str, **environment: str) -> Command:
    return Command("thing", arguments, {"PATH": os.environ["PATH"], **environment}, tmp_path)


def test_a_child_that_ignores_sigterm_is_killed_with_its_group(tmp_path):
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); {STUBBORN}"
    child = Child(command(tmp_path, sys.executable, "-c", script), tmp_path / "log")
    assert until(lambda: (tmp_path / "log").read_text().count("up") == 2, PATIENCE_SECONDS)
    child.ask_to_end()
    assert not child.wait(0.5)
    child.kill()
    assert child.exit_code is not None
    assert until(lambda: not group_members(child.pid), PATIENCE_SECONDS)


def group_members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def test_what_left_its_group_and_ignores_sigterm_is_found_by_its_mark_and_killed(tmp_path, mark):
    left = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], env={**os.environ, **mark}, start_new_session=True, stdout=subprocess.PIPE
    )
    left.stdout.readline()
    ended = end_marked("SEAWALL_TEST", mark["SEAWALL_TEST"], scratch=tmp_path, seconds=0.5)
    assert ended == 1
    assert left.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    left.stdout.close()


def test_nobody_elses_process_is_ended(tmp_path, mark):
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert end_marked("SEAWALL_TEST", mark["SEAWALL_TEST"], scratch=tmp_path, seconds=0) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(("inside", "survives"), [(False, True), (True, False)])
def test_a_database_outlives_the_stack_unless_it_is_scratch(tmp_path, mark, inside, survives):
    # Any program of that name will do: what counts is the name of the executable and its working directory.
    scratch, elsewhere = tmp_path / "work", tmp_path / "restored"
    for directory in (scratch, elsewhere):
        directory.mkdir()
    program = tmp_path / "postgres"
    shutil.copy(shutil.which("sleep"), program)
    server = subprocess.Popen([program, "60"], env={**os.environ, **mark}, cwd=scratch if inside else elsewhere)
    try:
        # For a moment after `exec` the kernel shows no environment.
        assert until(lambda: server.pid in marked("SEAWALL_TEST", mark["SEAWALL_TEST"]), PATIENCE_SECONDS)
        end_marked("SEAWALL_TEST", mark["SEAWALL_TEST"], scratch=scratch, seconds=2)
        time.sleep(0.1)
        assert (server.poll() is None) is survives
    finally:
        server.kill()
        server.wait()


def test_a_process_that_only_waits_to_be_reaped_is_not_alive(mark):
    child = subprocess.Popen(["true"], env={**os.environ, **mark})
    assert until(lambda: not is_alive(child.pid), PATIENCE_SECONDS)
    assert list(marked("SEAWALL_TEST", mark["SEAWALL_TEST"])) == []
    child.wait()


def test_a_child_ends_when_its_starter_is_killed(tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from deployments.processes import Child, Command
here = Path("{tmp_path}")
child = Child(Command("thing", ("sleep", "300"), {{"PATH": "{os.environ["PATH"]}"}}, here), here / "log")
print(child.pid, flush=True)
time.sleep(300)
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert until(lambda: not is_alive(pid), PATIENCE_SECONDS)
