"""moto's server with rules of the real service that it lacks.

python -m tools.s3_server PORT

- The lock of an object is never made shorter.
- A lifecycle rule keeps its filter by size ("LifecycleRuleAndOperator", ObjectSizeGreaterThan).
"""

from __future__ import annotations

import sys
from typing import Any

from moto.s3.exceptions import AccessDeniedByLock
from moto.s3.models import FakeBucket, S3Backend
from moto.s3.responses import S3Response
from moto.server import main

_put_object_retention = S3Backend.put_object_retention
_set_lifecycle = FakeBucket.set_lifecycle
_get_lifecycle = S3Response.get_bucket_lifecycle


def _never_shorter(self: Any, bucket_name: str, key_name: str, version_id: str | None, retention: Any) -> None:
    key = self.get_object(bucket_name, key_name, version_id=version_id)
    # Both are written as 2026-11-23T14:49:39Z, so that their order is that of the text.
    if key.lock_until and str(retention[1]) < str(key.lock_until):
        raise AccessDeniedByLock
    _put_object_retention(self, bucket_name, key_name, version_id, retention)


def _keep_sizes(self: Any, rules: list[dict[str, Any]]) -> None:
    _set_lifecycle(self, rules)
    for kept, rule in zip(self.rules, rules, strict=True):
        both = (rule.get("Filter") or {}).get("And") or {}
        kept.larger_than = both.get("ObjectSizeGreaterThan")


def _tell_sizes(self: Any) -> Any:
    serialized = self.serialized

    def told(answer: Any) -> Any:
        for kept, rule in zip(self.backend.get_bucket_lifecycle(self.bucket_name), answer.result["Rules"], strict=True):
            if kept.larger_than:
                rule["Filter"]["And"]["ObjectSizeGreaterThan"] = int(kept.larger_than)
        return serialized(answer)

    self.serialized = told
    try:
        return _get_lifecycle(self)
    finally:
        del self.serialized


if __name__ == "__main__":
    backend: Any = S3Backend
    backend.put_object_retention = _never_shorter
    bucket: Any = FakeBucket
    bucket.set_lifecycle = _keep_sizes
    response: Any = S3Response
    response.get_bucket_lifecycle = _tell_sizes
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
