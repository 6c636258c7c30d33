"""Objects in a container of Azure Blob Storage.

Each request that carries bytes carries their MD5, which the service compares with what arrived. A small object is one
request; a larger one is sent in blocks and gets its name by a commit that fails if the name is taken. Blocks of an
upload that was broken off are removed by the service itself after a week ("Put Block", remarks), so `sweep` finds none.

Locks are those of single blobs: an immutability policy with a date, and a legal hold ("Set Blob Immutability Policy",
"Set Blob Legal Hold"), in containers for which version-level immutability was turned on.

Not guaranteed: that a delete frees space in an account that keeps versions or deleted blobs for a while, which one
with version-level immutability does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import (
    BlobBlock,
    BlobPrefix,
    BlobProperties,
    BlobServiceClient,
    ContainerClient,
    ImmutabilityPolicy,
)

from seawall.errors import (
    NotARepository,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    SeawallError,
    SettingsError,
    StorageBusy,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnreachable,
)
from seawall.model import LockMode
from seawall.settings import RepositorySettings
from seawall.storage.access import (
    Place,
    bucket_place,
    certificates,
    credentials,
    is_loopback,
    secured_endpoint,
    split,
)
from seawall.storage.answers import explained, foreign, server_time
from seawall.storage.base import Capabilities, Stat
from seawall.storage.immutability import Retention
from seawall.storage.locking import Attack, LockingStorage, can_lock_now, refuse_locked
from seawall.storage.objects import Fetched
from seawall.storage.parts import AHEAD, PART_BYTES
from seawall.storage.retry import RetryPolicy, Sleep

_CONNECT_SECONDS = 10
_READ_SECONDS = 60

# Locked: nobody makes it shorter. Unlocked: whoever may set policies does ("Set Blob Immutability Policy").
_POLICY_MODES = {LockMode.COMPLIANCE: "Locked", LockMode.GOVERNANCE: "Unlocked"}

# Codes that say more than their status (Azure Storage REST reference, "Blob service error codes").
_BY_CODE: dict[str, type[SeawallError]] = {
    "BlobAlreadyExists": ObjectExists,
    "UnauthorizedBlobOverwrite": ObjectExists,
    "BlobImmutableDueToPolicy": ObjectLocked,
    "BlobImmutableDueToLegalHold": ObjectLocked,
    "ServerBusy": StorageBusy,
    "Md5Mismatch": StorageUnreachable,
    "OperationTimedOut": StorageUnreachable,
    "AccountIsDisabled": StorageDenied,
    "ContainerQuotaDownloadBytes": StorageFull,
    "ContainerBeingDeleted": NotARepository,
}

_NO_CONTAINER = "Create the container, or correct the URL."

# What is wrong with credentials (the same, and "Authorize requests to Azure Storage").
_WHO = (
    "Check the key or signature in credentials_file, its role, the date on which it ends, and this host's clock.",
    {"AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo", "NoAuthenticationInformation"},
)
_WHAT = (
    "These credentials lack a right: docs/how-to/azure.md lists what each account needs.",
    {"AuthorizationPermissionMismatch", "AuthorizationResourceTypeMismatch", "InsufficientAccountPermissions"},
)
_HINTS = {code: hint for hint, codes in (_WHO, _WHAT) for code in codes}


def open_url(url: str, settings: RepositorySettings, sleep: Sleep = time.sleep) -> AzureStorage:
    """The storage at `azure://container/prefix`; nothing is asked of the service yet.

    Raises:
        SettingsError: the URL, the endpoint or the credentials file is wrong.
    """
    place = bucket_place(url, "azure")
    bucket = AzureContainer(place, client(settings).get_container_client(place.bucket), settings.lock_mode)
    return AzureStorage(bucket, RetryPolicy(attempts=settings.attempts), sleep)


def client(settings: RepositorySettings) -> BlobServiceClient:
    """A client of the Blob service that makes each request once: repeating is decided above.

    Raises:
        SettingsError: the endpoint or the credentials file is wrong.
    """
    options: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "connection_verify": certificates(settings),
        # Nowhere else than the settings say: a redirection might even lead to a place without TLS.
        "permit_redirects": False,
        "max_single_put_size": 2 * PART_BYTES,
        "max_single_get_size": PART_BYTES,
    }
    endpoint, text = secured_endpoint(settings), credentials(settings)
    if text is not None and "=" in text and not text.lstrip().startswith("{"):
        return _from_connection_string(text, options)
    if not endpoint:
        raise SettingsError("endpoint is wanted: https://ACCOUNT.blob.core.windows.net")
    return BlobServiceClient(endpoint, credential=_identity(text), **options)


class AzureContainer:
    """A container and a prefix.

    Args:
        container: the vendor's client, of which several threads may make use.
        mode: how firmly blobs are locked where they are.
        until: lock what is written until then; None for not at all.
    """

    part_bytes = PART_BYTES
    lock_hint = "Version-level immutability must be on for the container; see docs/how-to/azure.md."

    def __init__(self, place: Place, container: ContainerClient, mode: LockMode, until: datetime | None = None) -> None:
        self._place = place
        self._client = container
        self._mode = mode
        self._lock = {} if until is None else {"immutability_policy": self._policy(until)}
        self._lockable: bool | None = None

    def locking(self, until: datetime) -> AzureContainer:
        return AzureContainer(self._place, self._client, self._mode, until)

    @property
    def url(self) -> str:
        return f"azure://{self._place.bucket}/{self._place.prefix}".rstrip("/")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            create_only=True,
            consistent_list=True,
            object_lock=can_lock_now(self),
            free_space=False,
            checksums=True,
            folders=False,
        )

    def create(self, name: str, content: bytearray) -> None:
        with self._translated("write", name):
            self._blob(name).upload_blob(
                bytes(content), length=len(content), overwrite=False, validate_content=True, **self._lock
            )

    def holds(self, name: str, content: bytearray) -> bool:
        found = self._properties(name).content_settings.content_md5
        return found is not None and bytes(found) == hashlib.md5(content, usedforsecurity=False).digest()

    def begin(self, name: str) -> AzureUpload:
        return AzureUpload(self, name)

    def fetch(self, name: str, begin: int, end: int) -> Fetched:
        try:
            with self._translated("read", name):
                found = self._blob(name).download_blob(begin, end - begin)
                # The size in these properties is the range's; that of the object stands behind the slash.
                return Fetched(found.readall(), int(found.properties.content_range.rpartition("/")[2]))
        except _BeyondEnd:
            return Fetched(b"", self.look(name).size_bytes)

    def look(self, name: str) -> Stat:
        return _stat(name, self._properties(name))

    def walk(self, prefix: str) -> Iterator[Stat]:
        with self._translated("list", prefix):
            for found in self._client.list_blobs(name_starts_with=self._place.prefix + prefix):
                yield _stat(found.name[len(self._place.prefix) :], found)

    def folders(self, folder: str) -> Iterator[str]:
        with self._translated("list", folder):
            for found in self._client.walk_blobs(name_starts_with=self._place.prefix + folder):
                name = found.name if isinstance(found, BlobPrefix | BlobProperties) else str(found)
                yield name[len(self._place.prefix) :]

    def hidden_bytes(self) -> int:
        with self._translated("list", "versions"):
            found = self._client.list_blobs(name_starts_with=self._place.prefix, include=["versions", "deleted"])
            return sum(one.size for one in found if one.deleted or (one.version_id and not one.is_current_version))

    def remove(self, name: str) -> None:
        if self.can_lock():
            # Where there are versions, the service might take a delete for "hide", and keep the bytes out of sight.
            try:
                refuse_locked(name, self.url, self.retention(name), self.now())
            except ObjectMissing:
                return
        with contextlib.suppress(ObjectMissing):
            self._delete(name)

    def _delete(self, name: str, **version: str) -> None:
        with self._translated("delete", name):
            try:
                self._blob(name).delete_blob(**version)
            except HttpResponseError as error:
                if _code(error) == "BlobNotFound":
                    raise ObjectMissing(f"{name} does not exist in {self.url}") from error
                raise

    def can_lock(self) -> bool:
        if self._lockable is None:
            try:
                with self._translated("look at", "the container"):
                    found = self._client.get_container_properties()
                    _ = found.last_modified.astimezone(UTC)  # another server's answer has none
            except (StorageUnreachable, NotARepository):
                raise
            except StorageError:
                self._lockable = False
            else:
                self._lockable = bool(found.immutable_storage_with_versioning_enabled)
        return self._lockable

    def retention(self, name: str) -> Retention:
        found = self._properties(name)
        until = found.immutability_policy.expiry_time
        return Retention(None if until is None else until.astimezone(UTC), bool(found.has_legal_hold))

    def lock(self, name: str, until: datetime) -> None:
        with self._translated("lock", name):
            self._blob(name).set_immutability_policy(self._policy(until))

    def hold(self, name: str, on: bool) -> None:
        with self._translated("hold", name):
            self._blob(name).set_legal_hold(on)

    def attacks(self, name: str) -> list[Attack]:
        found = self._properties(name)
        version, until = found.version_id, found.immutability_policy.expiry_time or self.now()
        return [
            ("could be unlocked before its time", lambda: self.lock(name, until - timedelta(hours=1))),
            ("could be unlocked", lambda: self._unlock(name)),
            ("could be deleted", lambda: self._gone(name, version, lambda: self._delete(name))),
            ("could be deleted as a version", lambda: self._delete_version(name, version)),
            ("could be overwritten", lambda: self._gone(name, version, lambda: self._overwrite(name))),
        ]

    def _unlock(self, name: str) -> None:
        with self._translated("unlock", name):
            self._blob(name).delete_immutability_policy()

    def _overwrite(self, name: str) -> None:
        with self._translated("overwrite", name):
            self._blob(name).upload_blob(b"overwritten", overwrite=True)

    def _delete_version(self, name: str, version: str | None) -> None:
        if version is None:
            raise ObjectLocked(f"{name} in {self.url} has no versions")
        self._delete(name, version_id=version)

    def _gone(self, name: str, version: str | None, attack: Callable[[], object]) -> None:
        """Make an attack that hits the newest version.

        Raises:
            ObjectLocked: the version that was locked is there all the same, below what the attack left.
        """
        attack()
        if version is None:
            return
        try:
            self._properties(name, version_id=version)
        except ObjectMissing:
            return
        raise ObjectLocked(f"the version of {name} that was locked is as it was")

    def _policy(self, until: datetime) -> ImmutabilityPolicy:
        return ImmutabilityPolicy(expiry_time=until, policy_mode=_POLICY_MODES[self._mode])

    def now(self) -> datetime:
        dates: list[str | None] = []
        with self._translated("look at", "the container"):
            found = self._client.list_blobs(
                name_starts_with=self._place.prefix,
                results_per_page=1,
                raw_response_hook=lambda answer: dates.append(answer.http_response.headers.get("date")),
            )
            next(iter(found), None)
        return server_time(dates[0] if dates else None, self.url)

    def sweep(self, older_than: timedelta) -> int:  # noqa: ARG002 - the contract's signature
        """Nothing: the service itself removes what was never committed."""
        return 0

    def close(self) -> None:
        self._client.close()

    def _blob(self, name: str) -> Any:
        return self._client.get_blob_client(self._place.prefix + name)

    def _properties(self, name: str, **version: str) -> BlobProperties:
        with self._translated("look at", name):
            found: BlobProperties = self._blob(name).get_blob_properties(**version)
            _ = found.last_modified.astimezone(UTC)  # another server's answer has none
            return found

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        what = f"cannot {action} {name or 'objects'} in {self.url}"
        try:
            yield
        except HttpResponseError as error:
            if error.status_code == 416:
                raise _BeyondEnd from error
            raise _explained(error, what) from error
        except (ServiceRequestError, ServiceResponseError, IncompleteReadError, OSError) as error:
            hint = "Name the certificate of your own authority with ca_file." if "CERTIFICATE" in str(error) else None
            raise StorageUnreachable(f"{what}: {error}", hint=hint) from error
        except AzureError as error:
            raise StorageDenied(f"{what}: {error}", hint="See docs/how-to/azure.md.") from error
        # What the vendor's library comes upon in the answers of others.
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise foreign(what, "Azure", f"{type(error).__name__}: {error}") from error


class AzureStorage(LockingStorage):
    """Blobs in a container, which can lock them where version-level immutability is on."""

    bucket: AzureContainer


@dataclass
class AzureUpload:
    """Blocks on their way; their names are this upload's own, so that two writers do not mix theirs."""

    container: AzureContainer
    name: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    numbers: set[int] = field(default_factory=set)
    at_once: int = AHEAD

    def send(self, number: int, part: bytearray) -> None:
        with self.container._translated("write", self.name):
            self.container._blob(self.name).stage_block(
                self._block(number), bytes(part), length=len(part), validate_content=True
            )
        self.numbers.add(number)

    def finish(self) -> None:
        blocks = [BlobBlock(self._block(number)) for number in sorted(self.numbers)]
        with self.container._translated("write", self.name):
            self.container._blob(self.name).commit_block_list(
                blocks, match_condition=MatchConditions.IfMissing, **self.container._lock
            )

    def stored(self) -> bool:
        with self.container._translated("look at", self.name):
            committed, _ = self.container._blob(self.name).get_block_list("committed")
        return [block.id for block in committed] == [self._block(number) for number in sorted(self.numbers)]

    def abort(self) -> None:
        """Nothing: what is not committed is nobody's, and the service removes it."""

    def _block(self, number: int) -> str:
        return f"{self.token}-{number:06d}"


