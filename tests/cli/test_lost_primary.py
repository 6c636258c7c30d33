"""What can be done by commands while the primary location is gone, and how a new one is filled from the copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seawall import locations
from seawall.audit import AuditLog
from seawall.catalog import Catalog, anchors
from seawall.errors import Cancelled
from seawall.events import Event, Noticed, Observer
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository import Repository, Sealing
from seawall.settings import RepositorySettings, load
from seawall.storage import open_storage
from tests.cli.test_retention_commands import NOW, a_backup, moved
from tools.storage_servers import Servers, free_port

Run = Callable[..., Any]


@pytest.fixture
def site(pattern: Path, tmp_path: Path, seawall: Run) -> Path:
    """Settings of a repository in a folder with three backups and whole copies of it in two other places."""
    return filled(moved(pattern, tmp_path / "site"), seawall)


def filled(config: Path, seawall: Run) -> Path:
    with_mirrors(config)
    area = Repository.open(open_storage(load(config).repository)).source("shop")
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(config.parent / "ring"))
    for days in (3, 2, 1):
        a_backup(area, sealing, days, 100 - days)
    done = seawall("mirror", "--begin", "--config", config, "--json")
    assert done.code == 0, done.out
    return config


def with_mirrors(config: Path) -> None:
    text = config.read_text().replace("[sources.shop]\n", '[sources.shop]\nmirrors = ["offsite", "vault"]\n')
    for name in ("offsite", "vault"):
        (config.parent / name).mkdir()
        text += f'\n[locations.{name}]\nurl = "{config.parent / name}"\n'
    config.write_text(text)


def labels(done: Any) -> list[str]:
    return [one["label"] for one in done.json["backups"]]


READERS = {
    "list": ("list",),
    "info": ("info",),
    "audit": ("audit",),
    "hold list": ("hold", "list", "shop"),
    "wal status": ("wal", "status", "shop"),
    "verify": ("verify", "shop"),
}


@pytest.mark.parametrize("verb", READERS)
def test_what_only_reads_goes_on_in_the_other_locations_and_says_so(seawall: Run, site: Path, verb: str) -> None:
    arguments = (*READERS[verb], "--config", site)
    before = seawall(*arguments, "--json")
    (site.parent / "repository").rename(site.parent / "gone")
    after, told = seawall(*arguments, "--json"), seawall(*arguments)
    assert before.json["read_from"] == ["primary"]
    assert after.json["read_from"] == ["offsite", "vault"]
    assert set(after.json["unreachable"]) == {"primary"}
    if before.code == 0:
        assert (after.code, after.error["code"]) == (81, "partial")
    else:
        assert after.code == before.code, "what is wrong with what was read goes before"
    assert "the primary location does not answer" in told.err
    assert "reading offsite and vault" in told.err


def test_a_list_without_the_primary_has_the_same_backups(seawall: Run, site: Path) -> None:
    before = labels(seawall("list", "--config", site, "--json"))
    (site.parent / "repository").rename(site.parent / "gone")
    assert labels(seawall("list", "--config", site, "--json")) == before
    (site.parent / "offsite").rename(site.parent / "gone too")
    found = seawall("list", "--config", site, "--json")
    assert (labels(found), found.json["read_from"]) == (before, ["vault"])
    (site.parent / "vault").rename(site.parent / "gone as well")
    nothing = seawall("list", "--config", site, "--json")
    assert (nothing.code, nothing.error["code"]) == (31, "not-a-repository")


def test_copies_are_brought_up_to_date_from_each_other(seawall: Run, site: Path) -> None:
    shutil.rmtree(site.parent / "vault")
    (site.parent / "vault").mkdir()
    (site.parent / "repository").rename(site.parent / "gone")
    done = seawall("mirror", "--begin", "--config", site, "--json")
    assert (done.code, done.error["code"]) == (81, "partial")
    (shop,) = done.json["sources"]
    assert len(shop["locations"]["vault"]["committed"]) == 3
    assert shop["failures"] == {}
    assert {tuple(one["locations"]) for one in shop["backups"]} == {("offsite", "vault")}
    (site.parent / "offsite").rename(site.parent / "gone too")
    assert len(labels(seawall("list", "--config", site, "--json"))) == 3


def test_a_new_primary_is_filled_from_the_copies_and_used_as_before(seawall: Run, site: Path) -> None:
    before = seawall("list", "--config", site, "--json").json["backups"]
    findings = seawall("verify", "shop", "--all", "--config", site, "--json").json["findings"]
    primary = site.parent / "repository"
    shutil.rmtree(primary)
    primary.mkdir()
    refused = seawall("mirror", "--location", "primary", "--config", site, "--json")
    assert refused.code == 81
    assert "holds no copy of this repository" in refused.error["message"]
    assert not any(primary.iterdir()), "an empty place may be one that is not mounted"
    done = seawall("mirror", "--location", "primary", "--begin", "--config", site, "--json")
    assert done.code == 0, done.out
    shown = seawall("list", "--config", site, "--json").json
    assert (shown["backups"], shown["read_from"]) == (before, ["primary"])
    assert seawall("verify", "shop", "--all", "--config", site, "--json").json["findings"] == findings
    again = seawall("mirror", "--config", site, "--json")
    assert again.code == 0, again.out
    assert {tuple(one["locations"]) for one in again.json["sources"][0]["backups"]} == {("offsite", "primary", "vault")}


def test_that_a_primary_was_filled_is_in_its_audit_and_in_the_catalog(seawall: Run, site: Path) -> None:
    old = AuditLog(open_storage(load(site).repository))
    old.append("ada", "hold", "shop", {}, now=NOW)
    assert seawall("mirror", "--config", site, "--json").code == 0
    primary = site.parent / "repository"
    shutil.rmtree(primary)
    primary.mkdir()
    with Catalog.open(load(site).catalog.url, create=True) as catalog:
        done = seawall("mirror", "--location", "primary", "--begin", "--config", site, "--json")
        assert done.code == 0, done.out
        entry = next(one for one in catalog.audit_entries() if one.action == "primary.fill")
    before, record = AuditLog(open_storage(load(site).repository)).records()
    assert (before.action, record.action, record.subject) == ("hold", "fill-primary", "shop")
    assert record.actor == entry.actor != ""
    assert record.details["from"] == "offsite, vault"
    assert record.details["location"].endswith("/repository")
    assert (record.details["committed"], record.details["left"]) == ("3", "0")
    again = seawall("mirror", "--location", "primary", "--config", site, "--json")
    assert again.code == 0, again.out
    assert len(list(AuditLog(open_storage(load(site).repository)).records())) == 2, "nothing came, nothing is recorded"


def test_a_tail_that_only_the_primary_has_is_left_there_when_it_is_filled(seawall: Run, site: Path) -> None:
    area = Repository.open(open_storage(load(site).repository)).source("shop")
    segment = area.layout.segment("0000000100000000000000F0")
    tail = f"{segment}.tail-0000000000000100"
    area.storage.put(tail, [b"newest"])
    done = seawall("mirror", "--location", "primary", "--config", site, "--json")
    assert done.code == 0, done.out
    assert b"".join(area.storage.get(tail)) == b"newest"


def test_the_primary_is_not_filled_together_with_others(seawall: Run, site: Path) -> None:
    done = seawall("mirror", "--location", "primary", "--location", "vault", "--config", site, "--json")
    assert (done.code, done.error["code"]) == (2, "usage")


def in_bucket(config: Path, place: RepositorySettings) -> None:
    lines = [f'url = "{place.url}"', f'endpoint = "{place.endpoint}"', f'region = "{place.region}"', "attempts = 1"]
    lines.append(f'credentials_file = "{place.credentials_file}"')
    folder = f'url = "{config.parent / "repository"}"'
    assert folder in config.read_text()
    config.write_text(config.read_text().replace(folder, "\n".join(lines)))


@pytest.mark.servers
def test_a_bucket_that_vanished_is_read_elsewhere_and_a_new_one_is_filled(
    seawall: Run, pattern: Path, tmp_path: Path, servers: Servers
) -> None:
    server = servers["s3"]
    place: RepositorySettings = server.settings()
    config = moved(pattern, tmp_path / "site")
    in_bucket(config, place)
    Repository.create(open_storage(place), now=NOW)
    filled(config, seawall)
    before = labels(seawall("list", "--config", config, "--json"))
    text = config.read_text()
    no_server = text.replace(place.endpoint, f"http://127.0.0.1:{free_port()}")
    no_bucket = text.replace(place.url, "s3://no-such-bucket/x")
    for gone in (no_server, no_bucket):
        config.write_text(gone)
        found = seawall("list", "--config", config, "--json")
        assert (found.code, labels(found), found.json["read_from"]) == (81, before, ["offsite", "vault"])
    new: RepositorySettings = server.settings()
    config.write_text(text.replace(place.url, new.url).replace(place.endpoint, new.endpoint))
    done = seawall("mirror", "--location", "primary", "--begin", "--config", config, "--json")
    assert done.code == 0, done.out
    now = seawall("list", "--config", config, "--json")
    assert (now.code, labels(now), now.json["read_from"]) == (0, before, ["primary"])


def test_a_copy_is_proved_object_by_object_without_the_primary(seawall: Run, site: Path) -> None:
    (site.parent / "repository").rename(site.parent / "gone")
    done = seawall("verify", "shop", "--location", "offsite", "--heal", "--config", site, "--json")
    (offsite,) = done.json["locations"]
    assert offsite["objects"] == 9, "bundles, documents and WAL of three backups"
    # The segments of these backups are none of PostgreSQL's, and nothing else is wrong.
    assert [name for name in offsite["wrong"] if "/wal/" not in name] == []


def test_a_proof_of_the_copies_is_not_recorded_as_one_of_the_primary(seawall: Run, site: Path) -> None:
    (site.parent / "repository").rename(site.parent / "gone")
    done = seawall("verify", "shop", "--up-to", "hash-good", "--config", site, "--json")
    assert (done.code, done.json["verdicts"][0]["good"]) == (81, True)
    (record,) = done.json["records"]
    assert record["recorded"] is False
    assert "the copies in offsite and vault" in record["why"]


def test_a_location_that_holds_another_repository_is_never_restored_from(site: Path, seawall: Run) -> None:
    offsite = site.parent / "offsite"
    shutil.rmtree(offsite)
    offsite.mkdir()
    other = Repository.create(open_storage(RepositorySettings(url=str(offsite))), now=NOW)
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(site.parent / "ring"))
    a_backup(other.source("shop"), sealing, 4, 7)
    heard: list[Event] = []
    found = locations.nearest(load(site), Observer(heard.append))
    assert found.names == ("primary", "vault")
    own, foreign = Repository.open(found).source("shop").labels(), other.source("shop").labels()
    assert len(own) == 3
    assert not set(own) & set(foreign)
    said = [event.message for event in heard if isinstance(event, Noticed)]
    assert len(said) == 1
    assert f"offsite cannot be read and is left out: {other.storage.url} is repository {other.id}" in said[0]


def foreign(folder: Path) -> Repository:
    """Another repository where a copy was."""
    shutil.rmtree(folder)
    folder.mkdir()
    return Repository.create(open_storage(RepositorySettings(url=str(folder))), now=NOW)


def test_a_foreign_repository_in_the_first_location_does_not_stand_in_for_the_primary(seawall: Run, site: Path) -> None:
    before = labels(seawall("list", "--config", site, "--json"))
    (site.parent / "repository").rename(site.parent / "gone")
    foreign(site.parent / "offsite")
    found = seawall("list", "--config", site, "--json")
    assert (labels(found), found.json["read_from"]) == (before, ["vault"])


def test_of_repositories_with_the_same_sources_the_one_counts_that_is_known_or_lies_in_more_places(site: Path) -> None:
    ours = Repository.open(open_storage(load(site).repository)).id
    (site.parent / "repository").rename(site.parent / "gone")
    other = foreign(site.parent / "offsite")
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(site.parent / "ring"))
    a_backup(other.source("shop"), sealing, 4, 7)

    def read(config: Path, known: str = "") -> tuple[str, ...]:
        found = locations.others(load(config), Observer(), knows=lambda one: one == known)
        assert found is not None
        found.close()
        return found.names

    assert read(site, ours) == ("vault",)
    assert read(site, other.id) == ("offsite",)
    shutil.copytree(site.parent / "vault", site.parent / "third")
    site.write_text(site.read_text() + f'\n[locations.third]\nurl = "{site.parent / "third"}"\n')
    assert read(site) == ("third", "vault")


def test_who_cancels_while_locations_are_opened_is_heard(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled(*_: object) -> Any:
        raise Cancelled("on request")

    monkeypatch.setattr(locations, "opened", cancelled)
    for reading in (locations.nearest, locations.others):
        with pytest.raises(Cancelled):
            reading(load(site), Observer())


def test_audit_that_was_lost_with_the_primary_is_recorded_in_the_catalog_which_goes_on_from_the_new_end(
    seawall: Run, site: Path
) -> None:
    old = AuditLog(open_storage(load(site).repository))
    old.append("ada", "hold", "shop", {}, now=NOW)
    assert seawall("mirror", "--config", site, "--json").code == 0
    # One more, which comes to no copy; the catalog sees it.
    lost = old.append("ada", "release-hold", "shop", {}, now=NOW)
    with Catalog.open(load(site).catalog.url, create=True) as catalog:
        anchors.compared(catalog, Repository.open(open_storage(load(site).repository)), now=NOW)
        shutil.rmtree(site.parent / "repository")
        (site.parent / "repository").mkdir()
        done = seawall("mirror", "--location", "primary", "--begin", "--config", site, "--json")
        assert done.code == 0, done.out
        entry = next(one for one in catalog.audit_entries() if one.action == "primary.fill")
        assert entry.details["audit_ended"] == f"{lost.number} {lost.digest}"
        assert entry.details["audit_goes_on_after"].startswith("1 ")
        # Else this said that somebody had cut the audit, today and ever after.
        assert anchors.compared(catalog, Repository.open(open_storage(load(site).repository)), now=NOW).number == 2
        old.append("ada", "hold", "shop", {}, now=NOW)
        assert anchors.compared(catalog, Repository.open(open_storage(load(site).repository)), now=NOW).number == 3
