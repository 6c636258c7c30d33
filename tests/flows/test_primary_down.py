"""The flows while the primary location is gone: they do what can be done in the copies, say what they could not, and
the next run with the primary finishes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import traces
from seawall.audit import APART, CARRIED, AuditLog
from seawall.catalog import Catalog, JobType, RunStatus, anchors
from seawall.catalog.rebuilding import rebuild
from seawall.errors import NotARepository, RetentionRefused, SeawallError, StorageUnreachable
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Compression, Proof, SealingMode
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.settings import Settings, load
from seawall.storage.local import LocalStorage
from seawall.upkeep import mirror_source
from tasks import retention, upkeep, verify
from tasks.records import cleaning_job, site_job
from tests.cli.test_retention_commands import NOW, a_backup
from tools.storage_servers import free_port

HASHES = Proof.HASH_GOOD


@dataclass
class Site:
    """A repository with five backups in a folder, whole copies in two others, and a catalog that knows them."""

    folder: Path
    settings: Settings
    catalog: Catalog
    labels: tuple[BackupLabel, ...]

    def storage(self, name: str) -> LocalStorage:
        return LocalStorage(self.folder / name)

    def area(self, name: str) -> SourceArea:
        return Repository.open(self.storage(name)).source("shop")

    def lose_primary(self) -> None:
        (self.folder / "primary").rename(self.folder / "away")

    def find_primary(self) -> None:
        (self.folder / "away").rename(self.folder / "primary")

    @property
    def alerts(self) -> set[tuple[str, str]]:
        return {(alert.alert_type, alert.subject) for alert in self.catalog.alerts()}

    def clean(self) -> Any:
        """One run of the task; its facts."""
        return retention.clean.fn(self.settings, "shop", self.cleaning, dry_run=False)

    @property
    def cleaning(self) -> Any:
        return cleaning_job(self.settings, None).id

    @property
    def cleanings(self) -> list[RunStatus]:
        return [one.status for one in self.catalog.executions(self.cleaning)]

    def age_marks(self, name: str) -> None:
        """As if each mark in a location had been made two days before."""
        storage = self.storage(name)
        for stat in list(storage.list("sources/shop/expired/")):
            mark = documents.get(storage, stat.name)
            mark["marked_at"] = (datetime.fromisoformat(str(mark["marked_at"])) - timedelta(days=2)).isoformat()
            storage.delete(stat.name)
            documents.put(storage, stat.name, mark)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    file = tmp_path / "seawall.toml"
    file.write_text(settings_text(tmp_path), encoding="utf-8")
    settings = load(file, {})
    with Catalog.open(settings.catalog.url, create=True) as catalog:
        yield filled(tmp_path, settings, catalog)


def settings_text(folder: Path, days: int = 1) -> str:
    return f"""
