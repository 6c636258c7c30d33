"""A head that is damaged or missing costs nothing but a warning: the manifest repeats it under seal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seawall import restore, verify
from seawall.errors import Damaged
from seawall.events import silent
from seawall.keys import KeyRing
from seawall.model import Head, Proof, RecoveryTarget, SealingMode
from seawall.repository import SourceArea, documents


@pytest.fixture(params=list(SealingMode))
def backed_up(fresh_site: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Head]]:
    site = fresh_site()
    site.mode = request.param
    head = site.backup(0, 1, 3.5)
    site.wal(1, 9, minute=50)
    yield site, head


def damage(site: Any, name: str, how: str) -> None:
    data = site.read(name)
    site.storage.delete(name)
    if how == "flipped":
        site.storage.put(name, [data[:60] + bytes([data[60] ^ 1]) + data[61:]])
    elif how == "cut":
        site.storage.put(name, [data[:60]])


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_the_manifest_stands_in_for_it(backed_up: tuple[Any, Head], how: str, into: Path) -> None:
    site, head = backed_up
    damage(site, site.area.layout.head(head.label), how)
    with pytest.raises(Damaged):
        site.area.head(head.label)
    assert site.area.head(head.label, site.ring) == head
    plan = restore.plan(site.repository, "shop", RecoveryTarget(), into, now=site.at(60), ring=lambda: site.ring)
    assert plan.head == head
    verdict = verify.check(site.area, head.label, site.ring, now=site.at(60), observe=silent())
    assert [finding.code for finding in verdict.findings] == ["head-damaged"]
    assert verdict.reached is Proof.WAL_CONTINUOUS
    assert not verdict.good


def test_so_does_the_copy_when_the_manifest_is_damaged_as_well(backed_up: tuple[Any, Head]) -> None:
    site, head = backed_up
    damage(site, site.area.layout.head(head.label), "flipped")
    damage(site, site.area.layout.manifest(head.label), "cut")
    assert site.area.head(head.label, site.ring) == head
    damage(site, site.area.layout.manifest_copy(head.label), "flipped")
    with pytest.raises(Damaged, match=r"head\.json"):
        site.area.head(head.label, site.ring)


def test_who_has_no_key_is_told_of_the_damage(sealed_site: Any, tmp_path: Path) -> None:
    head = sealed_site.backup(0, 1, 3.5)
    damage(sealed_site, sealed_site.area.layout.head(head.label), "cut")
    with KeyRing(tmp_path / "public") as public:
        for key in sealed_site.ring.list():
            public.import_keys(sealed_site.ring.export_public(key.fingerprint))
        with pytest.raises(Damaged, match=r"head\.json"):
            SourceArea(sealed_site.storage, "shop").head(head.label, public)


def test_a_manifest_of_another_set_is_no_substitute(site: Any) -> None:
    one, two = site.backup(0, 1, 2), site.backup(10, 3, 4)
    layout = site.area.layout
    for name in (layout.manifest, layout.manifest_copy):
        site.overwrite(name(two.label), site.read(name(one.label)))
    damage(site, layout.head(two.label), "flipped")
    with pytest.raises(Damaged):
        site.area.head(two.label, site.ring)


def test_a_sound_head_that_contradicts_its_manifest_is_still_refused(sealed_site: Any) -> None:
    head = sealed_site.backup(0, 1, 3.5)
    name = sealed_site.area.layout.head(head.label)
    document = documents.get(sealed_site.storage, name)
    sealed_site.overwrite(name, documents.encode({**document, "file_count": 1}, name=name))
    with pytest.raises(Damaged, match="does not say what the manifest says"):
        sealed_site.area.manifest(head.label, sealed_site.ring)
