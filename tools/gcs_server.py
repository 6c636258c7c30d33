"""gcp-storage-emulator with rules of the real service that it lacks and Seawall rests on.

python -m tools.gcs_server PORT

- `ifGenerationMatch=0` admits an upload only while the name is free.
- A resumable upload whose `X-Goog-Hash` does not fit what arrived is refused.
- A session that has received nothing says so by answering without `Range`.
- A range that begins behind the object's end is answered with 416.
- What is not there is told in JSON, and in plain words where bytes themselves were asked for.
- A bucket made with `enableObjectRetention` locks objects: a retention that has not passed, or a hold, forbids to
  delete and to replace; a retention in the mode Locked is never made shorter, an Unlocked one only with
  `overrideUnlockedRetention` ("Object Retention Lock", "Object holds").
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

_Handler = Callable[..., None]


def _conditional(handler: _Handler) -> _Handler:
    def checked(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        bucket, name = request.params["bucket_name"], request.query.get("name", [""])[0]
        if request.query.get("ifGenerationMatch") == ["0"] and _there(storage, bucket, name):
            _refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
            return
        if _is_kept(storage, bucket, name):
            _refuse(response, HTTPStatus.FORBIDDEN, "forbidden")
            return
        handler(request, response, storage, *rest, **more)
        said = request.get_header("X-Goog-Hash", "")
        if said.startswith("crc32c=") and _there(storage, bucket, name):
            found = storage.get_file_obj(bucket, name)["crc32c"]
            if found != said.removeprefix("crc32c="):
                storage.delete_file(bucket, name)
                _refuse(response, HTTPStatus.BAD_REQUEST, "invalid")

    return checked


def _ranged(handler: _Handler) -> _Handler:
    def checked(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        begin = re.match(r"bytes=(\d+)-", request.get_header("range", "") or "")
        bucket, name = request.params["bucket_name"], request.params["object_id"]
        if begin and _there(storage, bucket, name) and int(begin[1]) >= len(storage.get_file(bucket, name)):
            response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            return
        handler(request, response, storage, *rest, **more)

    return checked


def _incomplete(handler: _Handler) -> _Handler:
    def told(response: Any, storage: Any, upload_id: str, fallback_end: int = 0) -> None:
        handler(response, storage, upload_id, fallback_end)
        if storage.get_resumable_byte_count(upload_id) == 0:
            del response._headers["Range"]

    return told


def _with_retention(handler: _Handler) -> _Handler:
    def made(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        handler(request, response, storage, *rest, **more)
        if request.query.get("enableObjectRetention") == ["true"]:
            storage.buckets[request.data["name"]]["objectRetention"] = {"mode": "Enabled"}

    return made


def _keeping(handler: _Handler) -> _Handler:
    def checked(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        if _is_kept(storage, request.params["bucket_name"], request.params["object_id"]):
            _refuse(response, HTTPStatus.FORBIDDEN, "forbidden")
            return
        handler(request, response, storage, *rest, **more)

    return checked


def _never_shorter(handler: _Handler) -> _Handler:
    def checked(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        bucket, name = request.params["bucket_name"], request.params["object_id"]
        there = _there(storage, bucket, name)
        old = (storage.get_file_obj(bucket, name).get("retention") if there else None) or {}
        if "retention" in request.data and old:
            new = request.data["retention"] or {"mode": "", "retainUntilTime": ""}
            # Both are written as 2026-11-23T14:49:39Z, so that their order is that of the text.
            less = new["retainUntilTime"] < old["retainUntilTime"] or (old["mode"], new["mode"]) == (
                "Locked",
                "Unlocked",
            )
            if less and (old["mode"] == "Locked" or request.query.get("overrideUnlockedRetention") != ["true"]):
                _refuse(response, HTTPStatus.FORBIDDEN, "forbidden")
                return
            if request.data["retention"] is None:
                storage.get_file_obj(bucket, name).pop("retention")
        handler(request, response, storage, *rest, **more)

    return checked


def _explaining(close: _Handler) -> _Handler:
    def closed(response: Any) -> None:
        if response.status is HTTPStatus.NOT_FOUND and not response._content:
            if response._handler.path.startswith("/download/"):
                response.write("No such object")
            else:
                _refuse(response, HTTPStatus.NOT_FOUND, "notFound")
        close(response)

    return closed


def _is_kept(storage: Any, bucket: str, name: str) -> bool:
    found = storage.get_file_obj(bucket, name) if _there(storage, bucket, name) else {}
    until = (found.get("retention") or {}).get("retainUntilTime")
    held = found.get("temporaryHold") or found.get("eventBasedHold")
    return bool(held or (until and datetime.fromisoformat(until) > datetime.now(UTC)))


def _there(storage: Any, bucket: str, name: str) -> bool:
    try:
        storage.get_file_obj(bucket, name)
    except NotFound:
        return False
    return True


def _refuse(response: Any, status: HTTPStatus, reason: str) -> None:
    response.status = status
    response.json({"error": {"code": int(status), "message": reason, "errors": [{"reason": reason}]}})


def serve(port: int) -> None:
    objects.insert = _conditional(objects.insert)
    objects.upload_partial = _conditional(objects.upload_partial)
    objects.download = _ranged(objects.download)
    objects._WRITABLE_FIELDS = (*objects._WRITABLE_FIELDS, "retention", "temporaryHold", "eventBasedHold")
    objects.delete = _keeping(objects.delete)
    objects.patch = _never_shorter(objects.patch)
    buckets.insert = _with_retention(buckets.insert)
    objects._resumable_incomplete = _incomplete(objects._resumable_incomplete)
    # Its table of routes takes the handlers when it is imported.
    from gcp_storage_emulator import server  # noqa: PLC0415 - see the line above

    server.Response.close = _explaining(server.Response.close)
    server.create_server("127.0.0.1", port, in_memory=True).run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
