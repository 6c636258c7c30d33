"""Whether another process is gone: proved on the same boot and in the same namespace, and doubted everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from seawall import process


@pytest.fixture
def child() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from seawall import process; print(process.identity(), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_a_process_that_runs_is_not_gone_and_one_that_was_killed_is(child: subprocess.Popen[str]) -> None:
    other = told(child)
    assert other
    assert not process.is_gone(other)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(other), "nobody waited for it yet"
    child.communicate()
    assert process.is_gone(other)


def test_a_number_that_is_used_again_is_another_process() -> None:
    place, number, started = process.identity().rsplit("/", 2)
    assert not process.is_gone(process.identity())
    assert process.is_gone(f"{place}/{number}/{int(started) - 1}")


@pytest.mark.parametrize("changed", ["boot", "namespace"])
def test_what_ran_in_another_boot_or_container_is_never_taken_for_gone(changed: str) -> None:
    boot, namespace, _, _ = process.identity().split("/")
    boot, namespace = ("another", namespace) if changed == "boot" else (boot, "pid:[1]")
    assert not process.is_gone(f"{boot}/{namespace}/999999999/1")


@pytest.mark.parametrize("text", ["", "/", "a/b", "a/b/c", "a/b/c/d", "//1/1"])
def test_what_is_no_identity_proves_nothing(text: str) -> None:
    assert not process.is_gone(text)


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999"])
def test_numbers_that_are_no_process_prove_nothing(number: str) -> None:
    place = process.identity().rsplit("/", 2)[0]
    assert not process.is_gone(f"{place}/{number}/1")


def test_a_forked_child_is_another_process() -> None:
    own = process.identity()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, process.identity().encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 200).decode()
    os.close(reading)
    os.close(writing)
    assert said and said != own
    assert process.is_gone(said)
