"""`seawall expire`, `hold` and `list` on a repository with a past."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall.catalog import Catalog
from seawall.catalog.views import ObjectProof
from seawall.keys import KeyRing
from seawall.model import BackupKind, BackupLabel, ClusterIdentity, Compression, CopyMode, Head, SealingMode
from seawall.repository import Repository, Sealing, SourceArea, documents
from seawall.settings import load
from seawall.storage import open_storage
from seawall.wal import Lsn, Segment

Run = Callable[..., Any]
NOW = datetime.now(UTC).replace(microsecond=0)


def a_backup(area: SourceArea, sealing: Sealing, days_ago: int, segment: int) -> BackupLabel:
    at = NOW - timedelta(days=days_ago, hours=1)
    label = BackupLabel(at)
    writer = area.begin(label, sealing, at)
    name, bundle = writer.bundle_writer(1)
    stored = writer.put_bundle(name, bundle, bundle.stream([]))
    head = Head(
        label=label, source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT, cluster=ClusterIdentity(7, 18, (1,)),
        server_version=180006, timeline=1, start_lsn=Lsn(segment << 24), stop_lsn=Lsn((segment + 1) << 24),
        segment_bytes=1 << 24, began_at=at, ended_at=at, stopped_at=at, plain_bytes=2_000_000, stored_bytes=1_000_000,
        file_count=0, object_count=1, compression=Compression.NONE, sealing=SealingMode.NONE, key_id="",
        manifest_sha256="", manifest_bytes=0,
    )  # fmt: skip
    with area.lease("test", "backup") as held:
        writer.commit(head, objects=[stored], specials={}, files=[], held=held)
    area.wal.put_segment(Segment(1, segment).name, b"w" * 100, sealing)
    return label


@pytest.fixture(scope="module")
def made(pattern: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a repository with a full backup of each of the last 50 days; made once."""
    directory = tmp_path_factory.mktemp("past") / "site"
    config = moved(pattern, directory)
    area = Repository.open(open_storage(load(config).repository)).source("shop")
    sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(directory.parent / "ring"))
    for days in range(49, -1, -1):
        a_backup(area, sealing, days, 100 - days)
    return config


def moved(site: Path, directory: Path) -> Path:
    config = shutil.copytree(site, directory) / "seawall.toml"
    config.write_text(config.read_text().replace(str(site), str(directory)))
    return config


@pytest.fixture
def past(made: Path, tmp_path: Path) -> tuple[Path, SourceArea, list[BackupLabel]]:
    config = moved(made.parent, tmp_path / "site")
    area = Repository.open(open_storage(load(config).repository)).source("shop")
    return config, area, list(area.labels())


def test_a_dry_run_gives_a_reason_for_every_backup_and_changes_nothing(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run, tree: Callable[[Path], Any]
) -> None:
    config, _, labels = past
    before = tree(config.parent)
    (shop,) = seawall("expire", "shop", "--dry-run", "--config", config, "--json").json["sources"]
    assert tree(config.parent) == before
    told = {item["label"]: item["reasons"] for item in (*shop["keep"], *shop["expire"])}
    assert set(told) == {str(label) for label in labels}
    assert all(told.values())
    assert any("daily: the last of" in why for why in told[str(labels[-20])])
    assert {str(label) for label in labels[-30:]} <= {item["label"] for item in shop["keep"]}
    assert 0 < len(shop["expire"]) < 20


def test_what_expire_marks_can_be_taken_back(past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run) -> None:
    config, area, _ = past
    (shop,) = seawall("expire", "shop", "--config", config, "--json").json["sources"]
    gone = [item["label"] for item in shop["expire"]]
    assert not {str(label) for label in area.labels()} & set(gone)
    assert seawall("expire", "shop", "--undo", gone[0], "--config", config, "--json").code == 0
    assert gone[0] in {str(label) for label in area.labels()}


