"""Locations on the command line and in the catalog: tried before saved, mirrored, proved, healed, restored from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from seawall import mirror, retention, upkeep, verify
from seawall.audit import AuditLog
from seawall.catalog import Catalog
from seawall.cli import run
from seawall.errors import LeaseHeld, LeaseLost
from seawall.events import Advanced, Event, Noticed, Observer
from seawall.model import BackupLabel, Proof
from seawall.proofs import Budget
from seawall.repository import Repository, SourceArea
from seawall.repository.area import new_hold_id
from seawall.repository.evidence import Evidence
from seawall.repository.layout import REPAIRS
from seawall.repository.lease import CLEANUP, MIRROR
from seawall.settings import PRIMARY
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage


@pytest.fixture
def seawall(place: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def runner(*arguments: str | Path) -> dict[str, Any]:
        code = run(["--config", str(place.file), "--json", *map(str, arguments)])
        value = json.loads(capsys.readouterr().out)
        assert value["ok"] is (code == 0)
        return value | {"code": code}

    return runner


def open_alerts(catalog: Catalog) -> set[tuple[str, str]]:
    return {(alert.alert_type, alert.subject) for alert in catalog.alerts()}


# -- scenarios


def test_primary_location_destroyed_restores_from_the_secondary_without_catalog(
    place: Any, seawall: Callable[..., dict[str, Any]], tmp_path: Path, content: dict[str, bytes]
) -> None:
    with place.catalog() as catalog:
        assert place.mirrored(catalog).failures == {}
    shutil.rmtree(tmp_path / PRIMARY)
    shutil.rmtree(tmp_path / "offsite")
    (tmp_path / "catalog.db").unlink()
    into = tmp_path / "restored"
    done = seawall("restore", "shop", "--into", into, "--no-start", "--immediate")
    assert done["code"] == 0, done
    assert done["plan"]["label"] == str(place.second.label)
    for path, data in content.items():
        if path.startswith("base/"):
            assert (into / path).read_bytes() == data


def test_one_bit_flipped_in_each_location_at_different_objects_is_healed_everywhere(place: Any) -> None:
    with place.catalog() as catalog:
        place.mirrored(catalog)
        sound = {path.relative_to(place.root / "vault"): path.read_bytes() for path in place.objects("vault")}
        bundles = [path for path in sound if "/bundles/" in str(path)]
        segments = [path for path in sound if path.name.startswith("0000000100000000")]
        flipped = {PRIMARY: bundles[0], "offsite": bundles[1], "vault": segments[4]}
        for location, path in flipped.items():
            place.flip(place.root / location / path)
        for location, path in flipped.items():
            result = place.proved(catalog, location)
            assert result.good
            assert [one.name for one in result.healed.healed] == [str(path)]
            assert place.proved(catalog, location).report.good
            assert ("copy-damaged", f"shop {location}") not in open_alerts(catalog)
    for location in flipped:
        for path, data in sound.items():
            assert (place.root / location / path).read_bytes() == data
    healed = [record for record in AuditLog(LocalStorage(place.root / PRIMARY)).records() if record.action == "heal"]
    assert {record.details["location"] for record in healed} == set(flipped)


def test_a_location_down_for_the_whole_window_leaves_the_backup_and_catches_up_later(place: Any) -> None:
    away = place.root / "away"
    (place.root / "vault").rename(away)
    with place.catalog() as catalog:
        result = place.mirrored(catalog)
        assert set(result.failures) == {"vault"}
        # The backups stand, and lie in enough other places to count as protected.
        assert [one.locations for one in result.protection] == [("offsite", PRIMARY)] * 2
        assert result.unprotected == ()
        assert ("mirror-failed", "shop vault") in open_alerts(catalog)
        assert ("mirror-late", "shop vault") not in open_alerts(catalog)
        place.mirrored(catalog, now=place.site.at(60 * 5))
        assert {("mirror-failed", "shop vault"), ("mirror-late", "shop vault")} <= open_alerts(catalog)
        away.rename(place.root / "vault")
        assert place.mirrored(catalog, now=place.site.at(60 * 6)).failures == {}
        assert open_alerts(catalog) == set()
        labels = {str(place.first.label), str(place.second.label)}
        assert catalog.copies(place.repository().id, "shop") == dict.fromkeys(labels, ("offsite", PRIMARY, "vault"))
    area = place.repository("vault").source("shop")
    for head in (place.first, place.second):
        assert verify.check(area, head.label, place.site.ring, now=place.site.at(60), observe=Observer()).good


def test_a_hold_that_is_lost_in_a_location_is_missed_there_by_the_audit_and_brought_back(place: Any) -> None:
    area, at = place.repository().source("shop"), place.site.at(30)
    hold_id = new_hold_id(at)
    details = {"id": hold_id, "reason": "lawsuit"}
    AuditLog(place.repository().storage).append("ada", "hold", f"shop {place.first.label}", details, now=at)
    area.place_hold(place.first.label, reason="lawsuit", owner="ada", now=at, hold_id=hold_id)
    with place.catalog() as catalog:
        place.mirrored(catalog)
        held = place.root / "vault" / area.layout.hold(hold_id)
        held.unlink()
        # An hour is what a copy may be late.
        assert place.proved(catalog, "vault", heal=False, now=place.site.at(80)).good
        missed = place.proved(catalog, "vault", heal=False, now=place.site.at(120))
        assert not missed.good
        assert [(one.code, one.subject) for one in missed.missed] == [("hold-lost", area.layout.hold(hold_id))]
        assert ("copy-damaged", "shop vault") in open_alerts(catalog)
        assert place.proved(catalog, "offsite", now=place.site.at(120)).good
        healed = place.proved(catalog, "vault", now=place.site.at(121))
        assert healed.good
        assert held.exists()
        assert ("copy-damaged", "shop vault") not in open_alerts(catalog)


def test_a_repository_that_lost_both_its_names_is_told_by_the_catalog_and_repaired_once_that_is_confirmed(
    place: Any, seawall: Callable[..., dict[str, Any]]
) -> None:
    place.settings.file.write_text(place.file.read_text().partition("# copies")[0] + "[sources.shop]\n")  # type: ignore[union-attr]
    wanted = place.repository().id
    assert seawall("catalog", "rebuild")["code"] == 0
    for name in ("seawall.json", "seawall-copy.json"):
        (place.root / PRIMARY / name).unlink()
    asked = seawall("repository", "repair")["error"]
    assert f"the catalog knows 2 of the backups here as of {wanted}" in asked["message"]
    assert f"`seawall repository repair --id {wanted}`" in asked["hint"]
    assert not (place.root / PRIMARY / "seawall.json").exists(), "nothing is written on the catalog's word alone"
    assert seawall("repository", "repair", "--id", wanted)["written"] == ["seawall.json", "seawall-copy.json"]
    assert place.repository().id == wanted


# -- several at once


def test_two_runs_at_once_to_one_location_leave_it_whole_and_only_one_brings_anything(place: Any) -> None:
    both = Barrier(2)

    def run(_number: int) -> upkeep.Mirrored:
        both.wait()
        return place.mirrored(None, only=["offsite"])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    # Whoever came second was refused, or found all there.
    assert sum(bool(one.reports["offsite"].objects) for one in results if one.reports) == 1
    assert {error.code for one in results for error in one.failures.values()} <= {"lease-held"}
    area = place.repository("offsite").source("shop")
    assert area.labels() == (place.first.label, place.second.label)
    for head in (place.first, place.second):
        assert verify.check(area, head.label, place.site.ring, now=place.site.at(60), observe=Observer()).good


def test_a_run_that_meets_another_brings_nothing_and_only_when_that_goes_on_it_alarms(place: Any) -> None:
    there = place.repository("offsite").source("shop")
    before = place.objects("offsite")
    with place.catalog() as catalog:

        def blocked() -> list[tuple[str, str]]:
            return [(one.severity.value, one.subject) for one in catalog.alerts() if one.alert_type == "mirror-blocked"]

        with there.lease("another host", MIRROR):
            for severity in ("low", "low", "high"):
                result = place.mirrored(catalog, now=place.site.at(10), only=["offsite"])
                assert result.failures["offsite"].code == "lease-held"
                assert place.objects("offsite") == before
                assert blocked() == [(severity, "shop offsite")]
        assert open_alerts(catalog) == {("mirror-blocked", "shop offsite")}
        assert place.mirrored(catalog, now=place.site.at(20), only=["offsite"]).failures == {}
        assert blocked() == []


def test_a_cleanup_waits_for_no_run_and_removes_nothing_beside_it(place: Any) -> None:
    place.mirrored(None)
    copy = place.repository("offsite")
    before = place.objects("offsite")
    with copy.source("shop").lease("another host", MIRROR), pytest.raises(LeaseHeld):
        retention.collect(copy, "shop", actor="ada", now=copy.storage.now(), observe=Observer())
    assert place.objects("offsite") == before


def test_a_run_that_was_paused_past_its_lease_lists_nothing_any_more(fresh_site: Callable[[], Any]) -> None:
    site = fresh_site()
    site.wal(1, 3)
    site.backup(0, 1, 3.5)
    there = MemoryStorage(clock=lambda: site.now)
    mirror.begin(site.repository, there)
    copy = SourceArea(there, "shop")
    evidence = Evidence([site.storage], site.ring)
    chosen = mirror.survey(site.repository, "shop", there, evidence)

    def pause(event: Event) -> None:
        if isinstance(event, Advanced) and not copy.labels():
            site.now += timedelta(hours=1)
            copy.lease("cleanup", CLEANUP)

    with copy.lease("paused", MIRROR) as held, pytest.raises(LeaseLost):
        mirror.run(chosen, site.storage, there, evidence, observe=Observer(hear=pause), workers=1, held=held)
    assert copy.labels() == ()
    assert {stat.name for stat in there.list("sources/")} < {stat.name for stat in site.storage.list("sources/")}


def test_nothing_is_written_where_another_repository_lies_not_even_a_lease(place: Any) -> None:
    shutil.rmtree(place.root / "offsite")
    (place.root / "offsite").mkdir()
    Repository.create(LocalStorage(place.root / "offsite"), now=place.site.now)
    before = sorted(path for path in (place.root / "offsite").rglob("*"))
    assert place.mirrored(None).failures["offsite"].code == "cluster-mismatch"
    assert sorted(path for path in (place.root / "offsite").rglob("*")) == before


def test_an_empty_place_where_a_copy_should_be_is_not_filled_unless_told(
    place: Any, seawall: Callable[..., dict[str, Any]]
) -> None:
    for identity in (place.root / "vault").glob("seawall*.json"):
        identity.unlink()
    assert seawall("mirror")["sources"][0]["failures"]["vault"]["code"] == "not-a-repository"
    assert not [path for path in (place.root / "vault").rglob("*") if path.is_file()]
    assert not [one for one in seawall("location", "check")["locations"] if one["name"] == "vault" and one["good"]]
    assert seawall("mirror", "--begin")["code"] == 0
    assert place.repository("vault").source("shop").labels() == (place.first.label, place.second.label)


def test_too_few_copies_leave_a_backup_unprotected(place: Any) -> None:
    for name in ("offsite", "vault"):
        shutil.rmtree(place.root / name)
    with place.catalog() as catalog:
        result = place.mirrored(catalog)
        assert len(result.unprotected) == 2
        failure = upkeep.mirror_failure([result])
    assert failure is not None
    assert "offsite" in failure.message


def test_copies_in_locations_that_a_run_leaves_alone_count_all_the_same(place: Any) -> None:
    with place.catalog() as catalog:
        place.mirrored(catalog, only=["vault"])
        (_, second) = place.mirrored(catalog, only=["offsite"]).protection
        assert second.locations == ("offsite", "primary", "vault")
        shutil.rmtree(place.root / "vault")
        alone = place.mirrored(catalog, only=["offsite"])
        assert (alone.failures, alone.protection[1].locations) == ({}, ("offsite", "primary"))


# -- proofs in the catalog


def test_what_was_proved_is_remembered_for_each_location_and_renewed_from_the_oldest(place: Any) -> None:
    with place.catalog() as catalog:
        place.mirrored(catalog)
        repository = place.repository().id
        nights = 0
        while len(upkeep.known_proofs(catalog, repository, PRIMARY)) < 14:
            nights += 1
            place.proved(catalog, PRIMARY, Budget(stored_bytes=60_000), now=place.site.at(60 + nights))
            assert nights < 20
        assert nights >= 3
        assert upkeep.known_proofs(catalog, repository, "offsite") == {}
        known = upkeep.known_proofs(catalog, repository, PRIMARY)
        assert {proof for proof, _ in known.values()} == {Proof.HASH_GOOD, Proof.DECRYPTABLE}
        # What was opened is listed from then on, so that it can be proved without a key in every copy.
        area = place.repository().source("shop")
        assert all(area.wal.known_lists().find(name) for name in known if "/wal/" in name)


def test_damage_that_cannot_be_healed_is_an_alert_until_it_is(place: Any) -> None:
    bundle = next(path for path in place.objects() if "/bundles/" in str(path))
    sound = bundle.read_bytes()
    place.flip(bundle)
    with place.catalog() as catalog:
        result = place.proved(catalog, PRIMARY)
        assert not result.good
        assert ("copy-damaged", f"shop {PRIMARY}") in open_alerts(catalog)
        assert upkeep.proof_failure([result]) is not None
        bundle.write_bytes(sound)
        assert place.proved(catalog, PRIMARY).good
        assert open_alerts(catalog) == set()


# -- the command line


def test_mirror_and_verify_of_locations_on_the_command_line(place: Any, seawall: Callable[..., dict[str, Any]]) -> None:
    # From before the first backup: retention lets it go, so no copy gets it, and a look ahead must not promise it.
    first = next(path for path in place.objects() if path.name == "000000010000000000000001")
    shutil.copy(first, first.with_name("000000010000000000000000"))
    missing = seawall("mirror", "--dry-run")["missing"]
    assert [one["location"] for one in missing] == ["offsite", "vault"]
    assert missing[0]["objects"] > 10
    assert not (place.root / "offsite" / "sources").exists()
    done = seawall("mirror", "shop")
    assert done["code"] == 0
    assert [one["protected"] for one in done["sources"][0]["backups"]] == [True, True]
    assert all(one["objects"] == 0 for one in seawall("mirror", "--dry-run")["missing"])
    (place.root / "offsite").rename(place.root / "unmounted")
    looked = seawall("mirror", "--dry-run")
    assert looked["code"] == 81
    assert [one["location"] for one in looked["missing"]] == ["vault"]
    assert looked["error"]["message"].startswith("not every location could be looked at: shop to offsite: ")
    assert looked["failures"]["shop to offsite"]["code"] == "not-a-repository"
    (place.root / "unmounted").rename(place.root / "offsite")
    place.flip(next(path for path in place.objects("offsite") if "/bundles/" in str(path)))
    bad = seawall("verify", "shop", "--location", "offsite", "--up-to", "hash-good")
    assert (bad["code"], bad["locations"][0]["good"]) == (80, False)
    healed = seawall("verify", "shop", "--location", "all", "--heal", "--budget", "1h", "--up-to", "hash-good")
    assert healed["code"] == 0
    assert [one["location"] for one in healed["locations"]] == [PRIMARY, "offsite", "vault"]
    assert len(healed["locations"][1]["healed"]) == 1


def test_a_backup_of_which_an_object_was_repaired_beside_is_verified_by_that(
    place: Any, seawall: Callable[..., dict[str, Any]]
) -> None:
    bundle = next(path for path in place.objects() if "/bundles/" in str(path) and str(place.second.label) in str(path))
    name, sound = bundle.relative_to(place.root / PRIMARY), bundle.read_bytes()
    place.flip(bundle)
    assert seawall("verify", "shop")["error"]["code"] == "verification-failed"
    LocalStorage(place.root / PRIMARY).put(f"{REPAIRS}{name}", [sound])
    assert seawall("verify", "shop")["code"] == 0


def test_a_location_is_tried_before_it_is_saved(place: Any, seawall: Callable[..., dict[str, Any]]) -> None:
    before = place.file.read_text()
    other = place.root / "other"
    other.mkdir()
    Repository.create(LocalStorage(other), now=place.site.now)
    for url in (place.root / "absent", other):
        refused = seawall("location", "add", "third", "--url", url)
        assert refused["code"] != 0
        assert place.file.read_text() == before
    (place.root / "third").mkdir()
    added = seawall("location", "add", "third", "--url", place.root / "third", "--set", "concurrency=3")
    assert added["location"]["good"]
    assert place.settings.location("third").storage.concurrency == 3
    assert [path.name for path in sorted((place.root / "third").rglob("*.json"))] == [
        "seawall-copy.json",
        "seawall.json",
    ]
    assert {row["name"] for row in seawall("location", "list")["locations"]} == {
        PRIMARY, "offsite", "third", "vault"
    }  # fmt: skip
    assert seawall("location", "add", "third", "--url", place.root / "third")["code"] == 2
    assert seawall("location", "remove", "third")["code"] == 0
    assert place.file.read_text().rstrip() == before.rstrip()


def test_a_location_that_a_source_mirrors_to_is_not_removed_and_the_others_sections_stay(
    place: Any, seawall: Callable[..., dict[str, Any]]
) -> None:
    assert seawall("location", "remove", "offsite")["code"] == 2
    text = place.file.read_text().replace('mirrors = ["offsite", "vault"]', 'mirrors = ["vault"]')
    place.file.write_text(text)
    assert seawall("location", "remove", "offsite")["code"] == 0
    assert set(place.settings.locations) == {"vault"}
    assert "# copies" in place.file.read_text()


def test_a_check_of_all_locations_names_the_one_that_is_down_and_the_alert_goes_when_it_is_back(
    place: Any, seawall: Callable[..., dict[str, Any]]
) -> None:
    (place.root / "vault").rename(place.root / "away")
    found = seawall("location", "check")
    assert found["code"] != 0
    assert {one["name"]: one["good"] for one in found["locations"]} == {PRIMARY: True, "offsite": True, "vault": False}
    with place.catalog() as catalog:
        assert open_alerts(catalog) == {("location-down", "vault")}
    (place.root / "away").rename(place.root / "vault")
    assert seawall("location", "check")["code"] == 0
    with place.catalog() as catalog:
        assert open_alerts(catalog) == set()
        assert {one.name: one.role for one in catalog.storage_locations()} == {
            PRIMARY: "primary", "offsite": "offsite", "vault": "secondary-offsite"
        }  # fmt: skip
    assert [one for one in seawall("location", "list")["locations"] if one["checked_at"] is None] == []


def test_progress_of_a_mirror_is_heard_and_it_can_be_cancelled(place: Any) -> None:
    heard: list[Event] = []
    observer = Observer(hear=heard.append)
    observer.cancel.set()
    from seawall.errors import Cancelled

    with pytest.raises(Cancelled):
        upkeep.mirror_source(
            place.settings, place.repository(), "shop", None, None, now=place.site.at(60), observe=observer
        )
    assert not [event for event in heard if isinstance(event, Noticed)]
    assert BackupLabel.parse(str(place.first.label)) == place.first.label
    assert timedelta(hours=1) == upkeep.policy_of(place.settings, "shop").within
