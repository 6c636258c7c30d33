"""What of a data directory belongs into a backup, and what PostgreSQL says to leave out.

Rules: PostgreSQL's documentation, section "Backing Up the Data Directory" (26.3.4.3 in version 15), and
`backend/backup/basebackup.c` (excludeFiles, excludeDirContents). Anything that is not on the list is copied, so
files that PostgreSQL does not know come along. Files may vanish or grow while this looks: a vanished one is left
out, a grown one is copied up to the size seen here, because WAL replays the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seawall.model import Cluster


@dataclass(frozen=True, slots=True)
class CopyEntry:
    """One file, directory or link to copy.

    `path` is relative to the data directory, `/`-separated, perhaps below `pg_tblspc/<oid>/`; `kind` is file,
    directory or link. For a relation file `first_block` is the number of its first block within the fork.
    A file that is reached through a link inside the data directory is a file; `link` then says where it lies.
    """

    root: str
    path: str
    kind: str
    mode: int
    size: int = 0
    mtime: float = 0.0
    link: str = ""
    is_relation: bool = False
    first_block: int = 0

    @property
    def absolute(self) -> Path:
        """Where to read it."""
        return Path(self.root, self.path)

    @property
    def is_control(self) -> bool:
        """Whether this is pg_control, which `control.read_control_bytes` reads and a restore writes last."""
        return self.path == "global/pg_control"


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What to copy, sorted by path; `left_out` names what no backup can carry, with the reason."""

    entries: tuple[CopyEntry, ...]
    total_bytes: int
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[CopyEntry, ...]:
        return tuple(e for e in self.entries if e.kind == "file")


def scan(data_directory: Path, cluster: Cluster | None = None) -> CopyPlan:
    """List a data directory for a backup.

    Args:
        data_directory: where the cluster's files are on this host.
        cluster: what the server said; its identity must be that of the directory when given.

    Raises:
        ClusterMismatch: the directory is another cluster's.
        PrivilegeMissing: a part of it cannot be read.
        ClusterError: it is no data directory.
    """
    raise NotImplementedError


def walk(data_directory: Path) -> Iterator[CopyEntry]:
    """The entries of `scan`, one by one, parents before children, without holding them all."""
    raise NotImplementedError


def is_left_out(path: str) -> bool:
    """Whether PostgreSQL says to skip this path (relative to the data directory) in every backup."""
    raise NotImplementedError


def relation_block(path: str, segment_blocks: int = 131072) -> int | None:
    """The number of a relation file's first block within its fork, or None if the path is no relation file."""
    raise NotImplementedError
