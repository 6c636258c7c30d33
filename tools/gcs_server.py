"""gcp-storage-emulator with four rules of the real service that it lacks and Seawall rests on.

python -m tools.gcs_server PORT

- `ifGenerationMatch=0` admits an upload only while the name is free.
- A resumable upload whose `X-Goog-Hash` does not fit what arrived is refused.
- A session that has received nothing says so by answering without `Range`.
- A range that begins behind the object's end is answered with 416.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_Handler = Callable[..., None]


def _conditional(handler: _Handler) -> _Handler:
    def checked(request: Any, response: Any, storage: Any, *rest: Any, **more: Any) -> None:
        bucket, name = request.params["bucket_name"], request.query.get("name", [""])[0]
        if request.query.get("ifGenerationMatch") == ["0"] and _there(storage, bucket, name):
            _refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
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
    objects._resumable_incomplete = _incomplete(objects._resumable_incomplete)
    # Its table of routes takes the handlers when it is imported.
    from gcp_storage_emulator.server import create_server  # noqa: PLC0415 - see the line above

    create_server("127.0.0.1", port, in_memory=True).run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
