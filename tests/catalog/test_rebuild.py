"""Rebuilding from a repository: everything it knows, once, and nothing of the catalog's own is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from seawall.catalog import BackupOutcome, Catalog, JobType, LocationType, RunStatus, rebuild
from seawall.errors import BackupMissing, Damaged, StorageUnreachable
from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    SealingMode,
)
from seawall.wal import Lsn

REPOSITORY = "6f7f5b1e-6a53-4b8e-9a55-5f4f9e0d8a11"


@dataclass
class FakeStorage:
    url: str = "file:///vault"


@dataclass
class FakeSource:
    """What `SourceArea` answers about its heads."""

    known: dict[BackupLabel, Head] = field(default_factory=dict)
    damaged: set[BackupLabel] = field(default_factory=set)
    marked: set[BackupLabel] = field(default_factory=set)
    unreachable: bool = False

    def labels(self, *, with_expired: bool = False) -> tuple[BackupLabel, ...]:
        if self.unreachable:
            raise StorageUnreachable("no answer")
        return tuple(label for label in sorted(self.known, key=str) if with_expired or label not in self.marked)

    def head(self, label: BackupLabel) -> Head:
        if label in self.damaged:
            raise Damaged(f"head of {label} is cut")
        try:
            return self.known[label]
        except KeyError as error:
            raise BackupMissing(str(label)) from error


@dataclass
class FakeRepository:
    areas: dict[str, FakeSource]
    id: str = REPOSITORY
    storage: FakeStorage = field(default_factory=FakeStorage)

    def sources(self) -> tuple[str, ...]:
        return tuple(sorted(self.areas))

    def source(self, name: str) -> FakeSource:
        return self.areas[name]


def head_of(text: str, source: str) -> Head:
    label = BackupLabel.parse(text)
    return Head(
        label=label,
        source=source,
        kind=label.kind,
        mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7300000000000000001, 18, (1,)),
        server_version=180006,
        timeline=1,
        start_lsn=Lsn(0x2000028),
        stop_lsn=Lsn(0x2000158),
        segment_bytes=16 << 20,
        began_at=label.begun_at,
        ended_at=label.begun_at + timedelta(minutes=3),
        stopped_at=label.begun_at + timedelta(minutes=2),
        plain_bytes=3_000_000_000,
        stored_bytes=900_000_000,
        file_count=1200,
        object_count=15,
        compression=Compression.ZSTD,
        sealing=SealingMode.AES_256_GCM,
        key_id="k1",
        manifest_sha256="ab" * 32,
        manifest_bytes=1000,
        health=Health.GOOD,
    )


def source_of(name: str, *labels: str) -> FakeSource:
    heads = (head_of(label, name) for label in labels)
    return FakeSource({head.label: head for head in heads})


@pytest.fixture
def repository() -> FakeRepository:
    return FakeRepository(
        {
            "shop": source_of(
                "shop", "20261121T020000Z-full", "20261122T020000Z-full", "20261122T060000Z-incr-on-20261122T020000Z"
            ),
            "ledger": source_of("ledger", "20261122T030000Z-full"),
        }
    )


def image(catalog: Catalog) -> tuple[object, ...]:
    return (
        catalog.jobs(),
        catalog.executions(limit=1000),
        catalog.backup_files(include_expired=True),
        catalog.storage_locations(),
    )


def test_an_empty_catalog_learns_everything_that_the_repository_knows(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    report = rebuild(catalog, repository, now)
    assert (report.sources, report.jobs_created, report.executions_created, report.files_created) == (2, 3, 4, 4)
    assert (report.locations_created, report.known, report.absent, report.findings) == (1, 0, (), ())
    (file,) = catalog.backup_files(source="ledger")
    assert (file.label, file.checksum, file.encryption_key_id) == ("20261122T030000Z-full", "ab" * 32, "k1")
    assert (file.file_size_bytes, file.compressed_size_bytes) == (3_000_000_000, 900_000_000)
    assert file.repository_id == UUID(REPOSITORY)
    run = catalog.execution(file.execution_id)
    head = head_of("20261122T030000Z-full", "ledger")
    assert (run.status, run.execution_start, run.execution_end) == (
        RunStatus.COMPLETED,
        head.began_at,
        head.ended_at,
    )
    assert run.details["backup"]["stop_lsn"] == "0/2000158"  # type: ignore[index]
    job = catalog.job(run.job_id)
    assert (job.job_type, job.is_active, job.schedule_cron) == (JobType.FULL, False, None)
    assert job.backup_targets == {"source": "ledger"}
    assert {job.job_type for job in catalog.jobs()} == {JobType.FULL, JobType.INCREMENTAL}
    (location,) = catalog.storage_locations()
    assert location.location_type is LocationType.LOCAL
    assert location.connection_config == {"url": "file:///vault"}
    assert location.name == file.storage_location


def test_a_second_rebuild_changes_nothing(catalog: Catalog, repository: FakeRepository, now: datetime) -> None:
    rebuild(catalog, repository, now)
    before = image(catalog)
    report = rebuild(catalog, repository, now + timedelta(days=1))
    assert image(catalog) == before
    assert not report.changed
    assert report.known == 4


def test_two_catalogs_rebuilt_from_one_repository_agree_on_every_id(
    catalog: Catalog, repository: FakeRepository, now: datetime, tmp_path
) -> None:
    with Catalog.open(f"sqlite:///{tmp_path / 'other.db'}", create=True) as other:
        rebuild(catalog, repository, now)
        rebuild(other, repository, now)
        assert image(other) == image(catalog)


def test_what_the_live_catalog_recorded_is_recognised_and_left_alone(
    catalog: Catalog, repository: FakeRepository, now: datetime, new_job: Callable[..., UUID]
) -> None:
    job = new_job(catalog)
    run = catalog.begin_execution(job, now=now, lease=timedelta(minutes=1))
    head = head_of("20261122T020000Z-full", "shop")
    catalog.record_backup(
        head,
        job_id=job,
        execution_id=run,
        repository_id=REPOSITORY,
        storage_location="vault",
        expires_at=now + timedelta(days=30),
        now=now,
    )
    catalog.finish_execution(run, status=RunStatus.COMPLETED, now=now, outcome=BackupOutcome.of(head))
    before = (catalog.job(job), catalog.execution(run), catalog.find_backup_file(REPOSITORY, "shop", head.label))
    report = rebuild(catalog, repository, now)
    after = (catalog.job(job), catalog.execution(run), catalog.find_backup_file(REPOSITORY, "shop", head.label))
    assert after == before
    assert (report.known, report.files_created) == (1, 3)


def test_found_backups_go_to_the_one_job_that_protects_their_source(
    catalog: Catalog, repository: FakeRepository, now: datetime, new_job: Callable[..., UUID]
) -> None:
    job = new_job(catalog, "shop nightly", "shop")
    report = rebuild(catalog, repository, now)
    assert report.jobs_created == 2
    assert len(catalog.executions(job)) == 2


def test_where_two_jobs_could_have_made_a_backup_none_is_guessed(
    catalog: Catalog, repository: FakeRepository, now: datetime, new_job: Callable[..., UUID]
) -> None:
    jobs = [new_job(catalog, name, "shop") for name in ("shop nightly", "shop weekly")]
    report = rebuild(catalog, repository, now)
    assert report.jobs_created == 3
    assert all(catalog.executions(job) == () for job in jobs)


def test_a_location_with_the_repositorys_url_is_used(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={"url": "file:///vault"}, now=now)
    assert rebuild(catalog, repository, now).locations_created == 0
    assert {file.storage_location for file in catalog.backup_files()} == {"vault"}


def test_what_only_the_catalog_knows_is_reported_and_kept(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    lost = BackupLabel.parse("20261121T020000Z-full")
    del repository.areas["shop"].known[lost]
    del repository.areas["ledger"]
    report = rebuild(catalog, repository, now)
    assert report.absent == ("ledger/20261122T030000Z-full", "shop/20261121T020000Z-full")
    assert len(catalog.backup_files()) == 4


def test_a_set_that_is_marked_but_not_yet_removed_is_neither_absent_nor_recreated(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    repository.areas["shop"].marked.add(BackupLabel.parse("20261121T020000Z-full"))
    assert rebuild(catalog, repository, now).files_created == 3
    repository.areas["ledger"].marked.add(BackupLabel.parse("20261122T030000Z-full"))
    assert rebuild(catalog, repository, now).absent == ()


def test_a_set_that_was_expired_on_purpose_is_not_called_absent(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    lost = BackupLabel.parse("20261121T020000Z-full")
    file = catalog.find_backup_file(REPOSITORY, "shop", lost)
    assert file is not None
    catalog.record_expiry(file.id, now=now)
    del repository.areas["shop"].known[lost]
    assert rebuild(catalog, repository, now).absent == ()


def test_a_damaged_head_or_a_silent_source_hides_no_other_and_proves_no_absence(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    repository.areas["shop"].known[BackupLabel.parse("20261123T020000Z-full")] = head_of(
        "20261123T020000Z-full", "shop"
    )
    repository.areas["shop"].damaged.add(BackupLabel.parse("20261121T020000Z-full"))
    repository.areas["ledger"].unreachable = True
    report = rebuild(catalog, repository, now)
    assert report.files_created == 1
    assert {(finding.code, finding.subject) for finding in report.findings} == {
        ("storage-unreachable", "ledger"),
        ("damaged", "shop/20261121T020000Z-full"),
    }
    assert report.absent == ()


def test_another_repository_is_another_set_of_backups(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    other = FakeRepository(
        repository.areas, id="11111111-2222-4333-8444-555555555555", storage=FakeStorage("s3://offsite/shop")
    )
    report = rebuild(catalog, other, now)
    assert report.files_created == 4
    assert len(catalog.backup_files(repository_id=other.id)) == 4
    assert {location.location_type for location in catalog.storage_locations()} == {LocationType.LOCAL, LocationType.S3}


def test_a_manifest_that_contradicts_the_catalog_is_reported_not_overwritten(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    label = BackupLabel.parse("20261122T030000Z-full")
    repository.areas["ledger"].known[label] = replace(
        repository.areas["ledger"].known[label], manifest_sha256="cd" * 32
    )
    report = rebuild(catalog, repository, now)
    assert [(finding.code, finding.subject) for finding in report.findings] == [
        ("manifest-differs", "ledger/20261122T030000Z-full")
    ]
    assert catalog.backup_files(source="ledger")[0].checksum == "ab" * 32


def test_a_set_that_is_listed_although_the_catalog_calls_it_removed_is_reported(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    (file,) = catalog.backup_files(source="ledger")
    catalog.record_expiry(file.id, now=now)
    assert [finding.code for finding in rebuild(catalog, repository, now).findings] == ["expired-but-listed"]
    catalog.withdraw_expiry(file.id)
    assert rebuild(catalog, repository, now).findings == ()
    assert catalog.backup_files(source="ledger") == (file,)


def test_a_rebuild_that_created_something_is_audited(
    catalog: Catalog, repository: FakeRepository, now: datetime
) -> None:
    rebuild(catalog, repository, now)
    rebuild(catalog, repository, now)
    (entry,) = catalog.audit_entries()
    assert (entry.action, entry.subject) == ("catalog.rebuild", f"repository/{REPOSITORY}")
    assert entry.details["files"] == 4


def test_all_kinds_of_backup_have_a_type_of_job() -> None:
    from seawall.catalog.rebuilding import _JOB_TYPES

    assert set(_JOB_TYPES) == set(BackupKind)
