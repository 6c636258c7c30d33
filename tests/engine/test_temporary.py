"""Temporary directories go with who made them, at the latest when the next one is made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from seawall.temporary import Temporary

MAKE = """
import sys, time
from pathlib import Path
from seawall.temporary import Temporary
made = Temporary("work-", Path(sys.argv[1]))
print(made.path, flush=True)
time.sleep(600)
"""


def aged(place: Path) -> Path:
    long_ago = time.time() - 3600
    os.utime(place, (long_ago, long_ago))
    return place


def test_what_a_killed_process_left_goes_with_the_next_one_and_what_is_held_stays(tmp_path: Path) -> None:
    held = Temporary("work-", tmp_path)
    (held.path / "precious").touch()
    aged(held.path)
    with subprocess.Popen([sys.executable, "-c", MAKE, tmp_path], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        killed.kill()
    assert left.is_dir()
    Temporary("work-", tmp_path).close()
    assert left.is_dir(), "so young a directory may be about to be held"
    aged(left)
    Temporary("work-", tmp_path).close()
    assert not left.exists()
    assert (held.path / "precious").exists()
    held.close()
    assert not held.path.exists()


def test_links_and_directories_of_other_names_are_left_alone(tmp_path: Path) -> None:
    other = aged_directory(tmp_path / "other-1")
    target = aged_directory(tmp_path / "target")
    (tmp_path / "work-link").symlink_to(target)
    Temporary("work-", tmp_path).close()
    assert other.is_dir()
    assert target.is_dir()


def aged_directory(place: Path) -> Path:
    place.mkdir()
    return aged(place)


def test_a_directory_is_its_owners_alone(tmp_path: Path) -> None:
    made = Temporary("work-", tmp_path)
    assert made.path.stat().st_mode & 0o777 == 0o700
    made.close()
    made.close()
