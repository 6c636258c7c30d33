"""Whatever becomes of an object, `verify` finds it, and no restore ever yields wrong files without a word."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall.errors import BackupMissing, SeawallError, WalGap
from seawall.events import Event, Noticed, Observer
from seawall.model import Head, Proof, RecoveryTarget, TargetKind
from seawall.repository import Repository
from seawall.storage.local import LocalStorage
from seawall.wal import Segment

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t"


@dataclass
class Sound:
    """A site whose repository is whole: two backups, and WAL behind them; `later` is a segment behind both."""

    site: Site
    path: Path
    first: Head
    last: Head
    later: Segment
    expected: list[tuple[object, ...]]


@pytest.fixture(scope="module")
def sound(site18: Site) -> Sound:
    site18.query("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 30000) AS n")
    first = site18.backup()
    site18.query("INSERT INTO t SELECT n, 'first' FROM generate_series(1, 500) AS n")
    site18.ship()
    last = site18.backup()
    site18.query("INSERT INTO t SELECT n, 'later' FROM generate_series(1, 500) AS n")
    later = site18.ship()
    site18.query("INSERT INTO t SELECT n, 'latest' FROM generate_series(1, 500) AS n")
    site18.ship()
    expected = site18.query(ROWS)
    site18.stop_receiving()
    return Sound(site18, site18.home / "repository", first, last, later, expected)


@pytest.fixture
def copy(sound: Sound, tmp_path: Path) -> Iterator[Sound]:
    """The same on a copy of the repository, which a test may damage."""
    place = tmp_path / "repository"
    subprocess.run(["cp", "-al", str(sound.path), str(place)], check=True)
    yield replace(sound, path=place, site=_on(sound.site, place))


def _on(site: Site, place: Path) -> Site:
    storage = LocalStorage(place)
    return replace(site, storage=storage, repository=Repository.open(storage))


def _objects(sound: Sound) -> dict[str, tuple[str, str]]:
    """Objects that a restore needs, and for each another one of its kind whose content is put in its place."""
    layout = sound.site.area.layout
    bundles = sorted(o.name for o in sound.site.area.stored_objects(sound.last.label) if "/bundles/" in o.name)
    start = Segment.containing(sound.last.start_lsn, 1, sound.last.segment_bytes).name
    keys = [key.name for key in sound.site.storage.list(layout.keys)]
    wal_key = next(name for name in keys if "/wal-" in name)
    own = layout.key(sound.last.key_id, 1)
    return {
        "a bundle": (bundles[0], bundles[1]),
        "the block map": (layout.blocks(sound.last.label), layout.blocks(sound.first.label)),
        "the head": (layout.head(sound.last.label), layout.head(sound.first.label)),
        "the list of objects": (layout.objects(sound.last.label), layout.objects(sound.first.label)),
        "the manifest": (layout.manifest(sound.last.label), layout.manifest(sound.first.label)),
        "the manifest's copy": (layout.manifest_copy(sound.last.label), layout.manifest_copy(sound.first.label)),
        "the backup's key": (own, layout.key(sound.first.key_id, 1)),
        "the backup's WAL": (layout.segment(start), layout.segment(sound.later.name)),
        "the key of the WAL": (wal_key, own),
    }


def _damage(path: Path, other: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    # The copy is made of hard links: only a new file leaves the original as it is.
    path.unlink()
    if how == "missing":
        return
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "cut":
        del content[len(content) - len(content) // 3 :]
    elif how == "exchanged":
        content[:] = other.read_bytes()
    path.write_bytes(content)


OBJECTS = (
    "a bundle",
    "the block map",
    "the head",
    "the list of objects",
    "the manifest",
    "the manifest's copy",
    "the backup's key",
    "the backup's WAL",
    "the key of the WAL",
)


@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "exchanged"])
@pytest.mark.parametrize("which", OBJECTS)
def test_damage_is_found_by_verify_and_never_restored_as_if_it_were_data(
    copy: Sound, which: str, how: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    name, other = _objects(copy)[which]
    assert copy.site.verify(copy.last.label).reached is Proof.WAL_CONTINUOUS
    _damage(copy.path / name, copy.path / other, how)
    site = _on(copy.site, copy.path)
    # What a restore does not need, or has twice, must not keep it from succeeding.
    spare = which in ("the block map", "the head", "the list of objects", "the manifest's copy") or (
        which == "the manifest" and how != "missing"
    )
    try:
        verdict = site.verify(copy.last.label)
    except SeawallError as error:
        # A set without its manifest does not exist, and a key that is gone cannot be read around.
        assert which in ("the manifest", "the backup's key", "the key of the WAL"), error
        assert error.hint
    else:
        assert verdict.findings, f"{which} {how} was not found"
        assert spare or verdict.reached is not Proof.WAL_CONTINUOUS
    try:
        # The ring is only asked for where a head is damaged: its manifest says the same.
        with site.restored(label=copy.last.label, ring=lambda: site.ring) as instance:
            assert rows(instance, ROWS) == copy.expected
        restored = True
    except SeawallError as error:
        restored = False
        assert error.message
    assert restored == spare


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_both_manifests_damaged_are_refused_and_the_older_backup_still_leads_to_the_latest(
    copy: Sound, how: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    layout = copy.site.area.layout
    for name in (layout.manifest(copy.last.label), layout.manifest_copy(copy.last.label)):
        _damage(copy.path / name, copy.path / name, how)
    site = _on(copy.site, copy.path)
    assert site.verify(copy.last.label).reached is None
    with pytest.raises(SeawallError, match="manifest"):
        site.run(site.plan(label=copy.last.label))
    with site.restored(label=copy.first.label) as instance:
        assert rows(instance, ROWS) == copy.expected


def test_a_damaged_head_of_one_backup_keeps_no_other_from_being_restored(
    copy: Sound, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    head = copy.site.area.layout.head(copy.last.label)
    _damage(copy.path / head, copy.path / head, "flipped")
    site = _on(copy.site, copy.path)
    plan = site.plan()
    assert plan.head.label == copy.first.label
    assert "damaged" in plan.why
    with site.restored() as instance:
        assert rows(instance, ROWS) == copy.expected


def test_a_gap_in_the_wal_is_refused_by_the_name_of_the_first_missing_segment(copy: Sound) -> None:
    (copy.path / copy.site.area.layout.segment(copy.later.name)).unlink()
    site = _on(copy.site, copy.path)
    for target in (RecoveryTarget(), RecoveryTarget(TargetKind.LSN, str(copy.later.end + 100))):
        with pytest.raises(WalGap, match=copy.later.name):
            site.plan(target)
    # Up to the gap everything can still be had, and the plan says what cannot.
    plan = site.plan(RecoveryTarget(TargetKind.IMMEDIATE))
    assert any("missing" in warning for warning in plan.warnings)


@pytest.mark.parametrize("how", ["cut", "flipped", "exchanged"])
def test_a_damaged_segment_behind_the_backup_stops_recovery_instead_of_ending_it(copy: Sound, how: str) -> None:
    layout = copy.site.area.layout
    path = copy.path / layout.segment(copy.later.name)
    _damage(path, copy.path / layout.segment(copy.later.next().name), how)
    site = _on(copy.site, copy.path)
    plan = site.plan()
    with pytest.raises(SeawallError) as refused:
        site.run(plan)
    assert refused.value.message
    assert not (plan.destination / "postmaster.pid").exists()


def test_a_wrong_key_ring_opens_nothing_and_names_the_keys_that_would(sound: Sound, tmp_path: Path) -> None:
    from seawall.errors import KeyMissing
    from seawall.keys import KeyRing

    with KeyRing(tmp_path / "ring") as stranger:
        stranger.import_keys("\n".join(sound.site.ring.export_public(k.fingerprint) for k in sound.site.ring.list()))
        plan = sound.site.plan()
        with pytest.raises(KeyMissing, match=r"operations|escrow"):
            sound.site.run(plan, ring=stranger)
        # Without private keys the stored bytes can still be proved; with them only, that they open.
        assert sound.site.verify(sound.last.label, Proof.HASH_GOOD, ring=stranger).reached is Proof.HASH_GOOD
        with pytest.raises(KeyMissing):
            sound.site.verify(sound.last.label, Proof.DECRYPTABLE, ring=stranger)


def test_a_restore_that_broke_off_cannot_be_started_and_is_finished_by_a_delta_restore(
    copy: Sound, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    stored = [each for each in copy.site.area.stored_objects(copy.last.label) if "/bundles/" in each.name]
    bundles = sorted(stored, key=lambda each: each.stored_bytes)
    smallest = copy.path / bundles[0].name
    kept = smallest.read_bytes()
    smallest.unlink()
    plan = copy.site.plan(label=copy.last.label)
    with pytest.raises(SeawallError):
        copy.site.run(plan)
    assert not (plan.destination / "global" / "pg_control").exists()
    with pytest.raises(SeawallError, match="not empty") as refused:
        copy.site.plan(into=plan.destination, label=copy.last.label)
    assert "delta" in refused.value.hint
    smallest.write_bytes(kept)
    with pytest.raises(SeawallError, match=r"pg_control|global"):
        copy.site.binaries.usable_by(copy.site.account)
        with copy.site.running(plan.destination):
            pass
    heard: list[Event] = []
    again = copy.site.plan(into=plan.destination, label=copy.last.label, delta=True)
    report = copy.site.run(again, observe=Observer(heard.append))
    assert report.reused_bytes > 0
    assert not [event for event in heard if isinstance(event, Noticed) and event.severity == "critical"]
    with copy.site.running(plan.destination) as instance:
        assert rows(instance, ROWS) == copy.expected
    assert os.path.lexists(plan.destination / "global" / "pg_control")


def test_a_set_without_its_manifest_is_not_there(copy: Sound) -> None:
    (copy.path / copy.site.area.layout.manifest(copy.last.label)).unlink()
    site = _on(copy.site, copy.path)
    assert site.area.labels() == (copy.first.label,)
    with pytest.raises(BackupMissing):
        site.verify(copy.last.label)
