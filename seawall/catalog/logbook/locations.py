"""The storage locations in which backups lie, and how they fare."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid4

from seawall.catalog.checks import aware, bounded
from seawall.catalog.documents import clean, configuration
from seawall.catalog.logbook.rows import Entries, Transaction
from seawall.catalog.views import NAME_LENGTH, Document, LocationType, StorageLocation
from seawall.errors import CatalogError, RecordMissing


class LocationEntries(Entries):
    def ensure_storage_location(
        self,
        name: str,
        location_type: LocationType,
        *,
        connection_config: Document,
        encryption_config: Document | None = None,
        capacity_bytes: int | None = None,
        role: str | None = None,
        now: datetime,
    ) -> UUID:
        """Create the location of that name, or bring it to this definition.

        Args:
            connection_config: where it is, `{"url": …}`; credentials are named, never given.
            capacity_bytes: None keeps what was configured or measured before.
            role: what it is for; None keeps what was said before.

        Raises:
            UsageError: a value is malformed or looks like a secret.
        """
        wanted = StorageLocation(
            id=uuid4(),
            name=bounded(name, NAME_LENGTH, "the storage location's name"),
            location_type=LocationType(location_type),
            connection_config=configuration(connection_config, "connection_config"),
            encryption_config=configuration(encryption_config or {}, "encryption_config"),
            capacity_bytes=capacity_bytes,
            used_bytes=0,
            is_active=True,
            last_health_check=None,
            health_message=None,
            created_at=aware(now),
            role=role,
        )
        with self._writes() as rows:
            if rows.insert(wanted):
                return wanted.id
            return _redefined(rows, wanted)

    def observe_storage_location(
        self,
        name: str,
        *,
        now: datetime,
        used_bytes: int | None = None,
        capacity_bytes: int | None = None,
        latency_ms: int | None = None,
        problem: str | None = None,
    ) -> None:
        """Record a health check of a location; sizes and latency that are None stay as they were.

        Args:
            problem: what is wrong with it, None if nothing is.

        Raises:
            RecordMissing: there is no location of that name.
        """
        measured = {"used_bytes": used_bytes, "capacity_bytes": capacity_bytes, "latency_ms": latency_ms}
        with self._writes() as rows:
            rows.update(
                StorageLocation,
                _named(rows, name).id,
                last_health_check=aware(now),
                health_message=None if problem is None else clean(problem),
                **{what: value for what, value in measured.items() if value is not None},
            )

    def retire_storage_location(self, name: str) -> None:
        """Mark a location as no longer used; what was recorded of it stays.

        Raises:
            RecordMissing: there is no location of that name.
        """
        with self._writes() as rows:
            rows.update(StorageLocation, _named(rows, name).id, is_active=False)

    def storage_locations(self, *, active_only: bool = False) -> tuple[StorageLocation, ...]:
        """All locations by name."""
        with self._reads() as rows:
            found = rows.all(StorageLocation, "ORDER BY name")
        return tuple(location for location in found if location.is_active or not active_only)


def _named(rows: Transaction, name: str) -> StorageLocation:
    location = rows.first(StorageLocation, "WHERE name = :name", lock=True, name=name)
    if location is None:
        raise RecordMissing(f"the catalog has no storage location {name!r}")
    return location


def _redefined(rows: Transaction, wanted: StorageLocation) -> UUID:
    existing = rows.first(StorageLocation, "WHERE name = :name", lock=True, name=wanted.name)
    if existing is None:
        raise CatalogError(f"the storage location {wanted.name!r} was removed meanwhile")
    rows.update(
        StorageLocation,
        existing.id,
        location_type=wanted.location_type,
        connection_config=wanted.connection_config,
        encryption_config=wanted.encryption_config,
        capacity_bytes=wanted.capacity_bytes or existing.capacity_bytes,
        role=wanted.role or existing.role,
        is_active=True,
    )
    return existing.id
