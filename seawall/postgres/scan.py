# Interim bodies by the lead, so that others can run end to end; the owner of this package replaces this file.
"""What of a data directory belongs into a backup, and what PostgreSQL says to leave out.

Rules: PostgreSQL's documentation, section "Backing Up the Data Directory" (26.3.4.3 in version 15), and
`backend/backup/basebackup.c` (excludeFiles, excludeDirContents). Anything that is not on the list is copied, so
files that PostgreSQL does not know come along. Files may vanish or grow while this looks: a vanished one is left
out, a grown one is copied up to the size seen here, because WAL replays the rest.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import ClusterError, ClusterMismatch, PrivilegeMissing
from seawall.model import Cluster
from seawall.postgres.control import read_control


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


_FILES = frozenset({"postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "backup_label.old", "tablespace_map",
    "tablespace_map.old", "backup_manifest", "postmaster.pid", "postmaster.opts", ".seawall-restore.json"})  # fmt: skip
_CONTENTS = ("pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
_RELATION = re.compile(
    r"(?:base/\d+|global|pg_tblspc/\d+/PG_[^/]+/\d+)/(?P<node>\d+)(?P<fork>_(?:fsm|vm|init))?(?:\.(?P<segment>\d+))?"
)
_TEMPORARY = re.compile(r"t\d+_\d+(?:_(?:fsm|vm))?(?:\.\d+)?")


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
    control = read_control(data_directory / "global" / "pg_control")
    if cluster is not None and control.system_identifier != cluster.system_identifier:
        raise ClusterMismatch(f"{data_directory} is the cluster {control.system_identifier}, the server's is another")
    entries = sorted(walk(data_directory), key=lambda entry: entry.path)
    return CopyPlan(tuple(entries), sum(entry.size for entry in entries if entry.kind == "file"))


def walk(data_directory: Path) -> Iterator[CopyEntry]:
    """The entries of `scan`, one by one, parents before children, without holding them all."""
    try:
        yield CopyEntry(str(data_directory), "", "directory", stat.S_IMODE(data_directory.stat().st_mode))
        yield from _below(data_directory, "", set())
    except PermissionError as error:
        raise PrivilegeMissing(f"{error.filename} cannot be read by this account") from error
    except OSError as error:
        raise ClusterError(f"{error.filename} cannot be read: {error.strerror}") from error


def _below(root: Path, folder: str, unlogged: set[str]) -> Iterator[CopyEntry]:
    try:
        found = sorted(os.scandir(root / folder), key=lambda item: item.name)
    except FileNotFoundError:
        return
    unlogged = {item.name.removesuffix("_init") for item in found if item.name.endswith("_init")}
    for item in found:
        path = f"{folder}/{item.name}" if folder else item.name
        if is_left_out(path) or _is_unlogged(item.name, unlogged):
            continue
        try:
            yield from _entry(root, path, item, unlogged)
        except FileNotFoundError:
            continue


def _entry(root: Path, path: str, item: os.DirEntry[str], unlogged: set[str]) -> Iterator[CopyEntry]:
    status = item.stat(follow_symlinks=True)
    mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime
    link = os.readlink(root / path) if item.is_symlink() else ""
    if stat.S_ISDIR(status.st_mode):
        kind = "link" if re.fullmatch(r"pg_tblspc/\d+", path) and link else "directory"
        yield CopyEntry(str(root), path, kind, mode, 0, mtime, link)
        yield from _below(root, path, unlogged)
    elif stat.S_ISREG(status.st_mode):
        block = relation_block(path)
        yield CopyEntry(str(root), path, "file", mode, status.st_size, mtime, link, block is not None, block or 0)


def _is_unlogged(name: str, unlogged: set[str]) -> bool:
    node = re.match(r"\d+", name)
    return node is not None and node[0] in unlogged and not name.endswith("_init")


def is_left_out(path: str) -> bool:
    """Whether PostgreSQL says to skip this path (relative to the data directory) in every backup."""
    head, _, leaf = path.rpartition("/")
    top = path.split("/", 1)[0]
    if not head and leaf in _FILES:
        return True
    if head and top in _CONTENTS:
        return True
    name = leaf or path
    return name.startswith(("pgsql_tmp", "pg_internal.init")) or _TEMPORARY.fullmatch(name) is not None


def relation_block(path: str, segment_blocks: int = 131072) -> int | None:
    """The number of a relation file's first block within its fork, or None if the path is no relation file."""
    match = _RELATION.fullmatch(path)
    return None if match is None else int(match["segment"] or 0) * segment_blocks