[repository]
url = "{folder}/primary"
[sealing]
mode = "none"
keyring = "{folder}/keyring"
[catalog]
url = "sqlite:///{folder}/catalog.db"
[server]
work_directory = "{folder}/work"
[locations.one]
url = "{folder}/one"
[locations.two]
url = "{folder}/two"
[sources.shop]
mirrors = ["one", "two"]
retention_days = {days}
[retention]
weekly_months = 0
monthly_years = 0
full_days = {days}
"""


def filled(folder: Path, settings: Settings, catalog: Catalog) -> Site:
    repository = Repository.create(LocalStorage(folder / "primary"), now=NOW)
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(folder / "ring"))
    labels = tuple(a_backup(repository.source("shop"), sealing, days, 100 - days) for days in (5, 4, 3, 2, 1))
    for name in ("one", "two"):
        (folder / name).mkdir()
    # Copied while all of them were to be kept.
    (folder / "before.toml").write_text(settings_text(folder, days=30), encoding="utf-8")
    before = load(folder / "before.toml", {})
    done = mirror_source(before, repository, "shop", None, None, begin=True, now=NOW, observe=Observer())
    assert not done.failures
    rebuild(catalog, repository, now=NOW)
    anchors.compared(catalog, repository, now=NOW)
    return Site(folder, settings, catalog, labels)


# ---- verify


def test_what_copies_hold_is_verified_and_recorded_as_that_and_as_no_proof_of_the_primary(site: Site) -> None:
    site.lose_primary()
    with pytest.raises(NotARepository):
        verify.check.fn(site.settings, "shop", site.labels[0], HASHES)
    facts = verify.check.fn(site.settings, "shop", site.labels[0], HASHES, copies=True)
    assert (facts["reached"], facts["read_from"]) == ("hash-good", ["one", "two"])
    assert "verified were the copies in one and two" in str(facts["partial"])
    (row,) = site.catalog.verifications()
    assert row.status is RunStatus.PARTIAL
    assert row.verification_results["read_from"] == ["one", "two"]
    assert "[partial] the primary location does not answer" in (row.error_message or "")
    assert site.catalog.backup_file(row.backup_file_id).verified_at is None
    assert site.alerts == {("location-down", "primary")}


def test_with_the_primary_the_same_run_is_complete(site: Site) -> None:
    facts = verify.check.fn(site.settings, "shop", site.labels[0], HASHES, copies=True)
    assert facts["read_from"] == ["primary"]
    assert "partial" not in facts
    (row,) = site.catalog.verifications()
    assert row.status is RunStatus.COMPLETED
    assert site.catalog.backup_file(row.backup_file_id).verified_at is not None
    assert site.alerts == set()


def test_damage_in_every_copy_fails_and_says_where_it_was_read(site: Site) -> None:
    site.lose_primary()
    for name in ("one", "two"):
        (bundle,) = (site.folder / name / f"sources/shop/backups/{site.labels[0]}").rglob("*bundle*/*")
        bundle.chmod(0o600)
        bundle.write_bytes(bundle.read_bytes()[:-1] + b"?")
    with pytest.raises(SeawallError, match=r"as read in one and two: backup .* has 1 faults"):
        verify.check.fn(site.settings, "shop", site.labels[0], HASHES, copies=True)
    (row,) = site.catalog.verifications()
    assert row.status is RunStatus.FAILED
    assert ("verify-failed", "shop") in site.alerts


def test_without_the_primary_each_run_takes_the_backup_whose_copies_were_read_longest_ago(site: Site) -> None:
    site.lose_primary()
    chosen = []
    for _ in site.labels:
        chosen.append(verify.least_proved(site.settings, "shop"))
        verify.check.fn(site.settings, "shop", chosen[-1], HASHES, copies=True)
    assert chosen == list(site.labels)


# ---- retention


def marked(site: Site, name: str) -> list[BackupLabel]:
    area = site.area(name)
    return [label for label in area.labels(with_expired=True) if area.is_expired(label)]


def lost_marks(site: Site, name: str) -> list[str]:
    audit = AuditLog(site.storage("primary"))
    found = traces.missed(site.area(name), audit=audit, now=datetime.now(UTC))
    return [one.subject for one in found if one.code == "mark-lost"]


def test_copies_are_cleaned_without_the_primary_recorded_where_they_lie_and_carried_when_it_is_back(site: Site) -> None:
    site.lose_primary()
    facts = site.clean()
    assert "was not cleaned, only copies of shop" in facts["partial"]
    assert facts["primary"]["code"] == "not-a-repository"
    gone = marked(site, "one")
    assert 0 < len(gone) < len(site.labels)
    assert marked(site, "two") == gone
    assert site.cleanings == [RunStatus.PARTIAL]
    assert site.alerts == {("location-down", "primary")}
    apart = list(AuditLog(site.storage("one"), APART).records())
    assert [one.subject for one in apart if one.action == "expire"] == [f"shop {label}" for label in reversed(gone)]
    assert {one.details["follows"] for one in apart} == {f"0 {'0' * 64}"}

    site.find_primary()
    facts = site.clean()
    assert "partial" not in facts
    records = list(AuditLog(site.storage("primary")).records())
    carried = [one for one in records if "recorded_in" in one.details]
    assert len(carried) == 2 * len(apart)
    first = next(one for one in carried if one.details["recorded_in"] == site.storage("one").url)
    assert (first.actor, first.action, first.subject) == (apart[0].actor, apart[0].action, apart[0].subject)
    assert first.details["done_at"] == apart[0].at.isoformat()
    kept = documents.get(site.storage("primary"), f"{CARRIED}{first.details['recorded_as']}.json")
    assert kept["subject"] == first.subject
    assert lost_marks(site, "one") == []
    site.storage("one").delete(site.area("one").layout.expiry(gone[0]))
    assert lost_marks(site, "one") == [site.area("one").layout.expiry(gone[0])], "the carried records tell of it"
    site.clean()
    again = [one for one in AuditLog(site.storage("primary")).records() if "recorded_in" in one.details]
    assert again == carried, "each record is carried once"
    assert site.cleanings == [RunStatus.COMPLETED, RunStatus.COMPLETED, RunStatus.PARTIAL]


def test_without_the_primary_nothing_goes_for_good_that_no_other_location_lists_and_later_it_does(site: Site) -> None:
    site.lose_primary()
    site.clean()
    gone = marked(site, "one")
    for name in ("one", "two"):
        site.age_marks(name)
    facts = site.clean()
    for name in ("one", "two"):
        assert facts["locations"][name]["collected"] == []
        assert site.area(name).labels(with_expired=True) == site.labels
        left = facts["locations"][name]["left"]
        assert left[str(gone[0])] == "the primary location does not answer, and no other location lists it"
        assert {why for what, why in left.items() if "wal-" in what} == {"the primary location does not answer"}
    site.find_primary()
    facts = site.clean()
    for name in ("one", "two"):
        assert set(facts["locations"][name]["collected"]) == set(map(str, gone))
        assert not set(site.area(name).labels(with_expired=True)) & set(gone)


def test_without_the_primary_a_copy_lets_go_for_good_of_what_another_location_keeps_longer(
    site: Site, tmp_path: Path
) -> None:
    file = tmp_path / "longer.toml"
    longer = "\n[sources.shop.retention.locations.two]\nwindow_days = 90\ndaily_days = 90\nfull_days = 90\n"
    file.write_text(settings_text(tmp_path) + longer, encoding="utf-8")
    site.settings = load(file, {})
    site.lose_primary()
    site.clean()
    gone = marked(site, "one")
    assert gone
    assert marked(site, "two") == []
    site.age_marks("one")
    facts = site.clean()
    assert set(facts["locations"]["one"]["collected"]) == set(map(str, gone))
    assert site.area("two").labels() == site.labels
    actions = {one.action for one in AuditLog(site.storage("one"), APART).records()}
    assert actions == {"expire", "expire-wal", "collect", "collected"}
    assert site.area("one").wal.segments() == site.area("two").wal.segments(), "WAL waits for the primary"


def test_a_hold_that_no_mirror_brought_yet_keeps_the_copies_of_its_backup(site: Site) -> None:
    site.clean()
    (held, *rest) = marked(site, "one")
    site.area("primary").place_hold(held, reason="disputed", owner="ada", now=datetime.now(UTC))
    site.age_marks("one")
    facts = site.clean()
    assert facts["locations"]["one"]["left"][str(held)] == "a hold was placed on it"
    assert set(facts["locations"]["one"]["collected"]) == set(map(str, rest))


def test_one_copy_that_is_down_as_well_keeps_the_other_from_nothing(site: Site) -> None:
    site.lose_primary()
    (site.folder / "one").rename(site.folder / "down")
    facts = site.clean()
    assert facts["locations"]["one"]["code"] == "not-a-repository"
    assert marked(site, "two")
    (site.folder / "two").rename(site.folder / "down too")
    with pytest.raises(NotARepository):
        site.clean()
    assert site.cleanings[0] is RunStatus.FAILED


def test_nothing_is_cleaned_in_copies_of_a_repository_that_the_catalog_never_saw(site: Site, tmp_path: Path) -> None:
    site.lose_primary()
    text = settings_text(tmp_path).replace("catalog.db", "new.db")
    (tmp_path / "new.toml").write_text(text, encoding="utf-8")
    site.settings = load(tmp_path / "new.toml", {})
    with Catalog.open(site.settings.catalog.url, create=True), pytest.raises(RetentionRefused, match="never saw"):
        site.clean()
    assert marked(site, "one") == marked(site, "two") == []


def test_a_chain_that_was_changed_in_a_copy_is_not_carried_and_stops_the_cleanup_there_alone(site: Site) -> None:
    site.lose_primary()
    site.clean()
    record = site.folder / "one" / f"{APART}000000000001.json"
    changed = {**json.loads(record.read_bytes()), "actor": "nobody", "object": f"{APART}000000000001.json"}
    del changed["sha256"], changed["object"]
    site.storage("one").delete(f"{APART}000000000001.json")
    documents.put(site.storage("one"), f"{APART}000000000001.json", changed)
    site.find_primary()
    facts = site.clean()
    assert facts["locations"]["one"]["code"] == "damaged"
    assert "collected" in facts["locations"]["two"]


# ---- the others


def test_copies_are_brought_up_to_date_from_each_other_and_the_run_is_partial(site: Site) -> None:
    job = site_job(site.settings, None, JobType.MIRROR)
    site.lose_primary()
    site.storage("two").delete(site.area("two").layout.manifest(site.labels[-1]))
    facts = upkeep.mirror.fn(site.settings, ["shop"], job.id)
    assert "the primary location does not answer" in str(facts["partial"])
    assert site.area("two").labels() == site.labels
    assert site.catalog.executions(job.id)[0].status is RunStatus.PARTIAL
    assert site.alerts == {("location-down", "primary")}
    site.find_primary()
    upkeep.mirror.fn(site.settings, ["shop"], job.id)
    assert site.catalog.executions(job.id)[0].status is RunStatus.COMPLETED


def test_health_and_locks_of_the_other_locations_are_looked_at_without_the_primary(site: Site) -> None:
    site.lose_primary()
    health = site_job(site.settings, None, JobType.LOCATION_HEALTH)
    with pytest.raises(NotARepository):
        upkeep.check_locations.fn(site.settings, health.id)
    assert ("location-down", "primary") in site.alerts
    rows = {one.name: one.health_message for one in site.catalog.storage_locations()}
    assert (rows["one"], rows["two"]) == (None, None)
    assert all(site.catalog.measurements(name) for name in ("one", "two")), "what lies there was measured"
    locks = site_job(site.settings, None, JobType.IMMUTABILITY)
    facts = upkeep.probe_locks.fn(site.settings, locks.id)
    assert {facts[name]["state"] for name in ("one", "two")} == {"none"}  # type: ignore[index]


def test_all_of_it_works_too_while_the_server_of_a_primary_in_a_bucket_does_not_answer(
    site: Site, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("[default]\naws_access_key_id = AKIA0\naws_secret_access_key = none\n", encoding="utf-8")
    keys.chmod(0o600)
    bucket = f's3://gone/shop"\nendpoint = "http://127.0.0.1:{free_port()}"\nregion = "eu-central-1"\nattempts = 1\n'
    text = settings_text(tmp_path).replace(f'{tmp_path}/primary"', f'{bucket}credentials_file = "{keys}"')
    (tmp_path / "bucket.toml").write_text(text, encoding="utf-8")
    site.settings = load(tmp_path / "bucket.toml", {})
    assert upkeep.mirrored_or_locked(site.settings) == ["shop"]
    assert verify.least_proved(site.settings, "shop") == site.labels[0]
    facts = verify.check.fn(site.settings, "shop", site.labels[0], HASHES, copies=True)
    assert facts["read_from"] == ["one", "two"]
    assert site.clean()["primary"]["code"] == "storage-unreachable"
    assert marked(site, "one") == marked(site, "two") != []
    assert "partial" in upkeep.mirror.fn(site.settings, ["shop"], site_job(site.settings, None, JobType.MIRROR).id)
    with pytest.raises(StorageUnreachable):
        upkeep.check_locations.fn(site.settings, site_job(site.settings, None, JobType.LOCATION_HEALTH).id)
    assert site.catalog.measurements("two")
    with pytest.raises(StorageUnreachable):
        upkeep.probe_locks.fn(site.settings, site_job(site.settings, None, JobType.IMMUTABILITY).id)
    assert {one for one in site.alerts if one[1] == "primary"} >= {("location-down", "primary")}
    assert ("lock-unproved", "primary") in site.alerts
    assert not [subject for _, subject in site.alerts if subject in ("one", "two")]


@pytest.mark.prefect
@pytest.mark.slow
def test_the_flows_end_as_partial_and_not_as_failed(prefect_stack: Any, site: Site) -> None:
    site.lose_primary()
    client, given = prefect_stack.client, {"settings_file": str(site.folder / "seawall.toml")}
    wanted = {"verify": {"source": "shop", "up_to": "hash-good"}, "retention-cleanup": {}, "mirror": {}}
    # One after the other: a cleanup does not wait for a mirror that holds the lease in the same location.
    for name, parameters in wanted.items():
        deployment = client.read_deployment_by_name(f"{name}/{name}")
        run = client.create_flow_run_from_deployment(deployment.id, parameters={**given, **parameters})
        state = prefect_stack.ended(run).state
        assert (state.type.value, state.name) == ("COMPLETED", "Partial"), prefect_stack.story(run)
        assert "the primary location does not answer" in state.message
    assert [one.status for one in site.catalog.verifications()] == [RunStatus.PARTIAL]
    assert site.cleanings == [RunStatus.PARTIAL]
    assert site.alerts == {("location-down", "primary")}