def test_a_simulation_shows_each_year_and_changes_nothing(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run, tree: Callable[[Path], Any]
) -> None:
    config, *_ = past
    before = tree(config.parent)
    found = seawall("expire", "shop", "--simulate", "2", "--config", config, "--json").json["simulation"]
    assert tree(config.parent) == before
    assert [year["backups"] for year in found["years"]] == [year["fulls"] for year in found["years"]]
    assert all(year["stored_bytes"] >= year["backups"] * 1_000_000 for year in found["years"])
    assert found["peak_bytes"] >= max(year["stored_bytes"] for year in found["years"])
    wrong = (("--full-hours", "0"), ("--incremental-hours", "-1"), ("--full-hours", "9" * 15), ("--growth", "-200"))
    for more in (("--simulate", "0"), *(("--simulate", "2", *two) for two in wrong)):
        assert seawall("expire", "shop", *more, "--config", config, "--json").code == 2


def test_a_hold_keeps_its_backup_and_with_through_now_the_wal_behind_it(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run
) -> None:
    config, _, labels = past
    what = ("--label", labels[0], "--reason", "dispute", "--through-now")
    placed = seawall("hold", "place", "shop", *what, "--config", config, "--json")
    assert placed.code == 0
    (hold,) = seawall("hold", "list", "shop", "--config", config, "--json").json["holds"]
    assert hold["through"] == Segment(1, 100).name
    (shop,) = seawall("expire", "shop", "--dry-run", "--config", config, "--json").json["sources"]
    kept = {item["label"]: item["reasons"] for item in shop["keep"]}
    assert any(why.endswith(": dispute") for why in kept[str(labels[0])])
    assert shop["wal"] == []
    assert seawall("hold", "release", "shop", "--id", hold["id"], "--config", config, "--json").code == 0
    (shop,) = seawall("expire", "shop", "--dry-run", "--config", config, "--json").json["sources"]
    assert shop["wal"] != []


def test_a_hold_that_would_keep_nothing_is_refused_and_leaves_no_trace(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run, tree: Callable[[Path], Any]
) -> None:
    config, area, labels = past
    before = tree(config.parent)
    for more, said in (
        (("--reason", "audit", "--until", "2026-01-31T00:00:00Z"), "is over already"),
        (("--reason", "audit", "--until", "2126-01-31"), "no offset"),
        (("--reason", "  "), "--reason"),
        ((), "--reason"),
    ):
        done = seawall("hold", "place", "shop", "--label", labels[0], *more, "--config", config, "--json")
        assert done.code == 2
        assert said in done.error["message"]
    assert area.holds(NOW) == ()
    assert tree(config.parent) == before


def test_what_was_marked_by_a_slip_is_not_removed_by_a_cleanup_whose_policy_keeps_it(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run
) -> None:
    config, area, _ = past
    what = ("expire", "shop", "--config", config, "--json")
    marked = {item["label"] for item in seawall(*what, "--days", "1").json["sources"][0]["expire"]}
    for stat in list(area.storage.list(area.layout.expired)):
        mark = documents.get(area.storage, stat.name)
        area.storage.delete(stat.name)
        two_days = (NOW - timedelta(days=2)).isoformat()
        documents.put(area.storage, stat.name, mark | {"marked_at": two_days})
    (done,) = seawall(*what).json["sources"]
    stayed = {label for label, why in done["left"].items() if "it stays after all: " in why}
    assert stayed
    assert stayed | set(done["collected"]) == marked
    assert all(NOW - BackupLabel.parse(label).begun_at > timedelta(days=30) for label in done["collected"])
    assert stayed <= {str(label) for label in area.labels(with_expired=True)}
    (again,) = seawall(*what, "--days", "1").json["sources"]
    assert set(again["collected"]) == stayed, "who means it says it again"


@pytest.mark.parametrize("location", ["primary", "offsite"])
def test_a_backup_that_was_found_damaged_in_a_location_counts_as_no_good_one_there(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run, tmp_path: Path, location: str
) -> None:
    config, area, labels = past
    text = config.read_text().replace("[sources.shop]\n", '[sources.shop]\nmirrors = ["offsite"]\n')
    config.write_text(f'{text}\n[locations.offsite]\nurl = "{tmp_path / "offsite"}"\n')
    shutil.copytree(Path(area.storage.url.removeprefix("file://")), tmp_path / "offsite")
    what = ("expire", "shop", "--location", location, "--dry-run", "--config", config, "--json")

    def reasons() -> dict[str, list[str]]:
        return {item["label"]: item["reasons"] for item in seawall(*what).json["sources"][0]["keep"]}

    newest = str(labels[-1])
    assert not any("no good one" in why for why in reasons()[newest])
    repository, name = Repository.open(area.storage), next(iter(area.needed_objects(labels[-1])))
    with Catalog.open(load(config).catalog.url, create=True) as catalog:
        catalog.record_proofs(repository.id, location, [ObjectProof(name, None, NOW, "its SHA-256 differs")])
    told = reasons()
    assert f"it counts as no good one: {name}: its SHA-256 differs" in told[newest]
    assert "one of the last good full backups" in told[str(labels[-2])]


