"""The catalog database: jobs, executions, backup sets, proofs, recoveries, sites, alerts, users and audit.

It is an index; the repositories are the truth, and `rebuild` recreates from them what they know.
Nothing here is needed for a restore.
"""

from seawall.catalog.rebuild import RebuildReport, rebuild
from seawall.catalog.store import Catalog
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