class _BeyondEnd(Exception):
    """A range that begins behind the object's last byte; never leaves this module."""


def _explained(error: HttpResponseError, what: str) -> SeawallError:
    code = _code(error)
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    request = headers.get("x-ms-request-id", "")
    said = (error.reason or error.message or "").partition("\n")[0]
    message = f"{what}: {code} {said}".rstrip() + (f" (request {request})" if request else "")
    if code == "ContainerNotFound":
        return NotARepository(f"{what}: there is no such container", hint=_NO_CONTAINER)
    if code in _BY_CODE:
        return _BY_CODE[code](message)
    status = error.status_code or 0
    if (status == 404 or status < 400) and not code:
        # The service names what is missing, in a header, also where the answer has no body.
        return foreign(what, "Azure", f"{status} {said}")
    if isinstance(error, ClientAuthenticationError):
        return StorageDenied(message, hint=_HINTS.get(code, _WHO[0]))
    return explained(status, message, hint=_HINTS.get(code))


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _stat(name: str, found: BlobProperties) -> Stat:
    return Stat(name, found.size, found.last_modified.astimezone(UTC))


def _from_connection_string(text: str, options: dict[str, Any]) -> BlobServiceClient:
    try:
        made = BlobServiceClient.from_connection_string(text.strip(), **options)
    except ValueError as error:
        # The error's own text may repeat the key.
        raise SettingsError(
            "credentials_file holds no connection string of an Azure storage account",
            hint="Neither a key nor a signature alone is one, but BlobEndpoint=https://ACCOUNT.blob.core.windows.net;"
            "SharedAccessSignature=... is (docs/how-to/azure.md).",
        ) from error
    parts = split(made.primary_endpoint)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise SettingsError(
            "the connection string in credentials_file would send backups without TLS",
            hint="DefaultEndpointsProtocol must be https.",
        )
    return made


def _identity(text: str | None) -> Any:
    """A service principal from JSON, or what Azure's own places offer."""
    from azure import identity  # noqa: PLC0415 - not needed with a connection string, and slow to import

    if text is None:
        return identity.DefaultAzureCredential()
    try:
        found = json.loads(text)
        return identity.ClientSecretCredential(found["tenant_id"], found["client_id"], found["client_secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            "credentials_file must be a connection string, or JSON with tenant_id, client_id and client_secret"
        ) from error
