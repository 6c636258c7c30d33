"""How much lay in each location at which moment: what growth is seen by."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import col, delete, select

from seawall.catalog.checks import aware, bounded
from seawall.catalog.documents import as_document
from seawall.catalog.models import LocationMeasurementRow, StorageLocationRow
from seawall.catalog.records import Records, named, view
from seawall.catalog.views import NAME_LENGTH, Document, Measurement
from seawall.errors import RecordMissing

# A trend needs no more, and one a day is more than a year.
_KEPT = 400


class MeasurementRecords(Records):
    def record_measurement(
        self,
        location: str,
        *,
        used_bytes: int,
        object_count: int,
        capacity_bytes: int | None,
        details: Document,
        measured_at: datetime,
    ) -> None:
        """Keep what was measured of a location, and forget the oldest of very many measurements.

        Args:
            capacity_bytes: used and free together; None where nobody knows.

        Raises:
            RecordMissing: there is no location of that name.
        """
        name = bounded(location, NAME_LENGTH, "the storage location's name")
        with self._writing() as session:
            row = named(session, StorageLocationRow, name, lock=True)
            if row is None:
                raise RecordMissing(f"the catalog has no storage location {name!r}")
            row.used_bytes, row.capacity_bytes = used_bytes, capacity_bytes or row.capacity_bytes
            session.add(row)
            # The same moment again is the same measurement, told once more.
            session.exec(
                delete(LocationMeasurementRow).where(
                    col(LocationMeasurementRow.location) == name,
                    col(LocationMeasurementRow.measured_at) == aware(measured_at),
                )
            )
            session.add(
                LocationMeasurementRow(
                    location=name,
                    measured_at=aware(measured_at),
                    used_bytes=used_bytes,
                    object_count=object_count,
                    capacity_bytes=capacity_bytes,
                    details=as_document(details),
                )
            )
            session.flush()
            times = session.exec(
                select(LocationMeasurementRow.measured_at)
                .where(LocationMeasurementRow.location == name)
                .order_by(col(LocationMeasurementRow.measured_at).desc())
                .offset(_KEPT)
                .limit(1)
            ).first()
            if times is not None:
                session.exec(
                    delete(LocationMeasurementRow).where(
                        col(LocationMeasurementRow.location) == name,
                        col(LocationMeasurementRow.measured_at) <= times,
                    )
                )

    def measurements(self, location: str, *, limit: int = 200) -> tuple[Measurement, ...]:
        """The newest measurements of a location, oldest first."""
        query = (
            select(LocationMeasurementRow)
            .where(LocationMeasurementRow.location == location)
            .order_by(col(LocationMeasurementRow.measured_at).desc())
            .limit(limit)
        )
        with self._reading() as session:
            return tuple(reversed([view(Measurement, row) for row in session.exec(query)]))

    def note_proof(self, location: str, *, now: datetime) -> None:
        """Record that objects of a location were proved; a location that nobody recorded is left out."""
        with self._writing() as session:
            row = named(session, StorageLocationRow, location, lock=True)
            if row is not None:
                row.last_proof_at = aware(now)
                session.add(row)
