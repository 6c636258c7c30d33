"""What retention is told of backups that were found wrong when they were read back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from seawall.catalog import Catalog, RunStatus, VerificationType
from seawall.catalog.doubts import doubted
from seawall.catalog.views import ObjectProof
from seawall.errors import SeawallError, StorageUnreachable, VerificationFailed
from seawall.keys import KeyRing
from seawall.model import BackupLabel, Compression, SealingMode, StoredObject
from seawall.repository import Repository, Sealing
from seawall.storage.memory import MemoryStorage
from tests.engine.retention.conftest import head_of

HOUR = timedelta(hours=1)


class TestDoubts:
    @pytest.fixture
    def repository(self, now: datetime, tmp_path: Path) -> Repository:
        made = Repository.create(MemoryStorage(clock=lambda: now), now=now)
        area = made.source("shop")
        sealing = Sealing(SealingMode.NONE, Compression.NONE, 0, (), KeyRing(tmp_path / "ring"))
        first: list[StoredObject] = []
        for hours in (3, 2, 1):
            head = head_of(now - HOUR * hours)
            writer = area.begin(head.label, sealing, now)
            own = writer.put_bundle(*(named := writer.bundle_writer(1)), named[1].stream([]))
            with area.lease("t", "backup") as held:
                writer.commit(head, objects=[own, *first], specials={}, files=[], held=held)
            # The second refers to a bundle of the first; the third to none.
            first = [own] if hours == 3 else []
        return made

    def test_a_wrong_object_makes_every_set_doubtful_that_needs_it_in_that_location_alone(
        self, catalog: Catalog, repository: Repository, now: datetime
    ) -> None:
        area = repository.source("shop")
        first, second, third = area.labels()
        name = next(iter(area.needed_objects(first)))
        catalog.record_proofs(repository.id, "vault", [ObjectProof(name, None, now, "its SHA-256 differs")])
        found = doubted(catalog, area, repository.id, "vault")
        assert found == dict.fromkeys((first, second), f"{name}: its SHA-256 differs")
        assert third not in found
        assert doubted(catalog, area, repository.id, "primary") == {}
        catalog.record_proofs(repository.id, "vault", [ObjectProof(name, "hash-good", now + HOUR)])
        assert doubted(catalog, area, repository.id, "vault") == {}, "it was healed"

    def test_a_set_is_doubtful_from_a_verification_that_found_faults_to_the_next_that_finds_none(
        self, catalog: Catalog, repository: Repository, new_job: Callable[..., UUID], now: datetime
    ) -> None:
        area = repository.source("shop")
        label = area.labels()[0]
        job = new_job(catalog)
        file = catalog.record_backup(
            area.head(label), job_id=job, execution_id=catalog.begin_execution(job, now=now, lease=HOUR),
            repository_id=repository.id, storage_location="primary", expires_at=None, now=now,
        )  # fmt: skip

        def verified(after: timedelta, status: RunStatus, error: SeawallError | None = None) -> set[BackupLabel]:
            begun = catalog.begin_verification(file, VerificationType.INTEGRITY, now=now + after, lease=HOUR)
            catalog.finish_verification(begun, status=status, now=now + after, error=error)
            return set(doubted(catalog, area, repository.id, "primary"))

        assert verified(HOUR, RunStatus.FAILED, StorageUnreachable("no answer")) == set(), "nothing was found"
        assert verified(2 * HOUR, RunStatus.FAILED, VerificationFailed("1 fault")) == {label}
        assert verified(3 * HOUR, RunStatus.FAILED, StorageUnreachable("no answer")) == {label}
        assert doubted(catalog, area, repository.id, "vault") == {}
        assert verified(4 * HOUR, RunStatus.COMPLETED) == set()
