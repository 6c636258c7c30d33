"""How many processors there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seawall import processors, settings
from seawall.errors import SettingsError


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))
    (tmp_path / "own").write_text("12:cpu:/elsewhere\n0::/system.slice/seawall.service\n")
    (tmp_path / "system.slice" / "seawall.service").mkdir(parents=True)
    return tmp_path


def _available(groups: Path) -> int:
    return processors.available(groups, groups / "own")


def test_without_a_quota_it_is_what_the_process_may_run_on(groups: Path) -> None:
    assert _available(groups) == 16
    (groups / "cpu.max").write_text("max 100000\n")
    assert _available(groups) == 16
    assert processors.available(groups / "nowhere", groups / "nothing") == 16


def test_the_narrowest_quota_of_the_groups_counts_and_at_least_one_is_there(groups: Path) -> None:
    (groups / "system.slice" / "seawall.service" / "cpu.max").write_text("800000 100000\n")
    assert _available(groups) == 8
    (groups / "system.slice" / "cpu.max").write_text("250000 100000\n")
    assert _available(groups) == 2
    (groups / "cpu.max").write_text("50000 100000\n")
    assert _available(groups) == 1


def test_the_first_version_of_control_groups_is_read_too(groups: Path) -> None:
    (groups / "cpu").mkdir()
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert _available(groups) == 16
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert _available(groups) == 3


def test_workers_are_auto_or_a_number() -> None:
    def workers(value: object) -> int:
        return settings.parse({"sources": {"shop": {"workers": value}}}).sources["shop"].workers

    assert settings.parse({"sources": {"shop": {}}}).sources["shop"].workers == 0
    assert (workers("auto"), workers(3), workers("4")) == (0, 3, 4)
    for wrong in ("many", -1, True):
        with pytest.raises(SettingsError, match="workers"):
            workers(wrong)


def test_a_setting_of_auto_stands_for_all_processors_and_a_number_for_itself() -> None:
    assert processors.wanted(3) == 3
    assert processors.wanted(0) == processors.available() >= 1
