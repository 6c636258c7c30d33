"""Locations that lock: probed with Seawall's own credentials, told apart from those that do not, and never assumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from seawall import watch
from seawall.catalog import Catalog, JobType, RunStatus, Severity
from seawall.cli import run
from seawall.errors import LockBroken, StorageUnreachable
from seawall.events import Observer
from seawall.lockprobe import LockState
from seawall.model import LockMode
from seawall.repository import Repository
from seawall.settings import RepositorySettings, Settings, load
from seawall.storage.local import LocalStorage
from tasks import upkeep as tasks
from tasks.records import site_job
from tools.storage_servers import S3Server, Servers, free_port

Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Writes a settings file with these locations, and makes repository and catalog."""

    def made(**places: RepositorySettings) -> Path:
        text = f"""
[repository]
url = "{tmp_path}/repository"
[catalog]
url = "sqlite:///{tmp_path}/catalog.db"
[server]
work_directory = "{tmp_path}/work"
"""
        for name, place in places.items():
            text += f'[locations.{name}]\nurl = "{place.url}"\nlock_mode = "{place.lock_mode.value}"\nattempts = 1\n'
            for key in ("endpoint", "region", "credentials_file", "deleting_credentials_file"):
                text += f'{key} = "{getattr(place, key)}"\n' if getattr(place, key) else ""
        file = tmp_path / "seawall.toml"
        file.write_text(text, encoding="utf-8")
        if not (tmp_path / "repository").exists():
            Repository.create(LocalStorage(tmp_path / "repository"), now=datetime.now(UTC))
            with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True):
                pass
        return file

    return made


@pytest.fixture
def s3(servers: Servers) -> S3Server:
    server: S3Server = servers["s3"]
    return server


def probed(settings: Settings, catalog: Catalog) -> dict[str, LockState]:
    reports = watch.probe_locks(settings, catalog, now=datetime.now(UTC), observe=Observer())
    return {report.name: report.state for report in reports}


def alerts(catalog: Catalog) -> dict[tuple[str, str], Severity]:
    return {(alert.alert_type, alert.subject): alert.severity for alert in catalog.alerts()}


@pytest.mark.servers
def test_a_lock_that_does_not_hold_is_a_critical_alert_until_a_later_probe_finds_it_held(
    s3: S3Server, site: Site
) -> None:
    place = s3.settings(lock=True)
    silent = replace(place, endpoint=f"http://127.0.0.1:{free_port()}")
    settings = load(site(weak=replace(place, lock_mode=LockMode.GOVERNANCE), gone=silent, plain=s3.settings()), {})
    with Catalog.open(settings.catalog.url) as catalog:
        job = site_job(settings, None, JobType.IMMUTABILITY)
        with pytest.raises(LockBroken, match=r"weak: a locked object .*could be deleted by lifting the lock"):
            tasks.probe_locks.fn(settings, job.id)
        found = alerts(catalog)
        assert found[("lock-broken", "weak")] is Severity.CRITICAL
        assert ("lock-unproved", "gone") in found
        assert ("immutability-probe-failed", "site") in found
        assert catalog.executions(job.id)[0].status is RunStatus.FAILED

        settings = load(site(weak=place, gone=silent, plain=s3.settings()), {})
        assert probed(settings, catalog) == {
            "primary": LockState.NONE,
            "gone": LockState.UNKNOWN,
            "plain": LockState.NONE,
            "weak": LockState.HOLDS,
        }
        assert ("lock-broken", "weak") not in alerts(catalog)
        with pytest.raises(StorageUnreachable):
            tasks.probe_locks.fn(settings, job.id)

        settings = load(site(weak=place, gone=place), {})
        facts: Any = tasks.probe_locks.fn(settings, job.id)
        assert {name: one["state"] for name, one in facts.items()} == {
            "primary": "none", "gone": "holds", "weak": "holds",
        }  # fmt: skip
        assert alerts(catalog) == {}


@pytest.mark.servers
def test_a_location_that_does_not_answer_leaves_a_breach_an_alert(s3: S3Server, site: Site) -> None:
    weak = replace(s3.settings(lock=True), lock_mode=LockMode.GOVERNANCE)
    with Catalog.open(load(site(weak=weak), {}).catalog.url) as catalog:
        for place in (weak, replace(weak, endpoint=f"http://127.0.0.1:{free_port()}")):
            probed(load(site(weak=place), {}), catalog)
            assert ("lock-broken", "weak") in alerts(catalog)


@pytest.mark.servers
def test_the_command_probes_one_location_or_all_and_says_what_locks(
    s3: S3Server, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = s3.settings(lock=True)
    file = site(strong=strong, weak=replace(strong, lock_mode=LockMode.GOVERNANCE))
    assert run(["--json", "--config", str(file), "location", "probe", "strong"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["locations"]
    assert (found["name"], found["state"], found["breaches"]) == ("strong", "holds", [])
    assert found["canary"].startswith("probes/canary-")
    assert run(["--config", str(file), "location", "probe"]) == LockBroken.exit_code
    said = capsys.readouterr()
    assert "primary: none; it locks nothing" in said.out + said.err
    assert "weak: broken" in said.out + said.err


def test_locations_that_lock_nothing_are_told_as_such_and_are_no_failure(site: Site) -> None:
    settings = load(site(held=RepositorySettings(url="memory:lock-tests")), {})
    with Catalog.open(settings.catalog.url) as catalog:
        assert probed(settings, catalog) == {"primary": LockState.NONE, "held": LockState.HOLDS}
        assert alerts(catalog) == {}
