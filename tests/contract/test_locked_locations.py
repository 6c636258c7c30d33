"""Locations that lock: probed with Seawall's own credentials, told apart from those that do not, and never assumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from seawall import retention, upkeep, watch
from seawall.arrivals import locking_arrivals
from seawall.catalog import Catalog, JobType, RunStatus, Severity
from seawall.cli import run
from seawall.errors import LockBroken, ObjectLocked, StorageDenied, StorageUnreachable
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.lockprobe import LockState
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    LockMode,
    Proof,
    SealingMode,
)
from seawall.nearest import Copy
from seawall.proofs import Budget
from seawall.repository import Repository, Sealing, documents
from seawall.repository.layout import SourceLayout
from seawall.settings import Locking, RepositorySettings, Settings, SourceSettings, load
from seawall.storage import open_storage
from seawall.storage.immutability import lockable
from seawall.storage.local import LocalStorage
from seawall.storage.memory import MemoryStorage
from seawall.wal import Lsn, Segment
from tasks import upkeep as tasks
from tasks.records import site_job
from tools.storage_servers import S3Server, Servers, free_port

Site = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Writes a settings file with these locations, and makes repository and catalog."""

    def made(**places: RepositorySettings) -> Path:
        text = f"""
[repository]
url = "{tmp_path}/repository"
[catalog]
url = "sqlite:///{tmp_path}/catalog.db"
[server]
work_directory = "{tmp_path}/work"
"""
        for name, place in places.items():
            text += f'[locations.{name}]\nurl = "{place.url}"\nlock_mode = "{place.lock_mode.value}"\nattempts = 1\n'
            text += f'lock = "{place.lock.value}"\n'
            for key in ("endpoint", "region", "credentials_file", "deleting_credentials_file"):
                text += f'{key} = "{getattr(place, key)}"\n' if getattr(place, key) else ""
        file = tmp_path / "seawall.toml"
        file.write_text(text, encoding="utf-8")
        if not (tmp_path / "repository").exists():
            Repository.create(LocalStorage(tmp_path / "repository"), now=datetime.now(UTC))
            with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True):
                pass
        return file

    return made


@pytest.fixture
def s3(servers: Servers) -> S3Server:
    server: S3Server = servers["s3"]
    return server


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    with KeyRing(tmp_path / "ring") as made:
        yield made


def taken(repository: Repository, ring: KeyRing, now: datetime) -> Head:
    """The smallest backup that can be listed, with its WAL."""
    area, sealing = repository.source("shop"), Sealing(SealingMode.NONE, Compression.NONE, 0, (), ring)
    begun = now.replace(microsecond=0) - timedelta(minutes=1)
    label = BackupLabel(begun, BackupKind.FULL, None)
    area.wal.put_segment(Segment(1, 10, 1 << 24).name, b"wal", sealing)
    writer = area.begin(label, sealing, begun)
    name, bundle = writer.bundle_writer(1)
    stored = writer.put_bundle(name, bundle, bundle.stream([]))
    head = Head(
        label=label, source="shop", kind=BackupKind.FULL, mode=CopyMode.DIRECT, cluster=ClusterIdentity(7, 18, (1,)),
        server_version=180006, timeline=1, start_lsn=Lsn(10 << 24), stop_lsn=Lsn((10 << 24) + 100),
        segment_bytes=1 << 24, began_at=begun, ended_at=begun, stopped_at=begun, plain_bytes=1, stored_bytes=1,
        file_count=0, object_count=1, compression=Compression.NONE, sealing=SealingMode.NONE, key_id="",
        manifest_sha256="", manifest_bytes=0, health=Health.GOOD,
    )  # fmt: skip
    with area.lease("test", "backup") as held:
        return writer.commit(head, objects=[stored], specials={}, files=[], held=held)


def mirroring(file: Path) -> Settings:
    """The settings, with a source that has copies in the vault."""
    with file.open("a", encoding="utf-8") as settings_file:
        settings_file.write('[sources.shop]\nmirrors = ["vault"]\n[sealing]\nmode = "none"\n')
    return load(file, {})


def probed(settings: Settings, catalog: Catalog) -> dict[str, LockState]:
    reports = watch.probe_locks(settings, catalog, now=datetime.now(UTC), observe=Observer())
    return {report.name: report.state for report in reports}


def alerts(catalog: Catalog) -> dict[tuple[str, str], Severity]:
    return {(alert.alert_type, alert.subject): alert.severity for alert in catalog.alerts()}


