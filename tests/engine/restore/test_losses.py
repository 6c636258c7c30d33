"""What the primary lost is told by the other locations, and brought back; what it let go is not."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import losses, retention
from seawall.audit import AuditLog
from seawall.catalog import Catalog
from seawall.events import silent
from seawall.losses import LetGo
from seawall.repository import Repository, SourceArea
from seawall.settings import PRIMARY
from seawall.storage.local import LocalStorage


@pytest.fixture
def copied(place: Any) -> Any:
    """The same, its copies whole."""
    with place.catalog() as catalog:
        assert place.mirrored(catalog).failures == {}
    return place


def codes(found: list[Any]) -> set[str]:
    return {finding.code for finding in found}


def missed(place: Any, **more: Any) -> list[Any]:
    area = place.repository().source("shop")
    arguments = {"within": timedelta(hours=1), "now": place.site.at(120), "observe": silent()} | more
    return losses.missed(place.settings, area, PRIMARY, **arguments)


def layout_of(place: Any) -> Any:
    return place.repository().source("shop").layout


def test_nothing_is_missed_where_nothing_is_lost(copied: Any) -> None:
    assert missed(copied) == []


def test_wal_a_history_and_a_whole_backup_come_back_to_the_primary(copied: Any) -> None:
    layout, label = layout_of(copied), copied.second.label
    root: Path = copied.root / PRIMARY
    area = copied.repository().source("shop")
    area.wal.put_history("00000002.history", b"1\t0/900000\tpromoted\n", copied.site.sealing)
    with copied.catalog() as catalog:
        copied.mirrored(catalog)
    sound = {path.relative_to(root): path.read_bytes() for path in copied.objects()}
    lost = [root / layout.segment(name) for name in sorted(area.wal.names())[2:4]]
    for path in lost:
        path.unlink()
    (root / layout.history(2)).unlink()
    shutil.rmtree(root / layout.backup(label))
    assert copied.repository().source("shop").labels() == (copied.first.label,)
    assert codes(missed(copied)) == {"wal-lost", "history-lost", "backup-lost"}
    with copied.catalog() as catalog:
        assert not copied.proved(catalog, PRIMARY, heal=False).good
        assert ("copy-damaged", f"shop {PRIMARY}") in alerts(catalog)
        done = copied.proved(catalog, PRIMARY)
        assert done.good
        assert ("copy-damaged", f"shop {PRIMARY}") not in alerts(catalog)
    assert {path.relative_to(root): path.read_bytes() for path in copied.objects()}.items() >= sound.items()
    assert missed(copied) == []


def test_a_manifest_alone_makes_its_backup_listed_again(copied: Any) -> None:
    manifest = copied.root / PRIMARY / layout_of(copied).manifest(copied.first.label)
    manifest.unlink()
    found = missed(copied)
    assert [(one.code, one.subject) for one in found] == [
        ("backup-lost", layout_of(copied).manifest(copied.first.label))
    ]
    with copied.catalog() as catalog:
        assert copied.proved(catalog, PRIMARY).good
    assert copied.repository().source("shop").labels() == (copied.first.label, copied.second.label)


def test_what_the_primary_let_go_is_not_brought_back(copied: Any) -> None:
    repository = copied.repository()
    area, policy = repository.source("shop"), retention.RetentionPolicy.of_days(7)
    for name in ("expire", "collect"):
        AuditLog(repository.storage).append("ada", name, f"shop {copied.first.label}", {}, now=copied.site.at(90))
    shutil.rmtree(copied.root / PRIMARY / area.layout.backup(copied.first.label))
    names = sorted(area.wal.names())
    AuditLog(repository.storage).append(
        "ada", "collect-wal", f"shop {names[0]}..{names[1]}", {}, now=copied.site.at(90)
    )
    for name in names[:2]:
        (copied.root / PRIMARY / area.layout.segment(name)).unlink()
    assert missed(copied) == []
    # Without the audit they would be missed, for the rules keep them.
    there = SourceArea(LocalStorage(copied.root / "vault"), "shop")
    found = losses.lost(area, "vault", there, policy, LetGo(), now=copied.site.at(120))
    assert codes(found) == {"wal-lost", "backup-lost"}


def test_what_the_rules_of_the_primary_do_not_keep_is_not_missed(copied: Any) -> None:
    area, policy = copied.repository().source("shop"), retention.RetentionPolicy.of_days(1)
    shutil.rmtree(copied.root / PRIMARY / area.layout.backup(copied.first.label))
    there = SourceArea(LocalStorage(copied.root / "vault"), "shop")
    assert losses.lost(area, "vault", there, policy, LetGo(), now=copied.site.at(120))
    later = copied.site.at(120) + timedelta(days=9)
    assert losses.lost(area, "vault", there, policy, LetGo(), now=later) == []


def test_a_single_wrap_of_a_key_may_have_been_retired_and_the_last_one_is_missed(copied: Any) -> None:
    area, there = copied.repository().source("shop"), SourceArea(LocalStorage(copied.root / "vault"), "shop")
    for number in (1, 2):
        there.storage.put(there.layout.key("wal-20261123T120000Z-0123abcd", number), [b"{}"])
    area.storage.put(area.layout.key("wal-20261123T120000Z-0123abcd", 2), [b"{}"])
    assert missed(copied) == []
    area.storage.delete(area.layout.key("wal-20261123T120000Z-0123abcd", 2))
    assert [one.code for one in missed(copied)] == ["key-lost", "key-lost"]


def test_a_location_that_does_not_answer_tells_nothing_and_the_others_do(copied: Any) -> None:
    (copied.root / "offsite").rename(copied.root / "away")
    (copied.root / PRIMARY / layout_of(copied).manifest(copied.first.label)).unlink()
    assert codes(missed(copied)) == {"backup-lost"}
    (copied.root / "vault").rename(copied.root / "away too")
    assert missed(copied) == []


def test_an_object_of_another_size_is_healed_also_where_no_backup_lists_it(copied: Any) -> None:
    """A truncated document and a lost manifest: no backup is listed there that would lead to either."""
    layout, vault = layout_of(copied), copied.root / "vault"
    head, manifest = layout.head(copied.first.label), layout.manifest(copied.first.label)
    (vault / head).chmod(0o644)
    (vault / head).write_bytes(b"{")
    (vault / manifest).unlink()
    with copied.catalog() as catalog:
        stuck = copied.mirrored(catalog)
        assert set(stuck.reports["vault"].left) == {head}
        assert copied.first.label not in Repository.open(LocalStorage(vault)).source("shop").labels()
        done = copied.proved(catalog, "vault")
        assert [one.name for one in done.healed.healed] == [head]
        assert done.good
        assert copied.mirrored(catalog).reports["vault"].left == {}
    assert copied.first.label in Repository.open(LocalStorage(vault)).source("shop").labels()


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "written anew"])
def test_an_audit_that_was_cut_or_written_anew_is_told_by_the_copies_which_keep_theirs(copied: Any, cut: bool) -> None:
    primary, vault = (LocalStorage(copied.root / name) for name in (PRIMARY, "vault"))
    for number in range(3):
        AuditLog(primary).append("ada", "hold", f"shop {number}", {}, now=copied.site.at(90))
    with copied.catalog() as catalog:
        assert copied.mirrored(catalog).reports["vault"].left == {}
        known = {stat.name: b"".join(vault.get(stat.name)) for stat in vault.list("audit/")}
        for name in sorted(known)[1:]:
            primary.delete(name)
        for number in range(0 if cut else 5):
            AuditLog(primary).append("eve", "hold", f"shop {number}", {}, now=copied.site.at(95))
        told = copied.mirrored(catalog)
        assert set(told.reports["vault"].left) == {"audit/"}
        assert {("audit-forked", "shop vault"), ("audit-forked", "shop offsite")} <= alerts(catalog)
        assert {stat.name: b"".join(vault.get(stat.name)) for stat in vault.list("audit/")} == known
        for name in known:
            vault.delete(name)
        copied.mirrored(catalog)
        assert ("audit-forked", "shop vault") not in alerts(catalog)
    assert [stat.name for stat in vault.list("audit/")] == [stat.name for stat in primary.list("audit/")]


def alerts(catalog: Catalog) -> set[tuple[str, str]]:
    return {(alert.alert_type, alert.subject) for alert in catalog.alerts()}
