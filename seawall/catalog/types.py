"""Column types that mean the same on SQLite and PostgreSQL.

Moments are aware and UTC: SQLite would lose the offset silently, so a naive one is refused on the way in and
UTC is put back on the way out. Documents are JSONB on PostgreSQL. Enumerations are text with a CHECK
constraint: a native type cannot lose or rename a value inside a transaction.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import JSON, DateTime, Dialect, Enum
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

ENUM_LENGTH = 50


class AwareDateTime(TypeDecorator[datetime]):
    """A moment in UTC.

    Raises:
        ValueError: a naive datetime is bound.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError(f"the time {value.isoformat()} has no offset from UTC")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def document_type() -> TypeEngine[object]:
    """JSON, stored as JSONB on PostgreSQL."""
    return JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def enum_type(enumeration: type[StrEnum], name: str) -> Enum:
    """Text of at most 50 characters whose CHECK constraint admits the enumeration's wire forms.

    Args:
        enumeration: the values; a member's value is what is stored.
        name: the constraint's name, completed by the naming convention to `ck_<table>_<name>`.
    """
    return Enum(
        enumeration,
        name=name,
        native_enum=False,
        create_constraint=True,
        validate_strings=True,
        length=ENUM_LENGTH,
        values_callable=lambda members: [member.value for member in members],
    )
