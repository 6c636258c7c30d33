"""Objects in a bucket of Google Cloud Storage, over its JSON API.

An object is stored under the condition that its name is free (`ifGenerationMatch=0`), and with its CRC32C, which the
service compares with what arrived before anybody can read it. A large object is a resumable upload: its parts go one
after the other, and after a broken connection the service is asked how much of it has arrived. Sessions that nobody
finishes end by themselves after a week ("Resumable uploads", session URIs), so `sweep` finds none.

Locks are those of single objects: a retention with a date ("Object Retention Lock"), which must be enabled for the
bucket, and a temporary hold ("Object holds"), which has no end of its own.

Not guaranteed: that a delete frees space in a bucket with soft delete or versions.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import google.auth
import google.auth.exceptions
import google_crc32c
import requests
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from seawall.errors import (
    NotARepository,
    ObjectLocked,
    ObjectMissing,
    SeawallError,
    SettingsError,
    StorageBusy,
    StorageDenied,
    StorageError,
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
from seawall.storage.retry import RetryPolicy, Sleep

_ENDPOINT = "https://storage.googleapis.com"
# The one for reading and writing does not reach a change of an object's retention or hold (JSON API, `objects.patch`),
# so nothing could be locked for longer. What an account may do is the business of its roles.
_SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
_TIMEOUT_SECONDS = (10, 60)
_POOL = 32

# Parts of an upload go one after the other, and the line is idle while the service takes each: fewer and larger ones
# than elsewhere. One under way and one being filled need little more memory than the three of the others.
_PART_BYTES = 16 * 1024 * 1024
_FIELDS = "name,size,timeCreated,crc32c"
_LOCK_FIELDS = "generation,retention,temporaryHold,eventBasedHold"

# Locked: nobody makes it shorter. Unlocked: whoever may `storage.objects.overrideUnlockedRetention` does.
_RETENTION_MODES = {LockMode.COMPLIANCE: "Locked", LockMode.GOVERNANCE: "Unlocked"}

# Reasons that say more than their status (Cloud Storage JSON API, "HTTP status and error codes").
_LOCKED = frozenset({"retentionPolicyNotMet", "objectUnderActiveHold", "objectUnderRetention"})
_BUSY = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "usageLimitExceeded", "quotaExceeded"})


def open_url(url: str, settings: RepositorySettings, sleep: Sleep = time.sleep) -> GcsStorage:
    """The storage at `gs://bucket/prefix`; nothing is asked of the service yet.

    Raises:
        SettingsError: the URL, the endpoint or the credentials file is wrong.
    """
    endpoint = secured_endpoint(settings)
    bucket = GcsBucket(bucket_place(url, "gs"), session(settings), endpoint or _ENDPOINT, settings.lock_mode)
    return GcsStorage(bucket, RetryPolicy(attempts=settings.attempts), sleep)


def session(settings: RepositorySettings) -> AuthorizedSession:
    """A session that makes each request once: repeating is decided above.

    Raises:
        SettingsError: the credentials file is wrong, or there are no credentials anywhere.
    """
    made = AuthorizedSession(_credentials(settings))
    made.verify = certificates(settings)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=_POOL, max_retries=0)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


class GcsBucket:
    """A bucket and a prefix.

    Args:
        http: of which several threads may make use.
        mode: how firmly objects are locked where they are.
        until: lock what is written until then; None for not at all.
    """

    part_bytes = _PART_BYTES
    lock_hint = "Object retention must be enabled for the bucket; see docs/how-to/gcs.md."

    def __init__(
        self, place: Place, http: AuthorizedSession, endpoint: str, mode: LockMode, until: datetime | None = None
    ) -> None:
        self._place = place
        self._http = http
        self._endpoint = endpoint
        self._mode = mode
        self._lock = {} if until is None else {"retention": self._retained(until)}
        self._lockable: bool | None = None
        self._base = f"{endpoint}/storage/v1/b/{quote(place.bucket, safe='')}"
        self._upload = f"{endpoint}/upload/storage/v1/b/{quote(place.bucket, safe='')}/o"
        self._download = f"{endpoint}/download/storage/v1/b/{quote(place.bucket, safe='')}/o"
        self._seen = False

    def locking(self, until: datetime) -> GcsBucket:
        return GcsBucket(self._place, self._http, self._endpoint, self._mode, until)

    @property
    def url(self) -> str:
        return f"gs://{self._place.bucket}/{self._place.prefix}".rstrip("/")

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
        about = {"name": self._place.prefix + name, "crc32c": _crc32c(content), **self._lock}
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}\r\n"
        head += f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        self._new(
            name,
            params={"uploadType": "multipart", "name": about["name"], "ifGenerationMatch": "0"},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            data=body,
        )

    def holds(self, name: str, content: bytearray) -> bool:
        found = self._resource(name)
        return int(found["size"]) == len(content) and found.get("crc32c") == _crc32c(content)

    def begin(self, name: str) -> GcsUpload:
        key = self._place.prefix + name
        answer = self._new(
            name,
            params={"uploadType": "resumable", "name": key, "ifGenerationMatch": "0"},
            json={"name": key, **self._lock},
        )
        if "Location" not in answer.headers:
            raise foreign(f"cannot write {name} in {self.url}", "Google", "an upload without a place")
        return GcsUpload(self, name, answer.headers["Location"])

    def fetch(self, name: str, begin: int, end: int) -> Fetched:
        try:
            answer = self.ask(
                "read",
                name,
                "GET",
                f"{self._download}/{self._key(name)}",
                params={"alt": "media"},
                # An object is read as it was stored, whatever the service might unpack on the way.
                headers={"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"},
            )
        except _BeyondEnd:
            return Fetched(b"", self.look(name).size_bytes)
        except _Unproved:
            # Where bytes are asked for, what is missing is said in words that anybody could have written.
            self._resource(name)
            raise
        except ObjectMissing:
            self._refuse_missing_bucket()
            raise
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdigit():
            raise foreign(f"cannot read {name} in {self.url}", "Google", "no range came")
        return Fetched(answer.content, int(size))

    def look(self, name: str) -> Stat:
        return self._stat(name, self._resource(name))

    def walk(self, prefix: str) -> Iterator[Stat]:
        for page in self._pages(prefix, f"items({_FIELDS})"):
            for found in page.get("items", ()):
                yield self._stat(found["name"][len(self._place.prefix) :], found)

    def folders(self, folder: str) -> Iterator[str]:
        for page in self._pages(folder, "prefixes,items(name)", delimiter="/"):
            found = [*page.get("prefixes", ()), *(item["name"] for item in page.get("items", ()))]
            yield from (key[len(self._place.prefix) :] for key in found)

    def hidden_bytes(self) -> int:
        # The time at which a version stopped being the live one (JSON API reference, Objects, `timeDeleted`).
        pages = self._pages("", "items(size,timeDeleted)", versions="true")
        return sum(int(found["size"]) for page in pages for found in page.get("items", ()) if "timeDeleted" in found)

    def remove(self, name: str) -> None:
        try:
            if self.can_lock():
                # A bucket with versions would take a delete for "hide", and keep the bytes out of sight.
                refuse_locked(name, self.url, self.retention(name), self.now())
            self._delete(name)
        except ObjectMissing:
            self._refuse_missing_bucket()

    def _delete(self, name: str, **which: str) -> None:
        answer = self.ask("delete", name, "DELETE", f"{self._base}/o/{self._key(name)}", params=which)
        if answer.content:
            raise foreign(f"cannot delete {name} in {self.url}", "Google", "words where none belong")

    def can_lock(self) -> bool:
        if self._lockable is None:
            try:
                found = self._told("look at", "the bucket", "bucket", self._base, fields="objectRetention")
            except ObjectMissing as error:
                raise self._no_bucket() from error
            except StorageUnreachable:
                raise
            except StorageError:
                self._lockable = False
            else:
                self._lockable = (found.get("objectRetention") or {}).get("mode") == "Enabled"
        return self._lockable

    def retention(self, name: str) -> Retention:
        found = self._resource(name, _LOCK_FIELDS)
        until = (found.get("retention") or {}).get("retainUntilTime")
        held = bool(found.get("temporaryHold") or found.get("eventBasedHold"))
        return Retention(None if until is None else datetime.fromisoformat(until).astimezone(UTC), held)

    def lock(self, name: str, until: datetime) -> None:
        self._patch("lock", name, {"retention": self._retained(until)})

    def hold(self, name: str, on: bool) -> None:
        self._patch("hold", name, {"temporaryHold": on})

    def attacks(self, name: str) -> list[Attack]:
        found = self._resource(name, _LOCK_FIELDS)
        generation = str(found["generation"])
        until = (self.retention(name).until or self.now()) - timedelta(hours=1)
        lift = {"overrideUnlockedRetention": "true"}
        return [
            ("could be unlocked before its time", lambda: self.lock(name, until)),
            ("could be unlocked", lambda: self._patch("unlock", name, {"retention": None}, **lift)),
            ("could be deleted", lambda: self._gone(name, generation, lambda: self._delete(name))),
            ("could be deleted as a version", lambda: self._delete(name, generation=generation)),
            ("could be overwritten", lambda: self._gone(name, generation, lambda: self._overwrite(name))),
        ]

    def _overwrite(self, name: str) -> None:
        key = self._place.prefix + name
        self._new(name, params={"uploadType": "media", "name": key}, data=b"overwritten")

    def _gone(self, name: str, generation: str, attack: Callable[[], object]) -> None:
        """Make an attack that hits the newest version.

        Raises:
            ObjectLocked: the version that was locked is there all the same, below what the attack left.
        """
        attack()
        try:
            self._resource(name, "generation", generation=generation)
        except ObjectMissing:
            return
        raise ObjectLocked(f"the version of {name} that was locked is as it was")

    def _patch(self, action: str, name: str, change: Mapping[str, object], **more: str) -> None:
        url = f"{self._base}/o/{self._key(name)}"
        try:
            self.ask(action, name, "PATCH", url, params={"fields": "name", **more}, json=change)
        except ObjectMissing:
            self._refuse_missing_bucket()
            raise

    def _retained(self, until: datetime) -> dict[str, str]:
        moment = until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"mode": _RETENTION_MODES[self._mode], "retainUntilTime": moment}

    def lifecycle(self) -> dict[str, Any]:
        """The bucket's lifecycle configuration."""
        try:
            found = self._told("look at", "the lifecycle rules", "bucket", self._base, fields="lifecycle")
        except ObjectMissing as error:
            raise self._no_bucket() from error
        return {"lifecycle": found.get("lifecycle") or {"rule": []}}

    def set_lifecycle(self, document: Mapping[str, Any]) -> None:
        """Replace the bucket's lifecycle configuration."""
        self.ask("set", "the lifecycle rules", "PATCH", self._base, json=dict(document))

    def now(self) -> datetime:
        answer = self.ask("look at", "the bucket", "GET", f"{self._base}/o", params=self._first())
        _spoken(answer, "objects", f"cannot look at the bucket in {self.url}")
        return server_time(answer.headers.get("Date"), self.url)

    def sweep(self, older_than: timedelta) -> int:  # noqa: ARG002 - the contract's signature
        """Nothing: the service itself ends uploads that nobody finishes."""
        return 0

    def close(self) -> None:
        self._http.close()

    def ask(self, action: str, name: str, method: str, url: str, **request: Any) -> requests.Response:
        """One request, its failure translated.

        Raises:
            StorageError, NotARepository: the answer is not one of success, or there was none.
        """
        what = f"cannot {action} {name or 'objects'} in {self.url}"
        try:
            answer: requests.Response = self._http.request(
                method,
                url,
                timeout=_TIMEOUT_SECONDS,
                allow_redirects=False,
                # Said once more: a REQUESTS_CA_BUNDLE in the environment would overrule the session's own.
                verify=self._http.verify,
                **request,
            )
        except google.auth.exceptions.TransportError as error:
            raise StorageUnreachable(f"{what}: {error}") from error
        except google.auth.exceptions.GoogleAuthError as error:
            raise StorageDenied(
                f"{what}: {error}",
                hint="Check credentials_file, whether its key is still valid, and this host's clock.",
            ) from error
        except (requests.RequestException, OSError) as error:
            hint = "Name the certificate of your own authority with ca_file." if "CERTIFICATE" in str(error) else None
            raise StorageUnreachable(f"{what}: {error}", hint=hint) from error
        if answer.status_code == 416:
            raise _BeyondEnd
        if 300 <= answer.status_code < 400 and answer.status_code != 308:
            raise foreign(what, "Google", f"status {answer.status_code}, a redirection")
        # 308 is "resume incomplete": a part was taken and more is expected.
        if not (answer.ok or answer.status_code == 308):
            raise _explained(answer, what)
        return answer

    def _new(self, name: str, **request: Any) -> requests.Response:
        try:
            return self.ask("write", name, "POST", self._upload, **request)
        except ObjectMissing as error:
            raise self._no_bucket() from error

    def _resource(self, name: str, fields: str = _FIELDS, **which: str) -> Mapping[str, Any]:
        url = f"{self._base}/o/{self._key(name)}"
        try:
            return self._told("look at", name, "object", url, fields=fields, **which)
        except ObjectMissing:
            self._refuse_missing_bucket()
            raise

    def _told(self, action: str, name: str, kind: str, url: str, **asked: str) -> Mapping[str, Any]:
        """What the service tells of something; it always says of what kind that is.

        Args:
            asked: the parameters; of the `fields` that are named here, `kind` comes along.
        """
        asked["fields"] = f"kind,{asked['fields']}"
        answer = self.ask(action, name, "GET", url, params=asked)
        return _spoken(answer, kind, f"cannot {action} {name or 'objects'} in {self.url}")

    def _pages(self, prefix: str, fields: str, **more: str) -> Iterator[Mapping[str, Any]]:
        asked = {"prefix": self._place.prefix + prefix, "fields": f"nextPageToken,{fields}", **more}
        while True:
            page = self._listed(prefix, asked)
            yield page
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def _listed(self, prefix: str, asked: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            return self._told("list", prefix, "objects", f"{self._base}/o", **asked)
        except ObjectMissing as error:
            raise self._no_bucket() from error

    def _refuse_missing_bucket(self) -> None:
        """The answer about an object does not say whether it is that or the bucket that is missing."""
        if not self._seen:
            self._listed("", self._first())
            self._seen = True

    def _no_bucket(self) -> NotARepository:
        return NotARepository(f"there is no bucket {self._place.bucket}", hint="Create it, or correct the URL.")

    def _first(self) -> dict[str, str]:
        return {"prefix": self._place.prefix, "maxResults": "1", "fields": "kind,items(name)"}

    def _key(self, name: str) -> str:
        return quote(self._place.prefix + name, safe="")

    def _stat(self, name: str, found: Mapping[str, Any]) -> Stat:
        return Stat(name, int(found["size"]), datetime.fromisoformat(found["timeCreated"]).astimezone(UTC))


class GcsStorage(LockingStorage):
    """Objects in a bucket, which can lock them where object retention is enabled."""

    bucket: GcsBucket


@dataclass
class GcsUpload:
    """A resumable upload; every part but the last is a multiple of 256 KiB, as the service wants it."""

    bucket: GcsBucket
    name: str
    session: str
    checksum: Any = field(default_factory=google_crc32c.Checksum)
    total: int = 0
    last: bytes = b""
    uncertain: int = 0
    # The service takes the bytes of a session in their order only.
    at_once: int = 1

    def send(self, number: int, part: bytearray) -> None:
        begin, content = (number - 1) * _PART_BYTES, bytes(part)
        if self.total == begin:
            self.checksum.update(content)
            self.total += len(part)
        if len(part) < _PART_BYTES:
            # Only `finish` may send it: with the object's size the service gives the object its name.
            self.last = content
            return
        arrived = self._arrived() if self.uncertain == number else begin
        self.uncertain = number
        while arrived < begin + len(part):
            if arrived < begin:
                raise StorageError(f"{self.name} in {self.bucket.url}: the service lost what it had taken")
            span = f"bytes {arrived}-{begin + len(part) - 1}/*"
            before, arrived = arrived, _received(self._put(content[arrived - begin :], span))
            if arrived == before:
                raise StorageUnreachable(f"{self.name} in {self.bucket.url}: the service took nothing of a part")
        self.uncertain = 0

    def finish(self) -> None:
        rest = self.last
        begin = self.total - len(rest)
        span = f"bytes {begin}-{self.total - 1}/{self.total}" if rest else f"bytes */{self.total}"
        answer = self._put(rest, span, {"X-Goog-Hash": f"crc32c={self._crc32c()}"})
        if answer.status_code == 308:
            raise StorageUnreachable(f"{self.name} in {self.bucket.url} is not whole yet")

    def stored(self) -> bool:
        found = self.bucket._resource(self.name)
        return int(found["size"]) == self.total and found.get("crc32c") == self._crc32c()

    def abort(self) -> None:
        # The service answers 499, "client closed request", to a session that was ended so.
        with contextlib.suppress(StorageError):
            self.bucket.ask("abort an upload of", self.name, "DELETE", self.session)

    def _arrived(self) -> int:
        return _received(self._put(b"", "bytes */*"))

    def _put(self, content: bytes, span: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        sent = {"Content-Range": span, "Content-Type": "application/octet-stream", **(headers or {})}
        return self.bucket.ask("write", self.name, "PUT", self.session, data=content, headers=sent)

    def _crc32c(self) -> str:
        return base64.b64encode(self.checksum.digest()).decode()


class _BeyondEnd(Exception):
    """A range that begins behind the object's last byte; never leaves this module."""


class _Unproved(StorageUnreachable):
    """Something is not there, by an answer that is not in the service's own form."""


def _received(answer: requests.Response) -> int:
    """How many bytes of a session the service has (header `Range: bytes=0-LAST`; none for nothing)."""
    return int(answer.headers["Range"].rpartition("-")[2]) + 1 if "Range" in answer.headers else 0


def _spoken(answer: requests.Response, kind: str, what: str) -> Mapping[str, Any]:
    """What a successful answer tells.

    Raises:
        StorageUnreachable: it is not the service's.
    """
    try:
        found: Mapping[str, Any] = answer.json()
        if found["kind"] == f"storage#{kind}":
            return found
    except (ValueError, LookupError, TypeError):
        pass
    raise foreign(what, "Google", f"not a word of {kind}")


def _explained(answer: requests.Response, what: str) -> SeawallError:
    try:
        error = answer.json()["error"]
        said, reason = str(error.get("message", "")), str((error.get("errors") or [{}])[0].get("reason", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        said, reason = answer.reason or "", ""
        if answer.status_code == 404:
            unproved = foreign(what, "Google", f"404 {said}")
            return _Unproved(unproved.message, hint=unproved.hint)
    message = f"{what}: {answer.status_code} {reason} {said}".replace("  ", " ").rstrip()
    if reason in _LOCKED or (answer.status_code == 403 and "hold" in said.lower()):
        return ObjectLocked(message)
    if reason in _BUSY:
        return StorageBusy(message)
    return explained(answer.status_code, message)


def _credentials(settings: RepositorySettings) -> Any:
    text = credentials(settings)
    if text is None and secured_endpoint(settings).startswith("http://"):
        return AnonymousCredentials()  # an emulator on this host: nothing else is reached without TLS
    try:
        if text is None:
            return google.auth.default(scopes=[_SCOPE])[0]
        return service_account.Credentials.from_service_account_info(json.loads(text), scopes=[_SCOPE])
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise SettingsError("there are no credentials for Google Cloud", hint="Name a credentials_file.") from error
    except (ValueError, AttributeError, google.auth.exceptions.GoogleAuthError) as error:
        # The error's own text may repeat a part of the key.
        raise SettingsError("credentials_file is not the JSON key of a service account") from error


def _crc32c(content: bytes | bytearray) -> str:
    return base64.b64encode(google_crc32c.Checksum(bytes(content)).digest()).decode()