@pytest.mark.servers
def test_a_lock_that_does_not_hold_is_a_critical_alert_until_a_later_probe_finds_it_held(
    s3: S3Server, site: Site
) -> None:
    place = s3.settings(lock=True)
    silent = replace(place, endpoint=f"http://127.0.0.1:{free_port()}")
    settings = load(site(weak=replace(place, lock_mode=LockMode.GOVERNANCE), gone=silent, plain=s3.settings()), {})
    with Catalog.open(settings.catalog.url) as catalog:
        job = site_job(settings, None, JobType.IMMUTABILITY)
        with pytest.raises(LockBroken, match=r"weak: a locked object .*could be deleted by lifting the lock"):
            tasks.probe_locks.fn(settings, job.id)
        found = alerts(catalog)
        assert found[("lock-broken", "weak")] is Severity.CRITICAL
        assert ("lock-unproved", "gone") in found
        assert ("immutability-probe-failed", "site") in found
        assert catalog.executions(job.id)[0].status is RunStatus.FAILED

        settings = load(site(weak=place, gone=silent, plain=s3.settings()), {})
        assert probed(settings, catalog) == {
            "primary": LockState.NONE,
            "gone": LockState.UNKNOWN,
            "plain": LockState.NONE,
            "weak": LockState.HOLDS,
        }
        assert ("lock-broken", "weak") not in alerts(catalog)
        with pytest.raises(StorageUnreachable):
            tasks.probe_locks.fn(settings, job.id)

        settings = load(site(weak=place, gone=place), {})
        facts: Any = tasks.probe_locks.fn(settings, job.id)
        assert {name: one["state"] for name, one in facts.items()} == {
            "primary": "none", "gone": "holds", "weak": "holds",
        }  # fmt: skip
        assert alerts(catalog) == {}


@pytest.mark.servers
def test_a_location_that_does_not_answer_leaves_a_breach_an_alert(s3: S3Server, site: Site) -> None:
    weak = replace(s3.settings(lock=True), lock_mode=LockMode.GOVERNANCE)
    with Catalog.open(load(site(weak=weak), {}).catalog.url) as catalog:
        for place in (weak, replace(weak, endpoint=f"http://127.0.0.1:{free_port()}")):
            probed(load(site(weak=place), {}), catalog)
            assert ("lock-broken", "weak") in alerts(catalog)


@pytest.mark.servers
def test_locks_that_went_away_are_an_alert_until_they_hold_again_or_are_wanted_no_more(
    s3: S3Server, site: Site
) -> None:
    """Whoever takes away the right to ask, or moves a copy into a bucket without locks, ends them without a breach."""
    locked, plain = s3.settings(lock=True), s3.settings()
    with Catalog.open(load(site(vault=locked), {}).catalog.url) as catalog:
        assert probed(load(site(vault=locked), {}), catalog)["vault"] is LockState.HOLDS
        # What an earlier probe left is there, and the place does not say that it locks.
        open_storage(plain).put("probes/canary-20261128T054500-0a1b2c3d", [b"canary"])
        assert probed(load(site(vault=plain), {}), catalog)["vault"] is LockState.UNKNOWN
        assert alerts(catalog)[("lock-gone", "vault")] is Severity.HIGH
        assert ("lock-unproved", "vault") not in alerts(catalog)
        # That the canary went meanwhile proves nothing.
        open_storage(plain).delete("probes/canary-20261128T054500-0a1b2c3d")
        assert probed(load(site(vault=plain), {}), catalog)["vault"] is LockState.NONE
        assert ("lock-gone", "vault") in alerts(catalog)
        probed(load(site(vault=locked), {}), catalog)
        assert ("lock-gone", "vault") not in alerts(catalog)
        open_storage(plain).put("probes/canary-20261129T054500-0a1b2c3d", [b"canary"])
        probed(load(site(vault=plain), {}), catalog)
        probed(load(site(vault=replace(plain, lock=Locking.OFF)), {}), catalog)
        assert ("lock-gone", "vault") not in alerts(catalog)


