"""The tree of errors that Seawall raises on purpose.

Every class states a stable `code`, the `exit_code` of the command line, a default `hint` for the user, and
whether a later attempt of the same step can succeed (`retryable`). Drivers translate foreign errors at the
border; only the command line, the task wrapper and the API turn an error into an exit code, a Prefect state
or an HTTP problem.

    SeawallError
    ├── UsageError                what was asked makes no sense: names, options, settings
    │   ├── NameRefused           a name with characters that storage or SQL cannot carry safely
    │   └── SettingsError         a settings file or value is wrong
    ├── StorageError              the storage did not do what it was asked
    │   ├── ObjectMissing         proved absent
    │   ├── ObjectExists          write-once: something lies there already
    │   ├── ObjectTruncated       shorter than the range that was asked for
    │   ├── StorageFull           no space
    │   ├── StorageDenied         permissions
    │   │   └── ObjectLocked      immutable until a date, or under a legal hold
    │   ├── LockBroken            what should be immutable could be changed
    │   └── StorageUnreachable    no answer, time-out, too many attempts
    │       └── StorageBusy       the storage asks to slow down
    ├── RepositoryError           the repository contradicts itself or what was asked
    │   ├── NotARepository, FormatTooNew
    │   ├── BackupMissing         no backup set of that label
    │   ├── Damaged               bytes are not what was written
    │   ├── LeaseHeld, LeaseLost
    │   ├── ClockWentBackwards
    │   └── RetentionRefused      a plan would let go what must stay
    ├── KeyError_                 keys
    │   ├── KeyMissing            the key that opens this is not in the key ring
    │   └── KeyUnusable           expired, without encryption capability, or its passphrase is wrong
    ├── ClusterError              a live cluster or its data directory
    │   ├── ServerUnreachable, PrivilegeMissing, ClusterMismatch, ServerFailed, BinariesMissing
    │   └── IncrementalRefused    the server cannot tell what changed since the prior backup
    ├── ArchiveError              WAL
    │   ├── WalGap, WalConflict, SupersededTimeline, ArchiveTimeout, SlotBusy
    ├── RestoreError              recovery
    │   ├── TargetUnreachable, DestinationInUse, RecoveryFailed
    ├── CatalogError              the catalog database
    │   ├── CatalogMissing, CatalogOutdated, CatalogTooNew, CatalogUnreachable
    │   └── RecordMissing         no row of that id or name
    ├── VerificationFailed        data was read back and is wrong
    ├── Partial                   only a part of the source could be read
    └── Cancelled                 somebody asked for it to stop
"""

from __future__ import annotations

from typing import ClassVar


