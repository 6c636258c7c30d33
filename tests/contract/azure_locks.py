"""What Azurite lacks: locks of blobs, as far as Seawall asks for them, between the vendor's client and Azurite.

Azurite 3.37 answers "not implemented" to policies and holds, and takes a blob with a policy while forgetting that. The
rules here are those of the REST reference ("Set Blob Immutability Policy", "Set Blob Legal Hold", "Delete Blob").
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from azure.core.pipeline.transport import RequestsTransport, RequestsTransportResponse
from azure.storage.blob import BlobServiceClient

from seawall.model import LockMode
from seawall.settings import RepositorySettings
from seawall.storage import azure
from seawall.storage.access import bucket_place
from seawall.storage.parts import PART_BYTES

_UNTIL, _MODE, _HOLD = "x-ms-immutability-policy-until-date", "x-ms-immutability-policy-mode", "x-ms-legal-hold"


class Locking(RequestsTransport):
    """Keeps the lock of each blob and refuses what it forbids.

    Args:
        versions: a locked blob that is deleted or overwritten stays as a version, as in an account that keeps those;
            else both are refused.
    """

    def __init__(self, *, versions: bool = False) -> None:
        super().__init__()
        self.versions = versions
        self.locks: dict[str, dict[str, str]] = {}
        self.hidden: set[str] = set()

    def send(self, request: Any, **more: Any) -> Any:  # type: ignore[override]
        parts = urlsplit(request.url)
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        kept = self.locks.get(parts.path, {})
        match request.method, asked.get("comp"):
            case "PUT", "immutabilityPolicies":
                answer = self._set_policy(request, parts.path, kept)
            case "DELETE", "immutabilityPolicies":
                answer = self._drop_policy(request, parts.path, kept)
            case "PUT", "legalhold":
                self.locks[parts.path] = {**kept, _HOLD: request.headers[_HOLD]}
                answer = _answer(request, 200)
            case "DELETE", None:
                answer = self._delete(request, parts.path, asked, kept, more)
            case "PUT", "blocklist" | None if "restype" not in asked:
                answer = self._put(request, parts.path, kept, more)
            case "HEAD", None:
                answer = self._head(request, parts.path, asked, kept, more)
            case _:
                answer = self._other(request, asked, more)
        return answer

    def _other(self, request: Any, asked: dict[str, str], more: Any) -> Any:
        answer = super().send(request, **more)
        if request.method == "GET" and asked.get("restype") == "container" and "comp" not in asked:
            answer.headers["x-ms-immutable-storage-with-versioning-enabled"] = "true"
        return answer

    def _set_policy(self, request: Any, path: str, kept: dict[str, str]) -> Any:
        wanted = {key: request.headers[key] for key in (_UNTIL, _MODE)}
        if kept.get(_MODE) == "Locked" and _moment(wanted) < _moment(kept):
            return _refused(request)
        self.locks[path] = {**kept, **wanted}
        return _answer(request, 200)

    def _drop_policy(self, request: Any, path: str, kept: dict[str, str]) -> Any:
        if kept.get(_MODE) == "Locked" and _is_active(kept):
            return _refused(request)
        self.locks[path] = {_HOLD: kept[_HOLD]} if _HOLD in kept else {}
        return _answer(request, 200)

    def _delete(self, request: Any, path: str, asked: dict[str, str], kept: dict[str, str], more: Any) -> Any:
        if _is_active(kept):
            if not self.versions or "versionid" in asked:
                return _refused(request)
            self.hidden.add(path)
            return _answer(request, 202)
        self.locks.pop(path, None)
        return super().send(request, **more)

    def _put(self, request: Any, path: str, kept: dict[str, str], more: Any) -> Any:
        if _is_active(kept) and "If-None-Match" not in request.headers:
            self.hidden.discard(path)
            return _answer(request, 201) if self.versions else _refused(request)
        answer = super().send(request, **more)
        wanted = {key: request.headers[key] for key in (_UNTIL, _MODE) if key in request.headers}
        if answer.status_code == 201:
            self.locks[path] = wanted
        return answer

    def _head(self, request: Any, path: str, asked: dict[str, str], kept: dict[str, str], more: Any) -> Any:
        if path in self.hidden and "versionid" not in asked:
            return _answer(request, 404, "BlobNotFound")
        answer = super().send(request, **more)
        if answer.status_code == 200:
            answer.headers.update(kept | ({"x-ms-version-id": "v1"} if self.versions else {}))
        return answer


def storage(settings: RepositorySettings, transport: Locking, mode: LockMode = LockMode.COMPLIANCE) -> Any:
    """The driver at a place in Azurite, with locks."""
    assert settings.credentials_file is not None
    text = settings.credentials_file.read_text(encoding="utf-8")
    service = BlobServiceClient.from_connection_string(
        text, transport=transport, retry_total=0, max_single_put_size=2 * PART_BYTES
    )
    place = bucket_place(settings.url, "azure")
    return azure.AzureStorage(azure.AzureContainer(place, service.get_container_client(place.bucket), mode))


def _moment(kept: dict[str, str]) -> datetime:
    return parsedate_to_datetime(kept[_UNTIL])


def _is_active(kept: dict[str, str]) -> bool:
    return kept.get(_HOLD) == "true" or (_UNTIL in kept and _moment(kept) > datetime.now(UTC))


def _refused(request: Any) -> Any:
    return _answer(request, 409, "BlobImmutableDueToPolicy")


def _answer(request: Any, status: int, code: str = "") -> Any:
    made = requests.Response()
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    made.status_code, made.reason = status, code or "OK"
    made._content = body.encode() if code and request.method != "HEAD" else b""
    made.headers["Content-Type"] = "application/xml"
    made.headers["Date"] = made.headers["Last-Modified"] = format_datetime(datetime.now(UTC), usegmt=True)
    made.headers["ETag"] = '"0x1"'
    made.headers["Content-Length"] = str(len(made._content))
    if code:
        made.headers["x-ms-error-code"] = code
    return RequestsTransportResponse(request, made, 4096)