@pytest.mark.servers
def test_the_command_probes_one_location_or_all_and_says_what_locks(
    s3: S3Server, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = s3.settings(lock=True)
    file = site(strong=strong, weak=replace(strong, lock_mode=LockMode.GOVERNANCE))
    assert run(["--json", "--config", str(file), "location", "probe", "strong"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["locations"]
    assert (found["name"], found["state"], found["breaches"]) == ("strong", "holds", [])
    assert found["canary"].startswith("probes/canary-")
    assert run(["--config", str(file), "location", "probe"]) == LockBroken.exit_code
    said = capsys.readouterr()
    assert "primary: none; it locks nothing" in said.out + said.err
    assert "weak: broken" in said.out + said.err


@pytest.mark.servers
def test_copies_in_a_bucket_are_locked_by_the_service_and_a_cleanup_there_skips_and_reports_them(
    s3: S3Server, site: Site, tmp_path: Path, ring: KeyRing
) -> None:
    place = s3.settings(lock=True)
    settings, now = mirroring(site(vault=place)), datetime.now(UTC)
    repository = Repository.open(LocalStorage(tmp_path / "repository"))
    # The newest good backup would stay without any lock.
    head, newest = taken(repository, ring, now - timedelta(hours=1)), taken(repository, ring, now)
    with Catalog.open(settings.catalog.url) as catalog:
        done = upkeep.mirror_source(
            settings, repository, "shop", ring, catalog, begin=True, now=now, observe=Observer()
        )
        assert not alerts(catalog)
    assert done.locks["vault"].secured == (str(head.label), str(newest.label))
    copy = Repository.open(open_storage(place))
    layout, locks = copy.source("shop").layout, lockable(copy.storage)
    assert locks is not None
    for name in (layout.manifest(head.label), layout.head(head.label), *copy.source("shop").needed_objects(head.label)):
        until = locks.retention(name).until
        assert until is not None and until >= head.stopped_at + timedelta(days=7), name
        with pytest.raises(ObjectLocked):
            copy.storage.delete(name)

    # A mark from two days ago, as expiry makes it.
    marked = {"label": str(head.label), "actor": "test", "marked_at": (now - timedelta(days=2)).isoformat()}
    documents.put(copy.storage, layout.expiry(head.label), marked)
    collected = retention.collect(copy, "shop", actor="test", now=datetime.now(UTC), observe=Observer())
    assert collected.sets == ()
    assert "is locked until" in collected.left[str(head.label)]
    assert copy.source("shop").labels(with_expired=True) == (head.label, newest.label)


@pytest.mark.servers
def test_a_primary_in_a_bucket_that_locks_is_locked_by_the_service_and_only_if_it_shall(
    s3: S3Server, site: Site, tmp_path: Path, ring: KeyRing
) -> None:
    now, place = datetime.now(UTC), s3.settings(lock=True)
    storage = open_storage(place)
    repository = Repository.create(storage, now=now)
    head = taken(locking_arrivals(place, repository, "shop", Observer()), ring, now)
    settings = load(site(), {})
    settings = replace(settings, repository=place, sources={"shop": SourceSettings("shop")})
    off = replace(settings, repository=replace(place, lock=Locking.OFF))
    with Catalog.open(settings.catalog.url) as catalog:
        assert upkeep.secure_primary(off, repository, "shop", catalog, now=now, observe=Observer()) is None
        layout, locks = repository.source("shop").layout, lockable(storage)
        assert locks is not None
        assert locks.retention(layout.manifest(head.label)).until is None
        report = upkeep.secure_primary(settings, repository, "shop", catalog, now=now, observe=Observer())
        assert report is not None and (report.secured, report.problem) == ((str(head.label),), "")
        assert alerts(catalog) == {}
    needed = repository.source("shop").needed_objects(head.label)
    wal = [stat.name for stat in storage.list(layout.wal)]
    for name in (layout.manifest(head.label), layout.head(head.label), *needed, *wal, "seawall.json"):
        until = locks.retention(name).until
        assert until is not None and until >= head.stopped_at + timedelta(days=7), name
        with pytest.raises(ObjectLocked):
            storage.delete(name)
    assert tasks.mirrored_or_locked(settings) == ["shop"]


def test_a_primary_that_cannot_lock_is_left_as_it_is_and_a_lock_that_fails_is_an_alert_until_it_succeeds(
    site: Site, tmp_path: Path, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, settings = datetime.now(UTC), load(site(), {})
    settings = replace(settings, sources={"shop": SourceSettings("shop")})
    local = Repository.open(LocalStorage(tmp_path / "repository"))
    taken(local, ring, now)
    with Catalog.open(settings.catalog.url) as catalog:
        assert upkeep.secure_primary(settings, local, "shop", catalog, now=now, observe=Observer()) is None
        assert tasks.mirrored_or_locked(settings) == []
        locking = Repository.create(MemoryStorage(), now=now)
        taken(locking, ring, now)
        with monkeypatch.context() as patched:
            patched.setattr(
                MemoryStorage, "retain", lambda *_: (_ for _ in ()).throw(StorageDenied("no right to lock"))
            )
            report = upkeep.secure_primary(settings, locking, "shop", catalog, now=now, observe=Observer())
            early = upkeep.lock_arrivals(settings, locking, "shop", catalog, now=now, observe=Observer())
            assert early is not None and early.problem == "no right to lock"
        assert report is not None and report.problem == "no right to lock"
        assert ("copies-not-locked", "shop primary") in alerts(catalog)
        # WAL alone does not take the alert back: the backup is not locked.
        early = upkeep.lock_arrivals(settings, locking, "shop", catalog, now=now, observe=Observer())
        assert early is not None and (early.problem, early.secured) == ("", ())
        area, storage = locking.source("shop"), lockable(locking.storage)
        assert storage is not None
        (manifest,) = [area.layout.manifest(label) for label in area.labels()]
        assert all(storage.retention(stat.name).until for stat in locking.storage.list(area.layout.wal))
        assert storage.retention(manifest).until is None
        assert ("copies-not-locked", "shop primary") in alerts(catalog)
        upkeep.secure_primary(settings, locking, "shop", catalog, now=now, observe=Observer())
        assert alerts(catalog) == {}


def test_what_heals_a_locked_object_lies_beside_it_and_is_locked_at_once_as_long_as_that(
    site: Site, tmp_path: Path, ring: KeyRing
) -> None:
    now, place = datetime.now(UTC), RepositorySettings(url="memory:heal-tests")
    settings = mirroring(site(vault=place))
    repository = Repository.open(LocalStorage(tmp_path / "repository"))
    head = taken(repository, ring, now)
    upkeep.mirror_source(settings, repository, "shop", ring, None, begin=True, now=now, observe=Observer())
    storage = open_storage(place)
    vault = lockable(storage)
    assert isinstance(vault, MemoryStorage)
    name = min(repository.source("shop").needed_objects(head.label))
    kept = vault._retained.pop(name)
    vault.delete(name)
    vault.put(name, [b"damaged"])
    vault._retained[name] = kept
    gone = repository.source("shop").layout.manifest_copy(head.label)
    vault._retained.pop(gone)
    vault.delete(gone)
    done = upkeep.heal_objects(
        settings, Copy("vault", storage), [name, gone], ring, actor="test", now=now, observe=Observer()
    )
    assert {(one.name, one.beside) for one in done.healed} == {(name, True), (gone, False)}
    assert kept.until is not None
    assert vault.retention(f"repairs/{name}").until == kept.until
    assert vault.retention(gone).until == kept.until
    with pytest.raises(ObjectLocked):
        storage.delete(f"repairs/{name}")


def test_what_was_repaired_beside_counts_as_sound_for_every_later_proof_and_copy(
    site: Site, tmp_path: Path, ring: KeyRing
) -> None:
    now = datetime.now(UTC)
    place = RepositorySettings(url=f"memory:repaired-{tmp_path.name}", lock=Locking.AUTO)
    settings = mirroring(site(vault=place))
    repository = Repository.open(LocalStorage(tmp_path / "repository"))
    first = taken(repository, ring, now)
    vault = lockable(open_storage(place))
    assert isinstance(vault, MemoryStorage)
    with Catalog.open(settings.catalog.url) as catalog:

        def copied(**more: bool) -> upkeep.Mirrored:
            return upkeep.mirror_source(
                settings, repository, "shop", ring, catalog, now=now, observe=Observer(), **more
            )

        def proved() -> upkeep.Proved:
            return upkeep.prove(
                settings, "shop", ring, catalog, Budget(), location="vault", up_to=Proof.HASH_GOOD, actor="test",
                now=now, observe=Observer(),
            )  # fmt: skip

        repository.source("shop").claim(first.cluster, now)
        copied(begin=True)
        for name in (
            min(repository.source("shop").needed_objects(first.label)),
            layout_of(repository).head(first.label),
        ):
            cut_short(vault, name)
        assert {one.beside for one in proved().healed.healed} == {True}
        # They lie there damaged until their locks end; that is no news in the next night, nor for the next copy.
        for _ in range(2):
            again = proved()
            assert again.good, again.report.findings
            assert again.healed.healed == ()
            assert copied().reports["vault"].left == {}
        assert alerts(catalog) == {}


def cut_short(vault: MemoryStorage, name: str) -> None:
    """Damage past the lock, as a bad disk does."""
    kept, content = vault._retained.pop(name), b"".join(vault.get(name))
    vault.delete(name)
    vault.put(name, [content[:-1]])
    vault._retained[name] = kept


def layout_of(repository: Repository) -> SourceLayout:
    return repository.source("shop").layout


def test_locations_that_lock_nothing_are_told_as_such_and_are_no_failure(site: Site) -> None:
    settings = load(site(held=RepositorySettings(url="memory:lock-tests")), {})
    with Catalog.open(settings.catalog.url) as catalog:
        assert probed(settings, catalog) == {"primary": LockState.NONE, "held": LockState.HOLDS}
        assert alerts(catalog) == {}
