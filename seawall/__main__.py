"""`seawall …`: the WAL commands first, because PostgreSQL waits for each of them; then everything else."""

from __future__ import annotations

import gc
import os
import sys


def main() -> int:
    """Run the command line and return its exit code (docs/reference/exit-codes.md)."""
    if len(sys.argv) > 1 and sys.argv[1] in ("archive-push", "archive-get"):
        from seawall.archive import client

        return client.main([sys.argv[1].removeprefix("archive-"), *sys.argv[2:]])
    # numpy's algebra is not used; its threads, one for each processor, would spin for a tenth of a second.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Hundreds of thousands of parts and extents are made and dropped without cycles: looking for some at every 700th
    # took a twentieth of a restore.
    gc.set_threshold(10_000, 20, 20)
    from seawall.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