class SeawallError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what happened, with the facts at hand; never a secret.
        hint: what the user can do; the class's default when omitted.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 10
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint

    def as_dict(self) -> dict[str, str | bool]:
        """The error as it appears in JSON output and in the catalog."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}


class UsageError(SeawallError):
    code = "usage"
    exit_code = 2
    default_hint = "See `seawall --help`."


class NameRefused(UsageError):
    code = "name-refused"
    default_hint = "Use 1 to 63 characters: a-z, 0-9, '-' and '_', beginning with a letter or digit."


class SettingsError(UsageError):
    code = "settings"
    default_hint = "See docs/reference/settings.md for every setting."


class StorageError(SeawallError):
    code = "storage"
    exit_code = 20
    retryable = True
    default_hint = "Run `seawall check` to see what the storage answers."

    # Set on an error after whose like the request was made again until patience ended; nobody repeats it once more.
    exhausted: bool = False


class ObjectMissing(StorageError):
    code = "object-missing"
    exit_code = 21
    retryable = False
    default_hint = "Run `seawall verify` to learn which backups need this object."


class ObjectExists(StorageError):
    code = "object-exists"
    exit_code = 22
    retryable = False
    default_hint = "Objects are never overwritten; another writer was faster or the name is not unique."


class ObjectTruncated(StorageError):
    code = "object-truncated"
    exit_code = 26
    retryable = False
    default_hint = "The object is shorter than what was written. Run `seawall verify`; take it from another copy."


class StorageFull(StorageError):
    code = "storage-full"
    exit_code = 23
    retryable = False
    default_hint = "Free space or enlarge the storage, then run the command again; nothing listed was lost."


class StorageDenied(StorageError):
    code = "storage-denied"
    exit_code = 24
    retryable = False
    default_hint = "Give this account the permission that the message names."


class ObjectLocked(StorageDenied):
    code = "object-locked"
    exit_code = 27
    default_hint = "This is what immutability is for. Expiry leaves the object and tries again after that date."


class LockBroken(StorageError):
    code = "lock-broken"
    exit_code = 29
    retryable = False
    default_hint = "Whoever has these credentials can destroy the backups there; see docs/how-to/immutability.md."


class StorageUnreachable(StorageError):
    code = "storage-unreachable"
    exit_code = 25


class StorageBusy(StorageUnreachable):
    code = "storage-busy"
    exit_code = 28
    default_hint = "The storage limits requests. Lower [repository] concurrency, or spread backups over the day."


class RepositoryError(SeawallError):
    code = "repository"
    exit_code = 30


class NotARepository(RepositoryError):
    code = "not-a-repository"
    exit_code = 31
    default_hint = "Create one with `seawall init`, or check the path."


class FormatTooNew(RepositoryError):
    code = "format-too-new"
    exit_code = 32
    default_hint = "Upgrade Seawall: a newer version wrote this repository."


class BackupMissing(RepositoryError):
    code = "backup-missing"
    exit_code = 33
    default_hint = "`seawall list` shows the backups that exist."


class Damaged(RepositoryError):
    code = "damaged"
    exit_code = 34
    default_hint = "Do not delete anything. Restore from another backup or copy; `seawall verify` names what is good."


class LeaseHeld(RepositoryError):
    code = "lease-held"
    exit_code = 35
    retryable = True
    default_hint = "Another writer is at work on this source. Wait for it, or for its lease to run out."


class LeaseLost(RepositoryError):
    code = "lease-lost"
    exit_code = 36
    retryable = True
    default_hint = "This writer was too slow to renew its lease and stopped, so that two writers never meet."


class ClockWentBackwards(RepositoryError):
    code = "clock-went-backwards"
    exit_code = 37
    default_hint = "Compare this host's clock with a time server (`timedatectl`) and with the storage's clock."


class RetentionRefused(RepositoryError):
    code = "retention-refused"
    exit_code = 38
    default_hint = "Nothing was let go; docs/how-to/retention.md tells what each refusal means."


class KeyError_(SeawallError):  # noqa: N801 - the builtin's name must not be shadowed
    code = "key"
    exit_code = 40


class KeyMissing(KeyError_):
    code = "key-missing"
    exit_code = 41
    default_hint = "Import one of the private keys the message names into the key ring (see docs/how-to/keys.md)."


class KeyUnusable(KeyError_):
    code = "key-unusable"
    exit_code = 42
    default_hint = "Check the key with `seawall keys list`: expiry, encryption capability, passphrase."


class ClusterError(SeawallError):
    code = "cluster"
    exit_code = 50


class ServerUnreachable(ClusterError):
    code = "server-unreachable"
    exit_code = 51
    retryable = True
    default_hint = "Is the server up, and do host, port, user and pg_hba.conf admit this host?"


class PrivilegeMissing(ClusterError):
    code = "privilege-missing"
    exit_code = 52
    default_hint = "docs/how-to/prepare-postgres.md lists the grants that each mode needs."


class ClusterMismatch(ClusterError):
    code = "cluster-mismatch"
    exit_code = 53
    default_hint = (
        "This is another cluster than the one the source was made for. Use another source name for it, also after "
        "pg_upgrade (docs/how-to/upgrade-postgresql.md)."
    )


class ServerFailed(ClusterError):
    code = "server-failed"
    exit_code = 54
    default_hint = "The server's log, quoted above, says why."


class BinariesMissing(ClusterError):
    code = "binaries-missing"
    exit_code = 55
    default_hint = "Install that major version of PostgreSQL, or name its directory with `bin_directory`."


class IncrementalRefused(ClusterError):
    code = "incremental-refused"
    exit_code = 56
    default_hint = "A full backup needs nothing of this; docs/how-to/prepare-postgres.md tells what WAL summaries need."


class ArchiveError(SeawallError):
    code = "archive"
    exit_code = 60


class WalGap(ArchiveError):
    code = "wal-gap"
    exit_code = 61
    default_hint = (
        "Recovery cannot pass the gap. Look for the segments in pg_wal or on a standby, else take a full backup."
    )


class WalConflict(ArchiveError):
    code = "wal-conflict"
    exit_code = 62
    default_hint = "Two servers write the same WAL names. Find out which is the true primary before anything else."


class SupersededTimeline(ArchiveError):
    code = "superseded-timeline"
    exit_code = 63
    default_hint = "A newer timeline exists: this server was failed over from and must not archive any more."


class ArchiveTimeout(ArchiveError):
    code = "archive-timeout"
    exit_code = 64
    retryable = True
    default_hint = "WAL does not arrive. `seawall check` proves archiving end to end and says where it stops."


class SlotBusy(ArchiveError):
    code = "slot-busy"
    exit_code = 65
    retryable = True
    default_hint = "Another receiver streams from this slot, or the server has not yet noticed that the last one died."


class RestoreError(SeawallError):
    code = "restore"
    exit_code = 70


class TargetUnreachable(RestoreError):
    code = "target-unreachable"
    exit_code = 71
    default_hint = "`seawall info` shows the recoverability window."


class DestinationInUse(RestoreError):
    code = "destination-in-use"
    exit_code = 72
    default_hint = "Choose an empty directory, or stop the server there and ask for a delta restore."


class RecoveryFailed(RestoreError):
    code = "recovery-failed"
    exit_code = 73
    default_hint = "The server's log, quoted above, says where replay stopped."


class CatalogError(SeawallError):
    code = "catalog"
    exit_code = 90
    default_hint = "The repository is untouched; `seawall catalog rebuild` recreates what it knows in a new catalog."


class CatalogMissing(CatalogError):
    code = "catalog-missing"
    exit_code = 91
    default_hint = "Create it with `seawall catalog upgrade`, or correct [catalog] url in the settings."


class CatalogOutdated(CatalogError):
    code = "catalog-outdated"
    exit_code = 92
    default_hint = "Run `seawall catalog upgrade`."


class CatalogTooNew(CatalogError):
    code = "catalog-too-new"
    exit_code = 93
    default_hint = "Upgrade Seawall on this host: a newer version upgraded the catalog."


class CatalogUnreachable(CatalogError):
    code = "catalog-unreachable"
    exit_code = 94
    retryable = True
    default_hint = "Is the catalog's server up and does it admit this host, or is the SQLite file locked or read-only?"


class RecordMissing(CatalogError):
    code = "record-missing"
    exit_code = 95
    default_hint = "It may be of another catalog; `seawall catalog rebuild` recreates what repositories know."


class VerificationFailed(SeawallError):
    code = "verification-failed"
    exit_code = 80
    default_hint = "Take a new full backup now; keep this one until its successor is verified."


class Partial(SeawallError):
    code = "partial"
    exit_code = 81
    default_hint = "Some of the source could not be read; the message names what."


class Cancelled(SeawallError):
    code = "cancelled"
    exit_code = 130
    default_hint = "Nothing was listed; what was written is garbage and will be collected."
