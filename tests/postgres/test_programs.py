"""Programs that are asked for their output end, with all that they started, when nobody wants it any more."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deployments.processes import is_alive, until
from seawall.errors import Cancelled, ClusterError
from seawall.postgres.programs import output_of

# A program that passes TERM by and waits for one that it started, as a wrapper of an administrator may.
_STUBBORN = """
trap '' TERM
sleep 600 &
echo $! > "$1.new"
mv "$1.new" "$1"
wait
wait
"""


def test_output_and_exit_code_are_the_programs() -> None:
    # More than a pipe holds.
    done = output_of(["sh", "-c", "seq 50000; echo why >&2; exit 3"], seconds=60)
    assert (done.stdout.split(), done.stderr, done.returncode) == ([str(n) for n in range(1, 50001)], "why\n", 3)


def test_a_program_that_is_not_wanted_any_more_ends_with_what_it_started(tmp_path: Path) -> None:
    noted = tmp_path / "child"
    with pytest.raises(Cancelled, match="sh was ended"):
        output_of(["sh", "-c", _STUBBORN, "sh", str(noted)], seconds=300, unwanted=noted.exists)
    # KILL was sent; when the kernel gets round to it is its own affair.
    assert until(lambda: not is_alive(int(noted.read_text())), 60)


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ClusterError, match="sleep did not finish within 1 s"):
        output_of(["sleep", "600"], seconds=1)


def test_nothing_is_started_when_nobody_wants_it_already(tmp_path: Path) -> None:
    over = threading.Event()
    over.set()
    with pytest.raises(Cancelled):
        output_of(["touch", str(tmp_path / "made")], seconds=60, unwanted=over.is_set)
    assert not (tmp_path / "made").exists()


def test_a_program_that_cannot_be_started_is_told_from_one_that_failed() -> None:
    with pytest.raises(ClusterError, match="nothing-of-that-name did not start"):
        output_of(["/nothing-of-that-name"], seconds=60)
    assert output_of(["false"], seconds=60).returncode == 1
