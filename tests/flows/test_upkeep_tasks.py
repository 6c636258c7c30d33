"""Copies, proofs and health as tasks: recorded, with alerts, also when one location is down."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from seawall.catalog import Catalog, JobType, RunStatus
from seawall.errors import NotARepository, Partial, SeawallError
from seawall.mirror import begin
from seawall.repository import Repository
from seawall.settings import Settings, load
from seawall.storage.local import LocalStorage
from tasks import upkeep
from tasks.records import site_job


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Settings, Catalog]]:
    file = tmp_path / "seawall.toml"
    file.write_text(
        f"""
[repository]
url = "{tmp_path}/repository"
[sealing]
mode = "none"
keyring = "{tmp_path}/keyring"
[catalog]
url = "sqlite:///{tmp_path}/catalog.db"
[server]
work_directory = "{tmp_path}/work"
[locations.one]
url = "{tmp_path}/one"
[locations.two]
url = "{tmp_path}/two"
[sources.shop]
mirrors = ["one", "two"]
""",
        encoding="utf-8",
    )
    now = datetime.now(UTC)
    repository = Repository.create(LocalStorage(tmp_path / "repository"), now=now)
    repository.source("shop").storage.put("sources/shop/keys/k/0001.json", [b"not a document"])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        begin(repository, LocalStorage(tmp_path / name))
    settings = load(file, {})
    with Catalog.open(settings.catalog.url, create=True) as catalog:
        yield settings, catalog


def alerts(catalog: Catalog) -> set[tuple[str, str]]:
    return {(alert.alert_type, alert.subject) for alert in catalog.alerts()}


def test_a_location_that_is_down_fails_the_check_with_its_own_alert_and_a_later_check_resolves_it(
    site: tuple[Settings, Catalog], tmp_path: Path
) -> None:
    settings, catalog = site
    job = site_job(settings, None, JobType.LOCATION_HEALTH)
    (tmp_path / "two").rename(tmp_path / "away")
    with pytest.raises(SeawallError):
        upkeep.check_locations.fn(settings, job.id)
    assert alerts(catalog) == {("location-down", "two"), ("location-health-failed", "site")}
    assert {alert.alert_data["job"] for alert in catalog.alerts()} == {str(job.id)}, "its own people hear of both"
    assert catalog.executions(job.id)[0].status is RunStatus.FAILED
    (tmp_path / "away").rename(tmp_path / "two")
    facts = upkeep.check_locations.fn(settings, job.id)
    assert set(facts) == {"primary", "one", "two"}
    assert alerts(catalog) == set()
    assert catalog.newest_success(job.id) is not None


def test_what_cannot_be_copied_makes_the_run_partial_and_the_other_objects_arrive(
    site: tuple[Settings, Catalog], tmp_path: Path
) -> None:
    settings, catalog = site
    job = site_job(settings, None, JobType.MIRROR)
    LocalStorage(tmp_path / "repository").put("sources/shop/holds/h.released.json", [b"{}"])
    with pytest.raises(Partial):
        upkeep.mirror.fn(settings, ["shop"], job.id)
    assert catalog.executions(job.id)[0].status is RunStatus.PARTIAL
    assert ("mirror-failed", "shop one") in alerts(catalog)
    for path in (tmp_path / "repository" / "sources").rglob("*.json"):
        path.unlink()
    upkeep.mirror.fn(settings, ["shop"], job.id)
    assert alerts(catalog) == set()


def test_without_the_primary_copies_are_brought_up_to_date_from_each_other_and_the_run_is_partial(
    site: tuple[Settings, Catalog], tmp_path: Path
) -> None:
    settings, catalog = site
    job = site_job(settings, None, JobType.MIRROR)
    (tmp_path / "repository").rename(tmp_path / "away")
    script = Repository.open(LocalStorage(tmp_path / "one")).install_recovery_script("print(1)")
    assert "the primary location does not answer" in str(upkeep.mirror.fn(settings, ["shop"], job.id)["partial"])
    assert (tmp_path / "two" / script).read_text() == "print(1)"
    assert catalog.executions(job.id)[0].status is RunStatus.PARTIAL
    for name in ("one", "two"):
        (tmp_path / name).rename(tmp_path / f"{name} away")
    with pytest.raises(NotARepository):
        upkeep.mirror.fn(settings, ["shop"], job.id)
    assert catalog.executions(job.id)[0].status is RunStatus.FAILED


def test_proofs_of_an_empty_source_are_renewed_in_every_location(site: tuple[Settings, Catalog]) -> None:
    settings, catalog = site
    job = site_job(settings, None, JobType.PROOFS)
    facts = upkeep.renew_proofs.fn(settings, ["shop"], "1GB", job.id)
    assert [one["location"] for one in facts["proved"]] == ["primary", "one", "two"]  # type: ignore[index, attr-defined]
    assert catalog.newest_success(job.id) is not None
    with pytest.raises(SeawallError, match="no budget"):
        upkeep.renew_proofs.fn(settings, ["shop"], "much", job.id)
