"""Keepers that fall silent are missed by everybody who shares their catalog, and by one clock."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from seawall import keepers
from seawall.catalog import Catalog, Severity
from seawall.errors import RecordMissing, UsageError
from seawall.settings import Settings, parse

OLD = "UPDATE keepers SET beat_at = '2020-02-02 02:02:02+00:00' WHERE host = 'far'"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    server = {"work_directory": str(tmp_path / "work")}
    return parse({"repository": {"url": str(tmp_path / "primary")}, "server": server})


def alerts(catalog: Catalog) -> list[tuple[str, str]]:
    return [(one.subject, one.message) for one in catalog.alerts() if one.alert_type == keepers.SILENT]


def test_a_host_that_is_down_is_missed_from_another_until_it_is_back(
    catalog: Catalog, settings: Settings, execute: Callable[[str], None]
) -> None:
    now = datetime.now(UTC)
    for host in ("far", "near"):
        catalog.beat(host)
    assert keepers.judge_all(settings, catalog, now) == {}
    execute(OLD)
    assert set(keepers.judge_all(settings, catalog, now)) == {"far"}
    ((host, message),) = alerts(catalog)
    assert host == "far"
    assert "the keeper on far gave no sign of life since 2020-02-02 02:02 UTC" in message
    catalog.beat("far")
    assert keepers.judge_all(settings, catalog, now) == {}
    assert alerts(catalog) == []


def test_one_silence_is_one_occurrence_however_often_it_is_looked_at(
    catalog: Catalog, settings: Settings, execute: Callable[[str], None]
) -> None:
    catalog.beat("far")
    execute(OLD)
    for minute in range(3):
        keepers.judge_all(settings, catalog, datetime.now(UTC) + timedelta(minutes=minute))
    (alert,) = catalog.alerts()
    assert alert.occurrences == 1


@pytest.mark.parametrize("off", [timedelta(days=-3), timedelta(days=3)])
def test_the_clock_of_the_host_that_looks_does_not_count(catalog: Catalog, settings: Settings, off: timedelta) -> None:
    catalog.beat("far")
    assert keepers.judge_all(settings, catalog, datetime.now(UTC) + off) == {}
    (seen,) = catalog.keepers()
    assert timedelta(0) <= seen.silence < timedelta(minutes=4)


def test_a_host_that_ended_or_was_forgotten_is_not_missed_until_it_is_heard_of_again(
    catalog: Catalog, settings: Settings, execute: Callable[[str], None]
) -> None:
    now = datetime.now(UTC)
    catalog.beat("far")
    execute(OLD)
    keepers.judge_all(settings, catalog, now)
    keepers.end(catalog, "far", now)
    assert alerts(catalog) == []
    assert keepers.judge_all(settings, catalog, now) == {}
    assert catalog.keepers() == ()
    catalog.beat("far")
    assert [one.host for one in catalog.keepers()] == ["far"]
    with pytest.raises(RecordMissing):
        keepers.end(catalog, "never-heard-of", now)
    with pytest.raises(UsageError):
        catalog.beat("")


def test_on_its_own_host_a_keeper_is_believed_by_its_file_and_without_one_by_the_catalog(
    catalog: Catalog, settings: Settings, execute: Callable[[str], None]
) -> None:
    here = socket.gethostname()
    catalog.beat(here)
    execute(OLD.replace("'far'", f"'{here}'"))
    assert set(keepers.judge_all(settings, catalog, datetime.now(UTC))) == {here}
    settings.keeper_beat.parent.mkdir(parents=True)
    settings.keeper_beat.touch()
    assert keepers.judge_all(settings, catalog, datetime.now(UTC)) == {}


def test_a_silence_that_was_seen_once_only_remembers_and_becomes_grave_when_it_lasts(
    catalog: Catalog, settings: Settings, execute: Callable[[str], None]
) -> None:
    now = datetime.now(UTC)

    def severity() -> Severity:
        found = catalog.open_alert(keepers.SILENT, subject="far")
        assert found is not None
        return found.severity

    catalog.beat("far")
    execute(OLD)
    for minutes in (0, 4):
        keepers.judge_all(settings, catalog, now + timedelta(minutes=minutes))
        assert severity() is Severity.LOW, "it may just be starting"
    keepers.judge_all(settings, catalog, now + timedelta(minutes=6))
    assert severity() is Severity.HIGH
    keepers.judge_all(settings, catalog, now + timedelta(minutes=7))
    assert severity() is Severity.HIGH
    keepers.end(catalog, "far", now)
    catalog.beat("far")
    execute(OLD)
    keepers.judge_all(settings, catalog, now, watched=True)
    assert severity() is Severity.HIGH, "a keeper that has been looking on need not wait"
