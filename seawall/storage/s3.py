"""Objects in a bucket of Amazon S3, or of a service that speaks its language.

Each part goes with its SHA-256, which the service compares with what arrived, and an object gets its name by a request
that fails if the name is taken (`If-None-Match: *`). In a versioned bucket, as Object Lock needs one, `delete` removes
the version itself: a delete marker would hide the object and keep its bytes.

Not guaranteed: conditional writes by services that ignore the header; `seawall check` tries. Works as Amazon documents
it in the S3 API reference; the sections are named where a rule comes from one.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.exceptions
import botocore.parsers
import urllib3.exceptions
from botocore.config import Config

from seawall.errors import (
    NotARepository,
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
from seawall.storage.access import Place, bucket_place, certificates, credentials, secured_endpoint
from seawall.storage.answers import explained, foreign, server_time
from seawall.storage.base import Capabilities, Stat
from seawall.storage.immutability import Retention
from seawall.storage.locking import Attack, LockingStorage, can_lock_now, refuse_locked
from seawall.storage.objects import Fetched
from seawall.storage.parts import AHEAD, PART_BYTES
from seawall.storage.retry import RetryPolicy, Sleep

_CONNECT_SECONDS = 10
_READ_SECONDS = 60

# Codes that say more than their status (S3 API reference, "Error responses"; the last two are MinIO's and Ceph's).
_BUSY = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"})
_PASSING = frozenset(
    {"RequestTimeout", "InternalError", "BadDigest", "XAmzContentChecksumMismatch", "OperationAborted"}
)
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded"})
_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})

_HINTS = (
    {
        "RequestTimeTooSkewed": "The clocks of this host and of the service differ; see `timedatectl`.",
        "NotImplemented": "This service cannot write on condition that a name is free; Seawall needs that.",
    }
    | dict.fromkeys(_KEYS, "Check the access key in credentials_file, or where boto3 looks for one.")
    | dict.fromkeys(_REGION, "Set `region` of this location to the bucket's own.")
)


def open_url(url: str, settings: RepositorySettings, sleep: Sleep = time.sleep) -> S3Storage:
    """The storage at `s3://bucket/prefix`; nothing is asked of the service yet.

    Raises:
        SettingsError: the URL, the endpoint or the credentials file is wrong.
    """
    place = bucket_place(url, "s3")
    return S3Storage(
        S3Bucket(place, client(settings), settings.lock_mode), RetryPolicy(attempts=settings.attempts), sleep
    )


def client(settings: RepositorySettings) -> Any:
    """A client of the S3 API that makes each request once: repeating is decided above.

    Raises:
        SettingsError: the endpoint or the credentials file is wrong.
    """
    endpoint = secured_endpoint(settings)
    session = boto3.session.Session(**_keys(credentials(settings)))
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=32,
        tcp_keepalive=True,
        # Own services rarely have a name in DNS for each bucket. Our SHA-256 covers the body already.
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        made = session.client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=settings.region or session.region_name or "us-east-1",
            verify=certificates(settings),
            config=config,
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise SettingsError(f"[repository] does not describe an S3 service: {error}") from error
    # AWS_ENDPOINT_URL and the AWS tools' own files name an endpoint too.
    secured_endpoint(replace(settings, endpoint=made.meta.endpoint_url))
    return made


class S3Bucket:
    """A bucket and a prefix.

    Args:
        client: boto3's, of which several threads may make use.
        mode: how firmly objects are locked where they are.
        until: lock what is written until then; None for not at all.
    """

    part_bytes = PART_BYTES
    lock_hint = "Object Lock must be on for the bucket; see docs/how-to/s3.md."

    def __init__(self, place: Place, client: Any, mode: LockMode, until: datetime | None = None) -> None:
        self._place = place
        self._client = client
        self._mode = mode
        self._lock = {} if until is None else {"ObjectLockMode": mode.name, "ObjectLockRetainUntilDate": until}
        self._lockable: bool | None = None

    def locking(self, until: datetime) -> S3Bucket:
        """The same bucket, in which everything that is written is locked until then."""
        return S3Bucket(self._place, self._client, self._mode, until)

    @property
    def url(self) -> str:
        return f"s3://{self._place.bucket}/{self._place.prefix}".rstrip("/")

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
            self._client.put_object(
                **self._where(name),
                Body=content,
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_sha256(content),
                **self._lock,
            )

    def holds(self, name: str, content: bytearray) -> bool:
        return self.look(name).sha256 == hashlib.sha256(content).hexdigest()

    def begin(self, name: str) -> S3Upload:
        with self._translated("write", name):
            answer = self._client.create_multipart_upload(**self._where(name), ChecksumAlgorithm="SHA256", **self._lock)
            return S3Upload(self, name, {**self._where(name), "UploadId": answer["UploadId"]})

    def fetch(self, name: str, begin: int, end: int) -> Fetched:
        try:
            with self._translated("read", name):
                answer = self._client.get_object(**self._where(name), Range=f"bytes={begin}-{end - 1}")
                return Fetched(answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2]))
        except _BeyondEnd:
            return Fetched(b"", self.look(name).size_bytes)

    def look(self, name: str) -> Stat:
        found = self.head(name)
        modified_at = found["LastModified"].astimezone(UTC)
        return Stat(name, found["ContentLength"], modified_at, _whole_sha256(found), _parts_sha256(found))

    def head(self, name: str, **more: str) -> dict[str, Any]:
        """Everything that the service tells of an object.

        Raises:
            ObjectMissing: proved absent.
        """
        try:
            with self._translated("look at", name):
                found = dict(self._client.head_object(**self._where(name), ChecksumMode="ENABLED", **more))
                return found | {key: found[key] for key in ("LastModified", "ContentLength")}
        except _Unproved:
            # The answer to HEAD has no body that would say what is missing, or that it is S3 that says so.
            self._prove_missing(name, **more)
            raise

    def walk(self, prefix: str) -> Iterator[Stat]:
        for page in self._pages("list_objects_v2", prefix):
            for found in page.get("Contents", ()):
                name = found["Key"][len(self._place.prefix) :]
                yield Stat(name, found["Size"], found["LastModified"].astimezone(UTC))

    def folders(self, folder: str) -> Iterator[str]:
        for page in self._pages("list_objects_v2", folder, Delimiter="/"):
            found = [
                *(f["Prefix"] for f in page.get("CommonPrefixes", ())),
                *(o["Key"] for o in page.get("Contents", ())),
            ]
            yield from (key[len(self._place.prefix) :] for key in found)

    def hidden_bytes(self) -> int:
        pages = self._pages("list_object_versions", "")
        return sum(found["Size"] for page in pages for found in page.get("Versions", ()) if not found["IsLatest"])

    def remove(self, name: str) -> None:
        # Below what is removed may lie what somebody with more rights than ours wrote over: gone means all of it.
        while True:
            try:
                found = self.head(name)
            except ObjectMissing:
                return
            refuse_locked(name, self.url, _retention(found), _date(found, self.url))
            version = {"VersionId": found["VersionId"]} if found.get("VersionId", "null") != "null" else {}
            with self._translated("delete", name):
                self._client.delete_object(**self._where(name), **version)
            if not version:
                return

    def retention(self, name: str) -> Retention:
        return _retention(self.head(name))

    def lock(self, name: str, until: datetime, version: str | None = None) -> None:
        """Set the lock's end of a version; whether it may be earlier than before is the service's to say."""
        retention = {"Mode": self._mode.name, "RetainUntilDate": until}
        with self._translated("lock", name):
            self._client.put_object_retention(**self._version(name, version), Retention=retention)

    def hold(self, name: str, on: bool) -> None:
        with self._translated("hold", name):
            self._client.put_object_legal_hold(**self._where(name), LegalHold={"Status": "ON" if on else "OFF"})

    def overwrite(self, name: str) -> str | None:
        """Write over an object without any condition; the new version, or None where there are none."""
        with self._translated("overwrite", name):
            answer = self._client.put_object(
                **self._where(name),
                Body=b"overwritten",
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=_sha256(b"overwritten"),
            )
        found = answer.get("VersionId", "null")
        return None if found == "null" else str(found)

    def remove_version(self, name: str, version: str | None, *, bypass: bool = False) -> None:
        """Remove one version whatever keeps it, if the service lets us."""
        with self._translated("delete", name):
            self._client.delete_object(
                **self._version(name, version), **({"BypassGovernanceRetention": True} if bypass else {})
            )

    def attacks(self, name: str) -> list[Attack]:
        found = self.head(name)
        version = found.get("VersionId") if found.get("VersionId", "null") != "null" else None
        until = found.get("ObjectLockRetainUntilDate", self.now()) - timedelta(hours=1)
        return [
            ("could be unlocked before its time", lambda: self.lock(name, until, version)),
            ("could be overwritten", lambda: self._overwrite(name, version)),
            ("could be deleted", lambda: self.remove_version(name, version)),
            ("could be deleted by lifting the lock", lambda: self.remove_version(name, version, bypass=True)),
        ]

    def _overwrite(self, name: str, version: str | None) -> None:
        """Write over an object.

        Raises:
            ObjectLocked: only a newer version came to lie on the old one, which is as it was.
        """
        newer = self.overwrite(name)
        if version is None or newer is None or newer == version:
            return
        # The newer version would hide the object until somebody looks for versions; who may not delete leaves it there.
        with contextlib.suppress(StorageDenied):
            self.remove_version(name, newer)
        try:
            self.head(name, VersionId=version)
        except ObjectMissing:
            return
        raise ObjectLocked(f"the version of {name} that was locked is as it was")

    def _version(self, name: str, version: str | None) -> dict[str, Any]:
        return {**self._where(name), **({} if version is None else {"VersionId": version})}

    def lifecycle(self) -> dict[str, Any]:
        """The bucket's lifecycle configuration."""
        try:
            with self._translated("look at", "the lifecycle rules"):
                found = self._client.get_bucket_lifecycle_configuration(Bucket=self._place.bucket)
                return {"Rules": found["Rules"]}
        except ObjectMissing:
            return {"Rules": []}

    def set_lifecycle(self, document: Mapping[str, Any]) -> None:
        """Replace the bucket's lifecycle configuration."""
        with self._translated("set", "the lifecycle rules"):
            self._client.put_bucket_lifecycle_configuration(
                Bucket=self._place.bucket, LifecycleConfiguration=dict(document)
            )

    def now(self) -> datetime:
        with self._translated("look at", "the bucket"):
            answer = self._client.list_objects_v2(Bucket=self._place.bucket, Prefix=self._place.prefix, MaxKeys=1)
            _refuse_no_list(answer)
        return server_time(answer["ResponseMetadata"]["HTTPHeaders"].get("date"), self.url)

    def sweep(self, older_than: timedelta) -> int:
        """Abort uploads in parts that nobody goes on with."""
        limit = self.now() - older_than
        swept = 0
        for page in self._pages("list_multipart_uploads", ""):
            for found in page.get("Uploads", ()):
                if found["Initiated"].astimezone(UTC) <= limit:
                    self._abort({"Bucket": self._place.bucket, "Key": found["Key"], "UploadId": found["UploadId"]})
                    swept += 1
        return swept

    def close(self) -> None:
        self._client.close()

    def _abort(self, upload: dict[str, Any]) -> None:
        with contextlib.suppress(ObjectMissing), self._translated("abort an upload of", upload["Key"]):
            self._client.abort_multipart_upload(**upload)

    def _where(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + name}

    def _pages(self, operation: str, prefix: str, **more: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(
            Bucket=self._place.bucket, Prefix=self._place.prefix + prefix, **more
        )
        with self._translated("list", prefix):
            for page in pages:
                _refuse_no_list(page)
                yield page

    def can_lock(self) -> bool:
        if self._lockable is None:
            try:
                with self._translated("look at", "the bucket"):
                    found = self._client.get_object_lock_configuration(Bucket=self._place.bucket)
                    lockable = found["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"
            except (StorageUnreachable, NotARepository):
                raise
            except StorageError:
                self._lockable = False
            else:
                self._lockable = lockable
        return self._lockable

    def _prove_missing(self, name: str, **more: str) -> None:
        """Ask once more, in a way whose answer says what is missing.

        Raises:
            ObjectMissing: proved absent.
            NotARepository: there is no such bucket.
        """
        with contextlib.suppress(_BeyondEnd), self._translated("look at", name):
            self._client.get_object(**self._where(name), Range="bytes=0-0", **more)["Body"].close()

    @contextlib.contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        what = f"cannot {action} {name or 'objects'} in {self.url}"
        try:
            yield
        except botocore.exceptions.ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                raise _BeyondEnd from error
            raise _explained(error, what, self._place.bucket) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.CredentialRetrievalError) as error:
            raise StorageDenied(
                f"{what}: {error}", hint="Name a credentials_file for this location in the settings."
            ) from error
        except botocore.exceptions.SSLError as error:
            hint = "Name the certificate of your own authority with ca_file." if "CERTIFICATE" in str(error) else None
            raise StorageUnreachable(f"{what}: {error}", hint=hint) from error
        except (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.IncompleteReadError,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise StorageUnreachable(f"{what}: {error}") from error
        except botocore.exceptions.BotoCoreError as error:
            raise StorageDenied(f"{what}: {error}", hint="See docs/how-to/s3.md.") from error
        # What the vendor's library comes upon in the answers of others; from a redirection it never finds back.
        except (botocore.parsers.ResponseParserError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise foreign(what, "S3", f"{type(error).__name__}: {error}") from error


class S3Storage(LockingStorage):
    """Objects in a bucket of S3, which can lock them where Object Lock is on."""

    bucket: S3Bucket


@dataclass
class S3Upload:
    """An upload in parts, under way."""

    bucket: S3Bucket
    name: str
    where: dict[str, Any]
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    at_once: int = AHEAD

    def send(self, number: int, part: bytearray) -> None:
        digest = hashlib.sha256(part).digest()
        with self.bucket._translated("write", self.name):
            answer = self.bucket._client.upload_part(
                **self.where, PartNumber=number, Body=part, ChecksumSHA256=base64.b64encode(digest).decode()
            )
            self.parts[number] = (answer["ETag"], digest)

    def finish(self) -> None:
        parts = [
            {"PartNumber": number, "ETag": tag, "ChecksumSHA256": base64.b64encode(digest).decode()}
            for number, (tag, digest) in sorted(self.parts.items())
        ]
        with self.bucket._translated("write", self.name):
            self.bucket._client.complete_multipart_upload(
                **self.where, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )

    def stored(self) -> bool:
        # A composite checksum is that of the parts' checksums ("Checking object integrity", composite checksums).
        digests = b"".join(digest for _, (_, digest) in sorted(self.parts.items()))
        found = str(self.bucket.head(self.name).get("ChecksumSHA256", ""))
        return found.partition("-")[0] == _sha256(digests)

    def abort(self) -> None:
        self.bucket._abort(self.where)


class _BeyondEnd(Exception):
    """A range that begins behind the object's last byte; never leaves this module."""


class _Unproved(StorageUnreachable):
    """Something is not there, by an answer that does not say what, or that is none of S3's."""


def _explained(error: botocore.exceptions.ClientError, what: str, bucket: str) -> SeawallError:
    answer = error.response
    code, said = answer.get("Error", {}).get("Code", ""), answer.get("Error", {}).get("Message", "")
    meta = answer.get("ResponseMetadata", {})
    status, request = int(meta.get("HTTPStatusCode", 0)), meta.get("RequestId", "")
    message = f"{what}: {code} {said}".rstrip() + (f" (request {request})" if request else "")
    hint = _HINTS.get(code)
    if code == "NoSuchBucket":
        return NotARepository(f"there is no bucket {bucket}", hint="Create it, or correct the URL.")
    for codes, kind in ((_BUSY, StorageBusy), (_FULL, StorageFull), (_PASSING, StorageUnreachable)):
        if code in codes:
            return kind(message, hint=hint)
    if not hint and (300 <= status < 400 or (status == 404 and (not code or code.isdigit()))):
        unproved = foreign(what, "S3", f"{status} {said}")
        return _Unproved(unproved.message, hint=unproved.hint)
    if "ObjectLockConfiguration" in said or "Object Lock" in said:
        return StorageDenied(message, hint=S3Bucket.lock_hint)
    if code in _KEYS or (status == 403 and hint):
        return StorageDenied(message, hint=hint)
    return explained(status, message, hint=hint)


def _keys(text: str | None) -> dict[str, str]:
    """Keys from a file as the AWS tools write it (AWS SDK reference, "Shared config and credentials files")."""
    if text is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # The parser's own message repeats lines of the file.
        raise SettingsError("credentials_file is not what the AWS tools write: [default] and keys below it") from error
    section = "default" if parser.has_section("default") else next(iter(parser.sections()), "")
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    found = {name: parser.get(section, name) for name in names if section and parser.has_option(section, name)}
    if not {"aws_access_key_id", "aws_secret_access_key"} <= found.keys():
        raise SettingsError("credentials_file has no aws_access_key_id and aws_secret_access_key below [default]")
    return found


def _refuse_no_list(page: Mapping[str, Any]) -> None:
    """Stop at an answer of another server, which looks like an empty list to the vendor's library.

    Raises:
        LookupError: it names no bucket.
    """
    if not page.get("Name") and not page.get("Bucket"):
        raise LookupError("a list that names no bucket")


def _retention(found: dict[str, Any]) -> Retention:
    until = found.get("ObjectLockRetainUntilDate")
    held = found.get("ObjectLockLegalHoldStatus") == "ON"
    return Retention(None if until is None else until.astimezone(UTC), held)


def _date(found: dict[str, Any], url: str) -> datetime:
    return server_time(found["ResponseMetadata"]["HTTPHeaders"].get("date"), url)


def _sha256(content: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _whole_sha256(found: dict[str, Any]) -> str | None:
    """Hex, if the service knows the checksum of the whole object; of one sent in parts it has only the parts' own."""
    text = found.get("ChecksumSHA256", "")
    return None if not text or _is_in_parts(found) else base64.b64decode(text).hex()


def _parts_sha256(found: dict[str, Any]) -> str:
    """The composite checksum of an object that was sent in parts, of which the service checked each by its SHA-256."""
    return str(found.get("ChecksumSHA256", "")) if _is_in_parts(found) else ""


def _is_in_parts(found: dict[str, Any]) -> bool:
    return "-" in found.get("ChecksumSHA256", "") or "-" in found.get("ETag", "")
