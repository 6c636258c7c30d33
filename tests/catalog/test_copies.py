"""Proofs of objects, copies of backups, and suspicions, as the catalog keeps them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from seawall.catalog import Catalog, LocationType
from seawall.catalog.views import ObjectProof

HOUR = timedelta(hours=1)


def test_a_newer_proof_of_an_object_replaces_the_older_and_locations_are_kept_apart(
    catalog: Catalog, now: datetime
) -> None:
    repository = uuid4()
    catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={"url": "/vault"}, now=now)
    many = [ObjectProof(f"sources/shop/backups/x/bundles/{n:08d}", "hash-good", now) for n in range(1200)]
    catalog.record_proofs(repository, "vault", many)
    catalog.record_proofs(repository, "primary", many[:1])
    worse = ObjectProof(many[7].name, None, now + HOUR, "its SHA-256 differs")
    catalog.record_proofs(repository, "vault", [worse])
    known = catalog.object_proofs(repository, "vault")
    assert len(known) == 1200
    assert known[many[7].name] == worse
    assert catalog.object_proofs(repository, "primary") == {many[0].name: many[0]}
    assert catalog.object_proofs(uuid4(), "vault") == {}
    (vault,) = catalog.storage_locations()
    assert vault.last_proof_at == now + HOUR
    catalog.forget_proofs(repository, "vault", [many[7].name, "never known"])
    assert len(catalog.object_proofs(repository, "vault")) == 1199


def test_the_copies_of_a_source_are_those_that_were_seen_last(catalog: Catalog, now: datetime) -> None:
    repository = uuid4()
    catalog.record_copies(repository, "shop", "primary", ["b", "a"], now=now)
    catalog.record_copies(repository, "shop", "vault", ["a"], now=now)
    catalog.record_copies(repository, "other", "vault", ["z"], now=now)
    assert catalog.copies(repository, "shop") == {"a": ("primary", "vault"), "b": ("primary",)}
    catalog.record_copies(repository, "shop", "primary", ["b"], now=now + HOUR)
    assert catalog.copies(repository, "shop") == {"a": ("vault",), "b": ("primary",)}


def test_a_location_keeps_its_role_and_latency_until_told_otherwise_and_can_retire(
    catalog: Catalog, now: datetime
) -> None:
    catalog.ensure_storage_location(
        "vault", LocationType.LOCAL, connection_config={"url": "/vault"}, role="offsite", now=now
    )
    catalog.observe_storage_location("vault", now=now, latency_ms=12)
    catalog.ensure_storage_location("vault", LocationType.LOCAL, connection_config={"url": "/other"}, now=now)
    catalog.observe_storage_location("vault", now=now + HOUR, problem="no route")
    (vault,) = catalog.storage_locations()
    assert (vault.role, vault.latency_ms, vault.health_message) == ("offsite", 12, "no route")
    catalog.retire_storage_location("vault")
    assert catalog.storage_locations(active_only=True) == ()


def test_what_is_unusual_about_a_backup_is_kept_with_it(
    catalog: Catalog, now: datetime, new_job: Callable[..., UUID]
) -> None:
    from seawall.catalog.models import BackupFileRow

    run = catalog.begin_execution(new_job(catalog), now=now, lease=HOUR)
    row = BackupFileRow(
        execution_id=run, file_name="l", file_path="p", file_size_bytes=1, compressed_size_bytes=1, checksum="ab",
        storage_location="vault", created_at=now, repository_id=uuid4(), source="shop", label="l",
    )  # fmt: skip
    with catalog.session_for_rebuild() as session:
        session.add(row)
    assert catalog.backup_file(row.id).suspicions is None
    catalog.record_suspicions(row.id, ["size: 10 where 1000 is usual"])
    assert catalog.backup_file(row.id).suspicions == ["size: 10 where 1000 is usual"]
    catalog.record_suspicions(row.id, [])
    assert catalog.backup_file(row.id).suspicions == []