def test_a_running_backup_keeps_a_cleanup_waiting_for_another_time(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run
) -> None:
    config, area, labels = past
    with area.lease("another-host:7", "backup"):
        done = seawall("expire", "shop", "--config", config, "--json")
        assert (done.code, done.error["code"], done.error["retryable"]) == (35, "lease-held", True)
    assert area.labels() == tuple(labels)


def test_one_damaged_head_and_one_missing_manifest_are_listed_as_what_they_are(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run
) -> None:
    config, area, labels = past
    damaged, bare = labels[3], labels[5]
    area.storage.delete(area.layout.head(damaged))
    area.storage.put(area.layout.head(damaged), [b"{}"])
    area.storage.delete(area.layout.manifest(bare))
    found = seawall("list", "shop", "--config", config, "--json").json
    assert len(found["backups"]) == len(labels) - 2
    told = {item["label"]: item["why"] for item in found["troubled"]}
    assert "head cannot be read" in told[str(damaged)]
    assert "manifest is missing while its copy is there" in told[str(bare)]
    verified = seawall("verify", "shop", bare, "--config", config, "--json")
    assert "its manifest is missing, while its copy is there" in verified.error["message"]


def test_the_copies_in_a_location_are_cleaned_by_its_own_rules(
    past: tuple[Path, SourceArea, list[BackupLabel]], seawall: Run, tmp_path: Path
) -> None:
    config, area, labels = past
    text = config.read_text().replace("[sources.shop]\n", '[sources.shop]\nmirrors = ["offsite"]\n')
    rules = "[sources.shop.retention.locations.offsite]\nwindow_days = 3\ndaily_days = 3\nfull_days = 3\n"
    place = f'[locations.offsite]\nurl = "{tmp_path / "offsite"}"\n'
    config.write_text(f"{text}\n{rules}weekly_months = 0\nmonthly_years = 0\n\n{place}")
    (tmp_path / "offsite").mkdir()
    shutil.copytree(Path(area.storage.url.removeprefix("file://")), tmp_path / "offsite", dirs_exist_ok=True)
    what = ("expire", "shop", "--location", "offsite", "--config", config, "--json")
    (dry,) = seawall(*what, "--dry-run").json["sources"]
    assert {item["label"] for item in dry["keep"]} == {str(label) for label in labels[-4:]}
    (done,) = seawall(*what).json["sources"]
    assert done["marked"] >= len(done["expire"]) == len(labels) - 4
    assert area.labels() == tuple(labels), "what lies here is not touched"
    assert seawall("expire", "shop", "--location", "moon", "--config", config, "--json").code == 2
    again = seawall("expire", "shop", "--dry-run", "--config", config, "--json").json["sources"][0]
    assert not any("shall hold it" in why for item in again["keep"] for why in item["reasons"])


def test_a_hold_that_is_lost_is_found_by_verification_of_all_and_ended_in_the_audit(
    seawall: Run, made: Path, tmp_path: Path
) -> None:
    config = moved(made.parent, tmp_path / "site")
    newest = seawall("list", "shop", "--config", config, "--json").json["backups"][-1]["label"]
    placed = seawall("hold", "place", "shop", "--label", newest, "--reason", "r", "--config", config, "--json")
    hold_id = placed.json["hold"]

    def codes() -> set[str]:
        done = seawall("verify", "shop", "--all", "--up-to", "present", "--config", config, "--json")
        return {finding["code"] for finding in done.json["findings"]}

    assert "hold-lost" not in codes()
    (config.parent / "repository" / "sources" / "shop" / "holds" / f"{hold_id}.json").unlink()
    assert "hold-lost" in codes()
    assert seawall("hold", "release", "shop", "--id", "another", "--config", config, "--json").code == 2
    assert seawall("hold", "release", "shop", "--id", hold_id, "--config", config, "--json").code == 0
    assert "hold-lost" not in codes()
