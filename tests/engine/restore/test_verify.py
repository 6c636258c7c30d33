"""Verification finds every kind of damage, says which object it is, and never takes an outage for damage."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from seawall import verify
from seawall.errors import BackupMissing, Cancelled, KeyMissing, StorageUnreachable
from seawall.events import Advanced, Event, Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Head, Proof, SealingMode, Verdict
from seawall.repository import documents
from seawall.wal import Segment


def checked(site: Any, head: Head, up_to: Proof = Proof.WAL_CONTINUOUS, observe: Observer | None = None) -> Verdict:
    return verify.check(
        site.area, head.label, site.ring, up_to=up_to, now=site.at(60), observe=observe or Observer(), workers=2
    )


@pytest.fixture(params=list(SealingMode))
def backed_up(fresh_site: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Head]]:
    site = fresh_site()
    site.mode = request.param
    head = site.backup(0, 1, 3.5)
    site.wal(1, 3)
    yield site, head


@pytest.fixture
def one(site: Any) -> tuple[Any, Head]:
    head = site.backup(0, 1, 3.5)
    site.wal(1, 3)
    return site, head


def bundle_of(site: Any, head: Head) -> str:
    return next(s.name for s in site.storage.list(site.area.layout.backup(head.label)) if "/bundles/" in s.name)


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


def test_a_whole_backup_is_proved_at_every_level(backed_up: tuple[Any, Head]) -> None:
    site, head = backed_up
    for level in (Proof.PRESENT, Proof.HASH_GOOD, Proof.DECRYPTABLE, Proof.WAL_CONTINUOUS):
        verdict = checked(site, head, level)
        assert (verdict.good, verdict.reached) == (True, level)
    assert (verdict.objects, verdict.plain_bytes) == (1, head.plain_bytes)
    assert verdict.checked_at == site.at(60)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_anywhere_in_a_bundle_is_found(backed_up: tuple[Any, Head], where: str) -> None:
    site, head = backed_up
    name = bundle_of(site, head)
    data = bytearray(site.read(name))
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    site.overwrite(name, bytes(data))
    for level in (Proof.HASH_GOOD, Proof.DECRYPTABLE):
        verdict = checked(site, head, level)
        assert verdict.reached is Proof.PRESENT
        assert [(f.code, f.subject) for f in verdict.findings] == [("damaged", name)]


def test_a_cut_or_lengthened_bundle_is_found_by_its_size_alone(one: tuple[Any, Head]) -> None:
    site, head = one
    name = bundle_of(site, head)
    whole = site.read(name)
    for data in (whole[:-1], whole + b"x", b""):
        site.overwrite(name, data)
        verdict = checked(site, head, Proof.PRESENT)
        assert (verdict.reached, codes(verdict)) == (None, ["size"])


def test_a_missing_bundle_is_named(one: tuple[Any, Head]) -> None:
    site, head = one
    name = bundle_of(site, head)
    site.storage.delete(name)
    verdict = checked(site, head)
    assert verdict.reached is None
    assert [(f.code, f.subject) for f in verdict.findings] == [("missing", name)]


def test_a_bundle_of_another_backup_in_its_place_is_found(backed_up: tuple[Any, Head]) -> None:
    site, head = backed_up
    other = site.backup(10, 1, 3.5)
    name = bundle_of(site, head)
    site.overwrite(name, site.read(bundle_of(site, other)))
    verdict = checked(site, head)
    assert not verdict.good
    assert all(finding.subject == name for finding in verdict.findings)


def test_one_bad_copy_of_the_manifest_is_a_finding_but_the_rest_is_still_proved(backed_up: tuple[Any, Head]) -> None:
    site, head = backed_up
    layout = site.area.layout
    for name in (layout.manifest(head.label), layout.manifest_copy(head.label)):
        right = site.read(name)
        site.overwrite(name, right[:-1] + bytes([right[-1] ^ 1]))
        verdict = checked(site, head)
        assert (verdict.reached, codes(verdict)) == (Proof.WAL_CONTINUOUS, ["manifest-damaged"])
        assert not verdict.good
        site.overwrite(name, right)


def test_two_bad_copies_of_the_manifest_prove_nothing(one: tuple[Any, Head]) -> None:
    site, head = one
    for name in (site.area.layout.manifest(head.label), site.area.layout.manifest_copy(head.label)):
        site.overwrite(name, b"x" * 100)
    verdict = checked(site, head)
    assert verdict.reached is None
    assert "head-or-manifest" in codes(verdict)


def test_a_head_that_was_changed_consistently_still_contradicts_the_manifest(backed_up: tuple[Any, Head]) -> None:
    """Who can write to the storage can forge the clear head, but not what the manifest repeats under seal."""
    site, head = backed_up
    name = site.area.layout.head(head.label)
    document = documents.get(site.storage, name)
    site.overwrite(name, documents.encode({**document, "stop_lsn": "0/200000"}, name=name))
    verdict = checked(site, head)
    assert (verdict.reached, codes(verdict)) == (None, ["head-or-manifest"])


def test_a_file_whose_extents_do_not_cover_it_is_found(site: Any) -> None:
    head = site.backup(0, 1, 2, wrong_size="base/1/1259")
    site.wal(1, 2)
    verdict = checked(site, head)
    assert "base/1/1259" in verdict.findings[0].message


def test_missing_damaged_and_foreign_wal_are_told_apart(one: tuple[Any, Head], wal_of: Any) -> None:
    site, head = one
    names = [Segment(1, number, 1 << 20) for number in (1, 2, 3)]
    site.storage.delete(site.area.layout.segment(names[0].name))
    flipped = bytearray(site.read(site.area.layout.segment(names[1].name)))
    flipped[-1] ^= 1
    site.overwrite(site.area.layout.segment(names[1].name), bytes(flipped))
    site.storage.delete(site.area.layout.segment(names[2].name))
    site.area.wal.put_segment(names[2].name, wal_of(names[2], 42), site.sealing)
    verdict = checked(site, head)
    assert verdict.reached is Proof.DECRYPTABLE
    assert [(f.code, f.subject) for f in verdict.findings] == [
        ("wal-missing", names[0].name),
        ("wal-damaged", names[1].name),
        ("wal-damaged", names[2].name),
    ]
    assert "cluster 42" in verdict.findings[2].message


def test_hashes_are_proved_without_any_private_key(sealed_site: Any, tmp_path: Path) -> None:
    head = sealed_site.backup(0, 1, 2)
    sealed_site.wal(1, 2)
    with KeyRing(tmp_path / "public-only") as empty:
        area = type(sealed_site.repository).open(sealed_site.storage).source("shop")
        shallow = verify.check(area, head.label, empty, up_to=Proof.HASH_GOOD, now=sealed_site.now, observe=Observer())
        assert (shallow.good, shallow.reached) == (True, Proof.HASH_GOOD)
        with pytest.raises(KeyMissing):
            verify.check(area, head.label, empty, now=sealed_site.now, observe=Observer())


def test_an_outage_is_no_damage(one: tuple[Any, Head], monkeypatch: pytest.MonkeyPatch) -> None:
    site, head = one
    name = bundle_of(site, head)
    get = site.storage.get

    def failing(asked: str, *more: Any) -> Iterator[bytes]:
        if asked == name:
            raise StorageUnreachable("no answer")
        return get(asked, *more)  # type: ignore[no-any-return]

    monkeypatch.setattr(site.storage, "get", failing)
    with pytest.raises(StorageUnreachable):
        checked(site, head)


def test_an_unknown_backup_is_no_finding(site: Any) -> None:
    with pytest.raises(BackupMissing):
        verify.check(site.area, BackupLabel.parse("20261122T000000Z-full"), site.ring, now=site.now, observe=Observer())


def test_progress_adds_up_and_cancelling_stops(one: tuple[Any, Head], content: Mapping[str, bytes]) -> None:
    site, head = one
    heard: list[Event] = []
    checked(site, head, observe=Observer(heard.append))
    assert sum(e.plain_bytes for e in heard if isinstance(e, Advanced)) == sum(map(len, content.values()))
    stopping = Observer()
    stopping.cancel.set()
    with pytest.raises(Cancelled):
        checked(site, head, observe=stopping)
    assert not [t for t in threading.enumerate() if t.name.startswith("verify")]
