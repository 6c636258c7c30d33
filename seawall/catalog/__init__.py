"""The catalog database: jobs, executions, backup sets, proofs, recoveries, sites, alerts, users and audit.

It is an index; the repositories are the truth, and `rebuild` recreates from them what they know.
Nothing here is needed for a restore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from seawall.catalog.logbook import Logbook
from seawall.catalog.views import (
    Alert,
    AuditAnchor,
    AuditEntry,
    AuditVerdict,
    BackupFile,
    BackupOutcome,
    DrConfiguration,
    Execution,
    Job,
    JobType,
    LocationType,
    Measurement,
    Recovery,
    RecoveryType,
    Role,
    RunStatus,
    Severity,
    StorageLocation,
    User,
    Verification,
    VerificationType,
)

if TYPE_CHECKING:
    from seawall.catalog.rebuilding import RebuildReport, rebuild
    from seawall.catalog.store import Catalog

# Imported when they are asked for: they bring SQLAlchemy, SQLModel and pydantic, which who only records does not need.
_HEAVY = {"Catalog": "store", "RebuildReport": "rebuilding", "rebuild": "rebuilding"}

__all__ = [
    "Alert",
    "AuditAnchor",
    "AuditEntry",
    "AuditVerdict",
    "BackupFile",
    "BackupOutcome",
    "Catalog",
    "DrConfiguration",
    "Execution",
    "Job",
    "JobType",
    "LocationType",
    "Logbook",
    "Measurement",
    "RebuildReport",
    "Recovery",
    "RecoveryType",
    "Role",
    "RunStatus",
    "Severity",
    "StorageLocation",
    "User",
    "Verification",
    "VerificationType",
    "rebuild",
]


def __getattr__(name: str) -> object:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)
