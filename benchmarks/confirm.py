"""What it costs to read every object back: `python -m benchmarks.confirm [DIRECTORY]`.

Stores 2 GiB as 32 bundles below a new directory, once with `confirm = size` and once with `confirm = hash`, both with
the SHA-256 that a backup computes anyway, and prints wall-clock and CPU seconds of each.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from seawall.repository.sealed import Counted, put_confirmed
from seawall.storage.base import Storage
from seawall.storage.confirm import Confirming
from seawall.storage.local import LocalStorage

BUNDLES, CHUNKS = 32, 64


def stored(storage: Storage, content: bytes) -> tuple[float, float]:
    """Wall-clock and CPU seconds of storing all bundles."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for number in range(BUNDLES):
        counted = Counted([content] * CHUNKS)
        put_confirmed(storage, f"bundle-{number:08d}", counted, counted)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - begin, cpu


def main(parent: str | None = None) -> None:
    content = os.urandom(1 << 20)
    for name, wrap in (("size", lambda storage: storage), ("hash", Confirming)) * 2:
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            seconds, cpu = stored(wrap(LocalStorage(Path(directory) / "repository")), content)
            print(f"confirm = {name}: {seconds:6.2f} s, {cpu:6.2f} CPU s for {BUNDLES * CHUNKS} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:2])
