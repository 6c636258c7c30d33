"""moto's server with a rule of the real service that it lacks: the lock of an object is never made shorter.

python -m tools.s3_server PORT
"""

from __future__ import annotations

import sys
from typing import Any

from moto.s3.exceptions import AccessDeniedByLock
from moto.s3.models import S3Backend
from moto.server import main

_put_object_retention = S3Backend.put_object_retention


def _never_shorter(self: Any, bucket_name: str, key_name: str, version_id: str | None, retention: Any) -> None:
    key = self.get_object(bucket_name, key_name, version_id=version_id)
    # Both are written as 2026-11-23T14:49:39Z, so that their order is that of the text.
    if key.lock_until and str(retention[1]) < str(key.lock_until):
        raise AccessDeniedByLock
    _put_object_retention(self, bucket_name, key_name, version_id, retention)


if __name__ == "__main__":
    backend: Any = S3Backend
    backend.put_object_retention = _never_shorter
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
