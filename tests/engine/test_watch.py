"""What a check of locations sees beside whether they answer, and what the catalog remembers of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import keepers, locations
from seawall.capacity import Sample
from seawall.catalog import Catalog, LocationType
from seawall.errors import SettingsError
from seawall.events import Observer
from seawall.locations import LocationReport, overlap, refuse_overlap, refuse_same
from seawall.mirror import begin
from seawall.model import LockMode
from seawall.repository import Repository
from seawall.retention.copies import clean_copy
from seawall.settings import LocationRole, LocationSettings, Locking, RepositorySettings, Settings, parse
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.upkeep import mirror_source
from seawall.watch import (
    DAILY,
    Measuring,
    check,
    check_locations,
    known_name,
    lock_findings,
    record_health,
    role_findings,
    shared,
    trend_of,
)
from tools.storage_servers import secret_file

pytestmark = pytest.mark.slow  # each begins with a new catalog
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NO_TIME = Measuring(timedelta(0), timedelta(seconds=-1))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Settings, Catalog]]:
    (tmp_path / "offsite").mkdir()
    repository = Repository.create(LocalStorage(tmp_path / "primary"), now=NOW)
    begin(repository, LocalStorage(tmp_path / "offsite"))
    repository.storage.put("sources/shop/holds/a.json", [b"x" * 10_000])
    settings = parse(
        {
            "repository": {"url": str(tmp_path / "primary")},
            "server": {"work_directory": str(tmp_path / "work")},
            "locations": {"offsite": {"url": str(tmp_path / "offsite")}},
            "sources": {"shop": {"mirrors": ["offsite"]}},
        }
    )
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True) as catalog:
        yield settings, catalog


def look(site: tuple[Settings, Catalog], now: datetime = NOW, measuring: Measuring = DAILY) -> None:
    check_locations(*site, measuring=measuring, now=now, observe=Observer())


def test_a_check_measures_once_a_day_and_remembers_it(site: tuple[Settings, Catalog]) -> None:
    settings, catalog = site
    look(site)
    (primary,) = catalog.measurements("primary")
    assert primary.used_bytes > 10_000
    assert primary.object_count == sum(1 for _ in LocalStorage(Path(settings.repository.url)).list())
    row = next(one for one in catalog.storage_locations() if one.name == "primary")
    assert (row.used_bytes, row.role) == (primary.used_bytes, "primary")
    assert row.capacity_bytes is not None and row.capacity_bytes > row.used_bytes
    LocalStorage(Path(settings.repository.url)).put("sources/shop/holds/b.json", [b"x"])
    look(site, NOW + timedelta(hours=19))
    assert len(catalog.measurements("primary")) == 1
    look(site, NOW + timedelta(hours=21))
    assert [one.used_bytes - primary.used_bytes for one in catalog.measurements("primary")] == [0, 1]


def test_a_measurement_without_time_leaves_what_was_known_and_is_finished_by_a_later_check(
    site: tuple[Settings, Catalog],
) -> None:
    _, catalog = site
    look(site, measuring=NO_TIME)
    assert catalog.measurements("primary") == ()
    look(site)
    assert len(catalog.measurements("primary")) == 1


def test_a_location_that_is_nearly_full_is_an_alert_until_there_is_room(site: tuple[Settings, Catalog]) -> None:
    settings, catalog = site
    tight = replace(settings.locations["offsite"].storage, quota_bytes=100)
    full = replace(settings, locations={"offsite": replace(settings.locations["offsite"], storage=tight)})
    look((full, catalog))
    (alert,) = [one for one in catalog.alerts() if one.alert_type == "capacity"]
    assert alert.subject == "offsite"
    assert "bytes are free" in alert.message
    look(site, NOW + DAY)
    assert not [one for one in catalog.alerts() if one.alert_type == "capacity"]


def test_a_location_that_would_lock_for_years_says_so_before_it_does(site: tuple[Settings, Catalog]) -> None:
    settings = site[0]

    def said(**place: Any) -> str:
        storage = RepositorySettings(url="memory:reach", **place)
        changed = replace(settings, locations={"vault": LocationSettings("vault", storage=storage)})
        report = LocationReport(
            "vault", LocationRole.OFFSITE, "memory:reach", capabilities=MemoryStorage().capabilities
        )
        return " ".join(one.message for one in lock_findings(changed, "vault", report))

    assert "locked here for up to 2562 days" in said()
    assert "locked here for up to 365 days" in said(lock_at_most_days=365)
    assert said(lock_at_most_days=30) == ""
    assert said(lock=Locking.OFF) == said(lock_mode=LockMode.GOVERNANCE) == ""


def test_a_keeper_that_is_silent_is_an_alert_until_it_is_back_or_was_ended(site: tuple[Settings, Catalog]) -> None:
    settings, catalog = site
    beat = settings.keeper_beat

    def found(age: timedelta | None) -> list[str]:
        if age is not None:
            moment = (NOW - age).timestamp()
            os.utime(beat, (moment, moment))
        keepers.judge_all(settings, catalog, NOW)
        return [one.message for one in catalog.alerts() if one.alert_type == "keeper-silent"]

    assert found(None) == [], "no stack was ever started here"
    beat.parent.mkdir(parents=True, exist_ok=True)
    beat.touch()
    assert found(timedelta(minutes=4)) == []
    (message,) = found(timedelta(minutes=7))
    assert "no sign of life since 2026-05-31 23:53 UTC" in message
    assert found(timedelta(seconds=15)) == []
    assert found(timedelta(hours=2))
    beat.unlink()
    assert found(None) == []


def test_growth_is_seen_in_measurements_and_until_there_are_enough_in_the_backups(
    site: tuple[Settings, Catalog],
) -> None:
    samples = [Sample(NOW + n * DAY, 1000 * n) for n in range(10)]
    details = {"backup_bytes_per_day": 5.0}
    early, later = trend_of(samples[:3], details), trend_of(samples, details)
    assert early is not None
    assert later is not None
    assert (early.bytes_per_day, later.bytes_per_day) == (5.0, 1000.0)
    assert trend_of([], details) is None
    look(site)
    for day in range(1, 8):
        site[1].record_measurement(
            "primary", used_bytes=5, object_count=1, capacity_bytes=9, details={}, measured_at=NOW + day * DAY
        )
    report = check(site[0], "primary", site[1], now=NOW + 7 * DAY, observe=Observer())
    assert report.capacity is not None
    assert report.capacity.trend is not None
    assert report.capacity.trend.bytes_per_day == 0


def test_a_check_without_a_catalog_still_says_what_lies_there(site: tuple[Settings, Catalog]) -> None:
    report = check(site[0], "primary", now=NOW, observe=Observer())
    assert report.usage is not None
    assert report.usage.objects >= 2


def test_a_copy_elsewhere_that_is_not_elsewhere_is_a_finding(site: tuple[Settings, Catalog]) -> None:
    settings = site[0]
    (finding,) = role_findings(settings, "offsite")
    assert (finding.severity, finding.code) == ("medium", "role")
    assert "on the same file system" in finding.message
    alone = replace(settings, locations={})
    assert [one.code for one in role_findings(alone, "primary")] == ["role"]
    remote = LocationSettings("offsite", LocationRole.OFFSITE, RepositorySettings(url="s3://bucket/a"))
    assert role_findings(replace(settings, locations={"offsite": remote}), "offsite") == []


@pytest.mark.parametrize(
    "first, second, same",
    [
        ("s3://a/x", "s3://a/y", "in the same bucket"),
        ("s3://a/x", "s3://b/x", ""),
        ("s3://a/x", "gs://a/x", ""),
        ("sftp://me@host/x", "sftp://me@host/y", "on the same server"),
        ("/nowhere/a", "/nowhere/b", ""),
        ("/nowhere/a", "s3://a/x", ""),
    ],
)
def test_what_two_places_share_is_seen_in_their_urls(first: str, second: str, same: str) -> None:
    assert shared(RepositorySettings(url=first), RepositorySettings(url=second)) == same


@pytest.mark.parametrize(
    "first, second, why",
    [
        ("s3://a/x", "s3://a/x/", "the same place"),
        ("s3://a/x", "s3://a/x/y", "one inside the other"),
        ("s3://a", "s3://a/x", "one inside the other"),
        ("s3://a/x", "s3://a/xy", ""),
        ("s3://a/x", "azure://a/x", ""),
        ("sftp://me@host/x", "sftp://you@host/x", "the same place"),
        ("sftp://host:22/x", "sftp://host:23/x", ""),
        ("/nowhere/a", "file:///nowhere/b/../a", "the same place"),
        ("/nowhere/a b", "file:///nowhere/a%20b", "the same place"),
        ("/nowhere/a", "file://localhost/nowhere/a/b", "one inside the other"),
        ("/nowhere/a", "file:///nowhere/a%2", ""),
        ("/nowhere/a", "/nowhere/a/b", "one inside the other"),
        ("/nowhere/a", "/nowhere/ab", ""),
        ("memory:a", "memory:b", ""),
    ],
)
def test_two_locations_in_one_place_are_seen_in_their_urls(first: str, second: str, why: str) -> None:
    one, other = RepositorySettings(url=first), RepositorySettings(url=second)
    assert overlap(one, other) == overlap(other, one) == why


def test_one_name_in_two_services_or_accounts_is_two_places(tmp_path: Path) -> None:
    def account(name: str) -> RepositorySettings:
        file = secret_file(tmp_path / name, f"DefaultEndpointsProtocol=https;AccountName={name};AccountKey=aHVudGVy")
        return RepositorySettings(url="azure://backups/shop", credentials_file=file)

    here, there = account("acme"), account("acmeoffsite")
    assert overlap(here, there) == shared(here, there) == ""
    assert overlap(here, account("acme")) == "the same place"
    own = [RepositorySettings(url="s3://backups/shop", endpoint=f"https://{host}.example.com") for host in ("a", "b")]
    assert overlap(*own) == shared(*own) == ""
    assert shared(own[0], replace(own[0], url="s3://backups/other")) == "in the same bucket"


def test_nothing_is_copied_to_and_nothing_cleaned_up_in_a_location_that_is_another_one_as_well(
    site: tuple[Settings, Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site[0]
    (tmp_path / "elsewhere").symlink_to(tmp_path / "primary")
    place = RepositorySettings(url=str(tmp_path / "elsewhere"))
    both = replace(settings, locations={"offsite": LocationSettings("offsite", LocationRole.OFFSITE, place)})
    with pytest.raises(SettingsError, match="offsite and primary are the same place"):
        refuse_overlap(both, "offsite")
    assert [one.severity for one in role_findings(both, "offsite")] == ["critical"]
    primary = Repository.open(LocalStorage(tmp_path / "primary"))
    with pytest.raises(SettingsError, match="the same place"):
        clean_copy(both, primary, "shop", "offsite", actor="ada", now=NOW, observe=Observer())
    done = mirror_source(both, primary, "shop", None, None, now=NOW, observe=Observer())
    assert "the same place" in done.failures["offsite"].message
    # Where addresses do not tell it, a probe does, and leaves nothing.
    monkeypatch.setattr(locations, "overlap", lambda *_: "")
    before = sorted(stat.name for stat in primary.storage.list())
    with pytest.raises(SettingsError, match="offsite and primary are the same place"):
        refuse_same(both, "offsite", Observer())
    refuse_same(settings, "offsite", Observer())
    assert sorted(stat.name for stat in primary.storage.list()) == before


def test_a_primary_that_backups_made_known_under_another_name_is_found_however_its_folder_is_written(
    site: tuple[Settings, Catalog],
) -> None:
    catalog = site[1]
    catalog.ensure_storage_location("store", LocationType.LOCAL, connection_config={"url": "file:///a%20b/c"}, now=NOW)
    assert known_name(catalog, "primary", "/a b/c") == known_name(catalog, "primary", "file:///a%20b/c") == "store"
    assert known_name(catalog, "primary", "/a%20b/c") == "primary"
    assert known_name(catalog, "offsite", "/a b/c") == "offsite"


def test_hidden_versions_count_for_the_quota_and_are_told(
    site: tuple[Settings, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, catalog = site
    place = replace(settings.repository, quota_bytes=1_000_000)
    settings = replace(settings, repository=place)
    look((settings, catalog))
    monkeypatch.setattr("seawall.usage.hidden_bytes", lambda _storage: 900_000)
    report = check(settings, "primary", catalog, measuring=Measuring(timedelta(0), None), now=NOW, observe=Observer())
    assert "hidden-versions" in {one.code for one in report.findings}
    assert report.usage is not None
    assert report.free_bytes == 100_000 - report.usage.used_bytes
    record_health(catalog, report, NOW)
    known = check(settings, "primary", catalog, now=NOW, observe=Observer())
    assert (known.usage, known.free_bytes) == (report.usage, report.free_bytes)
