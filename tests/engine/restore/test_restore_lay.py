"""Files come back byte for byte; an unfinished restore cannot start; a delta repairs and follows no link out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seawall import restore
from seawall.errors import Cancelled, Damaged, DestinationInUse, StorageFull
from seawall.events import Advanced, Event, Noticed, Observer
from seawall.model import Head, RecoveryTarget, SealingMode, Tablespace, TargetKind
from seawall.postgres.binaries import Account
from seawall.restore import lay, tree, writing
from seawall.wal import Segment

MARKER = ".seawall-restore.json"


@pytest.fixture
def account() -> Account:
    """The one that runs the tests: files need no other owner here."""
    return Account(os.geteuid(), os.getegid(), "me", Path("/"))


def laid(site: Any, into: Path, account: Account, *, delta: bool = False, **more: Any) -> lay.Laid:
    observe = more.pop("observe", Observer())
    plan = restore.plan(
        site.repository, "shop", RecoveryTarget(TargetKind.LATEST), into, delta=delta, now=site.at(60), **more
    )
    return lay.lay(plan, site.area, site.ring, account, workers=2, observe=observe)


def restored(site: Any, into: Path, account: Account, **more: Any) -> lay.Laid:
    done = laid(site, into, account, **more)
    tree.reveal_control(into)
    return done


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}


def backed_up(site: Any, **more: Any) -> Head:
    head: Head = site.backup(0, 1, 2, **more)
    site.wal(1, 4)
    return head


@pytest.mark.parametrize("mode", list(SealingMode))
def test_files_come_back_byte_for_byte(
    fresh_site: Any, into: Path, account: Account, content: Mapping[str, bytes], mode: SealingMode
) -> None:
    site = fresh_site()
    site.mode = mode
    backed_up(site)
    done = restored(site, into, account)
    assert files_of(into) == {**content, "backup_label": b"START WAL LOCATION\n"}
    assert (done.written_bytes, done.reused_bytes) == (sum(map(len, content.values())), 0)
    assert into.stat().st_mode & 0o777 == 0o700
    assert (into / "base/1/1259").stat().st_mode & 0o777 == 0o600
    assert (into / "base/1/1259").stat().st_mtime == 1.5
    assert (into / "base/1/2619").stat().st_mtime == 1.5
    assert (into / "pg_wal/archive_status").is_dir()
    assert (into / "pg_wal/summaries").is_dir()


@pytest.mark.parametrize("with_direct", [True, False], ids=["direct", "cached"])
def test_large_files_come_back_wherever_they_lie_in_their_bundle(
    site: Any, into: Path, account: Account, monkeypatch: pytest.MonkeyPatch, with_direct: bool
) -> None:
    if not with_direct:
        monkeypatch.setattr(writing, "open_direct", lambda *_: -1)
    odd = hashlib.shake_128(b"large").digest(5_000_001)
    large = {"base/1/1": odd[: 610 * 8192], "base/1/2": odd[8192:], "base/1/3": odd[: 300 * 8192], "base/1/4": odd[:9]}
    backed_up(site, content={**large, "global/pg_control": b"c" * 8192})
    done = restored(site, into, account)
    found = files_of(into)
    assert {path: hashlib.sha256(found[path]).hexdigest() for path in large} == {
        path: hashlib.sha256(data).hexdigest() for path, data in large.items()
    }
    assert (into / "base/1/2").stat().st_mtime == 1.5
    assert done.written_bytes == sum(map(len, large.values())) + 8192


def test_until_the_end_there_is_a_marker_and_no_pg_control(site: Any, into: Path, account: Account) -> None:
    head = backed_up(site)
    laid(site, into, account)
    assert not (into / "global/pg_control").exists()
    assert json.loads((into / MARKER).read_text())["label"] == str(head.label)
    tree.reveal_control(into)
    assert (into / "global/pg_control").read_bytes() == b"c" * 8192
    assert not (into / MARKER).exists()


def test_damage_stops_the_restore_before_the_directory_could_start(
    sealed_site: Any, into: Path, account: Account
) -> None:
    head = backed_up(sealed_site)
    layout = sealed_site.area.layout
    name = next(s.name for s in sealed_site.storage.list(layout.backup(head.label)) if "/bundles/" in s.name)
    data = bytearray(sealed_site.read(name))
    data[len(data) // 2] ^= 1
    sealed_site.overwrite(name, bytes(data))
    with pytest.raises(Damaged):
        laid(sealed_site, into, account)
    assert not (into / "global/pg_control").exists()
    with pytest.raises(DestinationInUse) as refused:
        laid(sealed_site, into, account)
    assert "interrupted restore" in refused.value.hint


def test_a_bad_manifest_is_replaced_by_its_copy(site: Any, into: Path, account: Account) -> None:
    head = backed_up(site)
    site.overwrite(site.area.layout.manifest(head.label), b"nothing")
    heard: list[Event] = []
    restored(site, into, account, observe=Observer(heard.append))
    assert [e.code for e in heard if isinstance(e, Noticed)] == ["manifest-damaged"]


def test_two_bad_manifests_leave_the_destination_unmade(site: Any, into: Path, account: Account) -> None:
    head = backed_up(site)
    for name in (site.area.layout.manifest(head.label), site.area.layout.manifest_copy(head.label)):
        site.overwrite(name, b"nothing")
    with pytest.raises(Damaged, match="both copies"):
        laid(site, into, account)
    assert not into.exists()


def test_a_file_that_its_extents_do_not_cover_is_never_laid_down(site: Any, into: Path, account: Account) -> None:
    backed_up(site, wrong_size="base/1/1259")
    with pytest.raises(Damaged, match="base/1/1259"):
        laid(site, into, account)


def test_an_interrupted_restore_is_finished_by_a_delta(
    site: Any, into: Path, account: Account, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    stopping = Observer(lambda event: stopping.cancel.set() if isinstance(event, Advanced) else None)
    with pytest.raises(Cancelled):
        laid(site, into, account, observe=stopping)
    assert not (into / "global/pg_control").exists()
    restored(site, into, account, delta=True)
    assert files_of(into) == {**content, "backup_label": b"START WAL LOCATION\n"}


def test_a_full_disk_is_reported_and_the_directory_cannot_start(
    site: Any, into: Path, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    backed_up(site)

    def full(descriptor: int, data: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageFull):
        laid(site, into, account)
    assert not (into / "global/pg_control").exists()


# ---- delta


def test_a_delta_writes_only_what_differs(
    site: Any, into: Path, account: Account, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    restored(site, into, account)
    (into / "base/1/1259").write_bytes(content["base/1/1259"][:-10])
    (into / "base/1/9999").write_bytes(b"stranger")
    (into / "base/2").mkdir()
    (into / "base/2/1").write_bytes(b"stranger")
    (into / "standby.signal").touch()
    (into / "PG_VERSION").chmod(0o644)
    done = restored(site, into, account, delta=True)
    assert files_of(into) == {**content, "backup_label": b"START WAL LOCATION\n"}
    assert not (into / "base/2").exists()
    assert done.written_bytes == len(content["base/1/1259"]) + len(content["global/pg_control"])
    assert done.reused_bytes == len(content["PG_VERSION"]) + len(content["postgresql.auto.conf"])
    assert (into / "PG_VERSION").stat().st_mode & 0o777 == 0o600


def test_a_delta_finds_a_changed_byte_in_a_file_of_the_same_size_and_time(
    site: Any, into: Path, account: Account, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    restored(site, into, account)
    path = into / "base/1/1259"
    data = bytearray(content["base/1/1259"])
    data[50_000] ^= 1
    path.write_bytes(data)
    os.utime(path, (1.5, 1.5))
    restored(site, into, account, delta=True)
    assert path.read_bytes() == content["base/1/1259"]


def test_a_delta_removes_links_and_never_what_they_lead_to(
    site: Any, into: Path, account: Account, tmp_path: Path, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    restored(site, into, account)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1259").write_bytes(b"precious")
    for name in ("1259", "2619"):
        (into / "base/1" / name).unlink()
    (into / "base/1").rmdir()
    (into / "base/1").symlink_to(outside)
    (into / "PG_VERSION.old").symlink_to(outside / "1259")
    (into / "postgresql.auto.conf").unlink()
    (into / "postgresql.auto.conf").symlink_to(outside / "1259")
    (into / "stranger").symlink_to(outside)
    (into / MARKER).symlink_to(outside / "1259")
    restored(site, into, account, delta=True)
    assert [p.name for p in outside.iterdir()] == ["1259"]
    assert (outside / "1259").read_bytes() == b"precious"
    assert files_of(into) == {**content, "backup_label": b"START WAL LOCATION\n"}


def test_a_delta_never_writes_through_a_second_name_of_a_file(
    site: Any, into: Path, account: Account, tmp_path: Path, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    restored(site, into, account)
    (into / "base/1/1259").write_bytes(b"changed after pg_upgrade --link")
    os.link(into / "base/1/1259", tmp_path / "other-cluster")
    restored(site, into, account, delta=True)
    assert (tmp_path / "other-cluster").read_bytes() == b"changed after pg_upgrade --link"
    assert (into / "base/1/1259").read_bytes() == content["base/1/1259"]


def test_a_delta_puts_the_right_kind_where_another_lies(
    site: Any, into: Path, account: Account, content: Mapping[str, bytes]
) -> None:
    backed_up(site)
    restored(site, into, account)
    (into / "PG_VERSION.dir").mkdir()
    (into / "base/1/2619").unlink()
    (into / "base/1/2619").mkdir()
    (into / "base/1/2619/deep").mkdir()
    for path in sorted((into / "global").iterdir()):
        path.unlink()
    (into / "global").rmdir()
    (into / "global").write_text("a file")
    restored(site, into, account, delta=True)
    assert files_of(into) == {**content, "backup_label": b"START WAL LOCATION\n"}


def test_wal_that_the_repository_does_not_hold_is_kept_aside(
    site: Any, into: Path, account: Account, wal_of: Any
) -> None:
    backed_up(site)
    restored(site, into, account)
    stored, lost = Segment(1, 2, 1 << 20), Segment(1, 9, 1 << 20)
    recycled = Segment(1, 10, 1 << 20)
    for segment, data in ((stored, wal_of(stored, 7)), (lost, wal_of(lost, 7)), (recycled, wal_of(lost, 7))):
        (into / "pg_wal" / segment.name).write_bytes(data)
    heard: list[Event] = []
    restored(site, into, account, delta=True, observe=Observer(heard.append))
    assert [p.name for p in (into.parent / "restored.unarchived-wal").iterdir()] == [lost.name]
    assert [p.name for p in sorted((into / "pg_wal").iterdir())] == ["archive_status", "summaries"]
    assert [e.code for e in heard if isinstance(e, Noticed)] == ["wal-kept"]


# ---- links and tablespaces


def test_a_tablespace_is_laid_where_the_plan_says_and_mapped_in_tablespace_map(
    site: Any, into: Path, account: Account, tmp_path: Path, content: Mapping[str, bytes]
) -> None:
    backed_up(
        site,
        content={**content, "pg_tblspc/16384/PG_18_202506291/5/16400": b"row" * 1000},
        directories=("base", "base/1", "global", "pg_tblspc", "pg_tblspc/16384/PG_18_202506291"),
        links={"pg_tblspc/16384": "/old"},
        tablespaces=(Tablespace(16384, "/old"),),
    )
    place = tmp_path / "back\\slash"
    restored(site, into, account, tablespaces={"/old": place})
    assert (into / "pg_tblspc/16384").readlink() == place
    assert (place / "PG_18_202506291/5/16400").read_bytes() == b"row" * 1000
    assert (into / "tablespace_map").read_text() == f"16384 {tmp_path}/back\\\\slash\n"
    (place / "PG_18_202506291/5/stranger").touch()
    restored(site, into, account, delta=True)
    assert [p.name for p in (place / "PG_18_202506291/5").iterdir()] == ["16400"]


def test_a_manifest_that_lays_a_file_behind_its_own_link_writes_nothing_outside(
    site: Any, into: Path, account: Account, tmp_path: Path, content: Mapping[str, bytes]
) -> None:
    """The manifest is sealed, but whoever knows the recipients' public keys can seal another one."""
    outside = tmp_path / "outside"
    outside.mkdir()
    backed_up(site, content={**content, "evil/passwd": b"root"}, links={"evil": str(outside)})
    restored(site, into, account)
    assert not list(outside.iterdir())


def test_missing_parents_of_the_destination_are_made_and_can_be_entered(
    site: Any, tmp_path: Path, account: Account
) -> None:
    backed_up(site)
    into = tmp_path / "a" / "b" / "data"
    before = os.umask(0o077)
    try:
        restored(site, into, account)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_uid == account.uid
