"""Where the milliseconds of one `archive-push` go: `python -m benchmarks.push`.

No server is needed. Each step is done alone, one after the other, as the agent does them, on segments like those of a
busy cluster; the client is started as PostgreSQL starts it, with nobody listening. The least of all runs says what the
step costs, the median what this machine makes of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TypeVar

from seawall.archive.commands import START
from seawall.codec import DataKey, FrameWriter
from seawall.model import Compression
from seawall.storage.local import LocalStorage

_T = TypeVar("_T")
SEGMENT_BYTES = 16 * 1024 * 1024
_BARE = [sys.executable, "-I", "-S", "-c", "pass"]
_CLIENT = [sys.executable, "-I", "-S", str(START), "push", "--socket", "/nowhere", "000000010000000000000001"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="runs of each step (default: 50)")
    parser.add_argument("--work", type=Path, help="where (default: a new directory below the system's own)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seawall-push-", dir=options.work) as work:
        steps = measured(Path(work), options.runs)
    print(f"{'milliseconds':<40}{'least':>8}{'median':>8}")
    for name, taken in steps.items():
        print(f"{name:<40}{min(taken):>8.1f}{median(taken):>8.1f}")
    return 0


def measured(work: Path, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each step in each run."""
    steps: dict[str, list[float]] = {}

    def took(name: str, action: Callable[[], _T]) -> _T:
        begin = time.perf_counter()
        done = action()
        steps.setdefault(name, []).append((time.perf_counter() - begin) * 1000)
        return done

    segment = work / "segment"
    segment.write_bytes(_like_wal())
    storage, key = LocalStorage(work / "repository"), DataKey("key", bytes(32))
    for number in range(runs):
        took("a bare interpreter (part of the client)", lambda: subprocess.run(_BARE, check=True))
        took("the client, nobody listening", lambda: subprocess.run(_CLIENT, check=False, stderr=subprocess.DEVNULL))
        data = took("reading 16 MiB", segment.read_bytes)
        sha256 = took("SHA-256 of it", lambda data=data: hashlib.sha256(data).hexdigest())
        writer = FrameWriter("wal", f"s/{number}", compression=Compression.LZ4, key=key, extra={"sha256": sha256})
        chunks = took("lz4, AES-256-GCM, SHA-256 of the result", lambda w=writer, d=data: _made(w, d))
        took("write, sync, name, sync", lambda n=number, c=chunks: storage.put(f"a/{n}", iter(c)))
    return steps


def _made(writer: FrameWriter, data: bytes) -> list[bytes]:
    return [bytes(chunk) for chunk in writer.stream([data])]


def _like_wal() -> bytes:
    """Records of rows: two thirds repeat what was there before, one third is new."""
    return b"".join(_records())[:SEGMENT_BYTES]


def _records() -> Iterator[bytes]:
    count = 0
    while count < SEGMENT_BYTES:
        new = hashlib.shake_128(count.to_bytes(8)).digest(40)
        record = new + json.dumps({"id": count, "name": "customer", "state": "open", "text": "row of a table"}).encode()
        count += len(record)
        yield record


if __name__ == "__main__":
    sys.exit(main())
