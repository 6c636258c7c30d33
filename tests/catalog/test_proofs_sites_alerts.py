"""Verifications, recoveries, storage locations, DR configuration, users and alerts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from seawall.catalog import (
    Catalog,
    LocationType,
    RecoveryType,
    Role,
    RunStatus,
    Severity,
    VerificationType,
)
from seawall.errors import CatalogError, RecordMissing, UsageError, VerificationFailed

LEASE = timedelta(minutes=2)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def file(catalog: Catalog, now: datetime, new_job: Callable[..., UUID]) -> UUID:
    run = catalog.begin_execution(new_job(catalog), now=now, lease=LEASE)
    from seawall.catalog.models import BackupFileRow

    row = BackupFileRow(
        execution_id=run,
        file_name="20261123T020000Z-full",
        file_path="sources/shop/backups/20261123T020000Z-full",
        file_size_bytes=1,
        compressed_size_bytes=1,
        checksum="ab" * 32,
        storage_location="vault",
        created_at=now,
        repository_id=uuid4(),
        source="shop",
        label="20261123T020000Z-full",
    )
    with catalog.session_for_rebuild() as session:
        session.add(row)
    return row.id


def test_a_completed_verification_makes_the_backup_verified(catalog: Catalog, now: datetime, file: UUID) -> None:
    check = catalog.begin_verification(file, VerificationType.RESTORE_TEST, now=now, lease=LEASE)
    assert catalog.backup_file(file).verified_at is None
    catalog.finish_verification(check, status=RunStatus.COMPLETED, now=now + MINUTE, results={"objects": 15})
    catalog.finish_verification(check, status=RunStatus.COMPLETED, now=now + 2 * MINUTE)
    ended = catalog.verification(check)
    assert (ended.status, ended.verification_end) == (RunStatus.COMPLETED, now + MINUTE)
    assert ended.verification_results == {"objects": 15}
    assert catalog.backup_file(file).verified_at == now + MINUTE
    assert catalog.verifications(file) == (ended,)


def test_a_failed_verification_does_not_and_keeps_its_reason(catalog: Catalog, now: datetime, file: UUID) -> None:
    check = catalog.begin_verification(file, VerificationType.INTEGRITY, now=now, lease=LEASE)
    catalog.finish_verification(
        check, status=RunStatus.FAILED, now=now, results={"findings": 1}, error=VerificationFailed("bundle 3 is cut")
    )
    ended = catalog.verification(check)
    assert "bundle 3 is cut" in (ended.error_message or "")
    assert ended.verification_results["findings"] == 1
    assert catalog.backup_file(file).verified_at is None
    with pytest.raises(CatalogError, match="already ended"):
        catalog.finish_verification(check, status=RunStatus.COMPLETED, now=now)


def test_a_recovery_keeps_what_was_asked_and_what_was_reached(catalog: Catalog, now: datetime, file: UUID) -> None:
    user = catalog.ensure_user("ada", role=Role.OPERATOR, now=now)
    recovery = catalog.begin_recovery(
        RecoveryType.POINT_IN_TIME,
        backup_file_id=file,
        target_timestamp=now - MINUTE,
        initiated_by=user,
        details={"destination": "/restore"},
        now=now,
        lease=LEASE,
    )
    catalog.finish_recovery(recovery, status=RunStatus.COMPLETED, now=now + MINUTE, details={"achieved_rto": MINUTE})
    (ended,) = catalog.recoveries()
    assert ended == catalog.recovery(recovery)
    assert (ended.recovery_type, ended.target_timestamp, ended.initiated_by) == (
        RecoveryType.POINT_IN_TIME,
        now - MINUTE,
        user,
    )
    assert ended.recovery_details == {"destination": "/restore", "achieved_rto": 60.0}


def test_proofs_of_unknown_things_are_refused(catalog: Catalog, now: datetime) -> None:
    for use in (
        lambda: catalog.begin_verification(uuid4(), VerificationType.CHECKSUM, now=now, lease=LEASE),
        lambda: catalog.begin_recovery(RecoveryType.FULL, backup_file_id=uuid4(), now=now, lease=LEASE),
        lambda: catalog.begin_recovery(RecoveryType.FULL, initiated_by=uuid4(), now=now, lease=LEASE),
        lambda: catalog.finish_recovery(uuid4(), status=RunStatus.FAILED, now=now),
        lambda: catalog.finish_verification(uuid4(), status=RunStatus.FAILED, now=now),
    ):
        with pytest.raises(RecordMissing):
            use()


def test_a_storage_location_is_defined_once_and_observed_often(catalog: Catalog, now: datetime) -> None:
    config = {"url": "file:///vault"}
    first = catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config=config, now=now)
    catalog.observe_storage_location("vault", used_bytes=900 << 30, capacity_bytes=1 << 40, now=now)
    again = catalog.ensure_storage_location(
        "vault", LocationType.LOCAL, connection_config=config, capacity_bytes=2 << 40, now=now
    )
    catalog.observe_storage_location("vault", problem="read-only file system", now=now + MINUTE)
    (location,) = catalog.storage_locations(active_only=True)
    assert first == again == location.id
    assert (location.used_bytes, location.capacity_bytes) == (900 << 30, 2 << 40)
    assert (location.last_health_check, location.health_message) == (now + MINUTE, "read-only file system")
    catalog.observe_storage_location("vault", now=now + 2 * MINUTE)
    assert catalog.storage_locations()[0].health_message is None
    with pytest.raises(RecordMissing):
        catalog.observe_storage_location("attic", now=now)


def test_redefining_a_location_without_a_capacity_keeps_the_measured_one(catalog: Catalog, now: datetime) -> None:
    catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={}, now=now)
    catalog.observe_storage_location("vault", capacity_bytes=1 << 40, now=now)
    catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={}, now=now)
    assert catalog.storage_locations()[0].capacity_bytes == 1 << 40


def test_a_secret_in_a_location_is_refused(catalog: Catalog, now: datetime) -> None:
    with pytest.raises(UsageError, match="secret_access_key"):
        catalog.ensure_storage_location(
            "offsite", LocationType.S3, connection_config={"aws": [{"secret_access_key": "x"}]}, now=now
        )


def test_one_dr_configuration_is_active_and_takes_the_demanded_defaults(catalog: Catalog, now: datetime) -> None:
    assert catalog.dr_configuration() is None
    sites = {"primary_site_config": {"host": "a"}, "backup_site_config": {"host": "b"}, "failover_procedures": {}}
    first = catalog.set_dr_configuration(**sites, now=now)
    assert catalog.set_dr_configuration(**sites, rpo_minutes=5, now=now + MINUTE) == first
    catalog.record_dr_test(first, now=now + 2 * MINUTE)
    active = catalog.dr_configuration()
    assert active is not None
    assert (active.rto_hours, active.rpo_minutes, active.created_at, active.last_tested_at) == (
        4,
        5,
        now,
        now + 2 * MINUTE,
    )
    with pytest.raises(UsageError):
        catalog.set_dr_configuration(**sites, rto_hours=0, now=now)


def test_ensuring_a_user_again_takes_no_role_away(catalog: Catalog, now: datetime) -> None:
    ada = catalog.ensure_user("ada", email="ada@example.org", role=Role.ADMIN, now=now)
    assert catalog.ensure_user("ada", now=now) == ada
    catalog.set_user(ada, is_active=False, now=now + MINUTE)
    (user,) = catalog.users()
    assert (user.role, user.email, user.is_active) == (Role.ADMIN, "ada@example.org", False)


def test_an_alert_raised_again_is_counted_not_repeated(catalog: Catalog, now: datetime) -> None:
    first = catalog.raise_alert("wal-gap", Severity.HIGH, "one segment", subject="shop", now=now)
    again = catalog.raise_alert(
        "wal-gap", Severity.CRITICAL, "two segments", subject="shop", data={"n": 2}, now=now + MINUTE
    )
    third = catalog.raise_alert("wal-gap", Severity.LOW, "two segments", subject="shop", now=now + 2 * MINUTE)
    elsewhere = catalog.raise_alert("wal-gap", Severity.LOW, "one segment", subject="ledger", now=now + MINUTE)
    assert first == again == third != elsewhere
    newest, alert = catalog.alerts()
    assert newest.id == elsewhere
    assert (alert.severity, alert.message, alert.occurrences) == (Severity.CRITICAL, "two segments", 3)
    assert (alert.created_at, alert.last_raised_at) == (now, now + 2 * MINUTE)


def test_an_acknowledged_alert_stays_so_until_it_gets_worse(catalog: Catalog, now: datetime) -> None:
    ada, bob = (catalog.ensure_user(name, now=now) for name in ("ada", "bob"))
    alert = catalog.raise_alert("space", Severity.MEDIUM, "80 %", now=now)
    catalog.acknowledge_alert(alert, ada, now=now)
    catalog.acknowledge_alert(alert, bob, now=now + MINUTE)
    catalog.raise_alert("space", Severity.MEDIUM, "82 %", now=now + MINUTE)
    assert (catalog.alerts()[0].acknowledged_by, catalog.alerts()[0].acknowledged_at) == (ada, now)
    catalog.raise_alert("space", Severity.HIGH, "95 %", now=now + MINUTE)
    assert catalog.alerts()[0].acknowledged_at is None


def test_who_was_told_of_an_alert_is_told_again_when_it_gets_worse(catalog: Catalog, now: datetime) -> None:
    alert = catalog.raise_alert("space", Severity.HIGH, "80 %", now=now)
    catalog.record_notification(alert, now=now)
    catalog.raise_alert("space", Severity.HIGH, "82 %", now=now + MINUTE)
    assert catalog.alert(alert).notified_at == now
    catalog.raise_alert("space", Severity.CRITICAL, "99 %", now=now + MINUTE)
    assert catalog.alert(alert).notified_at is None


def test_a_resolved_alert_makes_room_for_a_new_one(catalog: Catalog, now: datetime) -> None:
    first = catalog.raise_alert("space", Severity.MEDIUM, "80 %", now=now)
    catalog.resolve_alert(first, now=now)
    catalog.resolve_alert(first, now=now + MINUTE)
    assert catalog.alerts() == ()
    second = catalog.raise_alert("space", Severity.MEDIUM, "80 %", now=now + MINUTE)
    assert second != first
    assert catalog.resolve_alerts("space", now=now + MINUTE)
    assert not catalog.resolve_alerts("space", now=now + MINUTE)
    assert {alert.resolved_at for alert in catalog.alerts(open_only=False)} == {now, now + MINUTE}


def test_threads_that_raise_the_same_alert_open_one(catalog: Catalog, now: datetime) -> None:
    def raise_one() -> None:
        catalog.raise_alert("space", Severity.MEDIUM, "80 %", now=now)

    threads = [threading.Thread(target=raise_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (alert,) = catalog.alerts()
    assert alert.occurrences == 6


def test_threads_that_ensure_the_same_user_make_one(catalog: Catalog, now: datetime) -> None:
    made: list[UUID] = []
    threads = [threading.Thread(target=lambda: made.append(catalog.ensure_user("ada", now=now))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert set(made) == {catalog.users()[0].id}
