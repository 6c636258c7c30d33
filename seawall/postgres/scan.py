"""What of a data directory belongs into a backup, and what PostgreSQL says to leave out.

Rules: PostgreSQL's documentation, section "Backing Up the Data Directory" (26.3.4.3 in version 15), and
`backend/backup/basebackup.c` (excludeFiles, excludeDirContents). Anything that is not on the list is copied, so
files that PostgreSQL does not know come along. Files may vanish or grow while this looks: a vanished one is left
out, a grown one is copied up to the size seen here, because WAL replays the rest.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import ClusterMismatch, PrivilegeMissing
from seawall.model import Cluster
from seawall.postgres.control import ControlData, read_control
from seawall.postgres.listing import CopyEntry, Listing

__all__ = ["EXTERNAL_PID_FILE", "CopyEntry", "CopyPlan", "is_left_out", "relation_block", "scan", "unlogged", "walk"]

_log = logging.getLogger(__name__)

# The server makes their content anew; only the directories themselves must be there at its start.
_EMPTIED = frozenset(
    ("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
)
_KEPT_IN_WAL = frozenset(("pg_wal/archive_status", "pg_wal/summaries"))
EXTERNAL_PID_FILE = "postmaster.external.pid"  # of a server that `instance` started
# The signal files are recovery's, not the cluster's: a restored one would choose the mode of the next start.
_LEFT_OUT_AT_TOP = frozenset(
    ("postmaster.pid", "postmaster.opts", "backup_manifest", "backup_label", "tablespace_map", "recovery.signal",
     "standby.signal", "postgresql.auto.conf.tmp", "current_logfiles.tmp", EXTERNAL_PID_FILE)
)  # fmt: skip
# A link to one of these is part of the cluster, wherever an administrator moved it; other linked directories are not.
_FOLLOWED = frozenset(
    ("base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_stat", "pg_twophase", "pg_xact", "pg_tblspc")
)
_DATABASE = re.compile(r"(?:base|pg_tblspc/\d+/PG_[^/]+)/\d+")
_TEMPORARY = re.compile(r"t\d+_\d+(?:_\w+)?(?:\.\d+)?")
_RELATION = re.compile(r"(\d+)(?:_(?:fsm|vm|init))?(?:\.(\d+))?")
_RELATION_PATH = re.compile(r"(?:global|(?:base|pg_tblspc/\d+/PG_[^/]+)/\d+)/\d+(?:_(?:fsm|vm|init))?(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What to copy, sorted by path; `left_out` names what no backup can carry, with the reason."""

    entries: Listing
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.entries.total_bytes

    @property
    def files(self) -> Iterator[CopyEntry]:
        return (entry for entry in self.entries if entry.kind == "file")


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
    control = read_control(data_directory)
    if cluster is not None and control.system_identifier != cluster.system_identifier:
        raise ClusterMismatch(
            f"{data_directory} is of cluster {control.system_identifier}, "
            f"but the server is cluster {cluster.system_identifier}",
            hint="Correct `data_directory` of the source: on another host the server's own path is another directory.",
        )
    left_out: list[tuple[str, str]] = []
    entries = Listing(_walk(data_directory, control, left_out))
    return CopyPlan(entries, tuple(left_out))


def walk(data_directory: Path) -> Iterator[CopyEntry]:
    """The entries of `scan`, one by one, parents before children, without holding them all.

    Raises:
        PrivilegeMissing: a part of it cannot be read.
        ClusterError: it is no data directory.
    """
    return _walk(data_directory, read_control(data_directory), [])


def is_left_out(path: str) -> bool:
    """Whether PostgreSQL says to skip this path (relative to the data directory) in every backup.

    Unlogged relations are not decided here: that needs to know whether an `_init` fork lies beside.
    """
    top, _, below = path.partition("/")
    if not below:
        return top in _LEFT_OUT_AT_TOP or top.startswith("pgsql_tmp")
    if top in _EMPTIED or (top == "pg_wal" and path not in _KEPT_IN_WAL):
        return True
    directory, _, name = path.rpartition("/")
    if name.startswith(("pgsql_tmp", "pg_internal.init")) or top.startswith("pgsql_tmp"):
        return True
    return _TEMPORARY.fullmatch(name) is not None and _DATABASE.fullmatch(directory) is not None


def relation_block(path: str, segment_blocks: int = 131072) -> int | None:
    """The number of a relation file's first block within its fork, or None if the path is no relation file.

    Args:
        path: relative to the data directory.
        segment_blocks: how many blocks one file holds (`ControlData.relation_segment_blocks`).
    """
    match = _RELATION_PATH.fullmatch(path)
    return None if match is None else int(match[1] or 0) * segment_blocks


def unlogged(names: list[str]) -> frozenset[str]:
    """The file names of one database directory that belong to unlogged relations and need no copy.

    An unlogged relation is one with an `_init` fork; recovery makes its other forks from that.
    """
    numbers = {name.removesuffix("_init") for name in names if name.endswith("_init")}
    if not numbers:
        return frozenset()
    matches = ((name, _RELATION.fullmatch(name)) for name in names)
    return frozenset(name for name, m in matches if m and m[1] in numbers and "_init" not in name)


@dataclass(slots=True)
class _Walker:
    root: Path
    control: ControlData
    left_out: list[tuple[str, str]]
    tablespaces: dict[str, str]  # the real place of each tablespace → its path below pg_tblspc

    def directory(self, path: str) -> Iterator[CopyEntry]:
        """The entries below `path`, which was yielded already."""
        names, links = self._list(path)
        skipped = unlogged(names) if _DATABASE.fullmatch(path) else frozenset()
        for name in names:
            below = f"{path}/{name}" if path else name
            if name in skipped or is_left_out(below):
                continue
            if not _is_carriable(below):
                self._leave(below, "its name is not UTF-8")
                continue
            yield from self._entry(below, is_link=name in links)

    def _list(self, path: str) -> tuple[list[str], set[str]]:
        """The names in a directory, sorted, and which of them are links; an entry of each would keep what stat says."""
        names: list[str] = []
        links: set[str] = set()
        try:
            with os.scandir(self.root / path) as listing:
                for entry in listing:
                    names.append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
        except FileNotFoundError:  # a database dropped meanwhile; WAL replays the drop
            return [], links
        except PermissionError as error:
            raise _closed(self.root / path) from error
        names.sort()
        return names, links

    def _entry(self, path: str, *, is_link: bool) -> Iterator[CopyEntry]:
        place = f"{self.root}/{path}"
        try:
            link = str(Path(place).readlink()) if is_link else ""
            status = os.stat(place)  # noqa: PTH116 - a `Path` for each of a million files would show
        except FileNotFoundError:
            if is_link:
                self._leave(path, "the link leads nowhere")
            return
        except PermissionError as error:
            raise _closed(self.root / path) from error
        if stat.S_ISDIR(status.st_mode):
            yield from self._directory(path, status, link)
        elif stat.S_ISREG(status.st_mode):
            yield self._file(path, status, link)
        else:
            self._leave(path, "it is no file")

    def _directory(self, path: str, status: os.stat_result, link: str) -> Iterator[CopyEntry]:
        mode = stat.S_IMODE(status.st_mode)
        place = os.path.realpath(self.root / path)
        if path.startswith("pg_tblspc/") and path.count("/") == 1:
            yield self._made(path, "link" if link else "directory", mode, link=link)
            yield from self._tablespace(path)
        elif self.tablespaces.get(place) is not None and not path.startswith("pg_tblspc/"):
            return  # a tablespace inside the data directory: it is copied below pg_tblspc
        elif link and path not in _FOLLOWED and path != "pg_wal" and path not in _EMPTIED and not _is_data(path):
            self._leave(path, f"it is a link to the directory {link}, which is not the cluster's")
            yield self._made(path, "link", mode, link=link)
        else:
            yield self._made(path, "directory", mode, mtime=status.st_mtime)
            yield from self.directory(path)

    def _tablespace(self, path: str) -> Iterator[CopyEntry]:
        # After an upgrade the old version's directory lies beside; other clusters may share the place as well.
        suffix = f"_{self.control.catalog_version}"
        names, links = self._list(path)
        for name in names:
            if name.startswith("PG_") and name.endswith(suffix):
                yield from self._entry(f"{path}/{name}", is_link=name in links)

    def _file(self, path: str, status: os.stat_result, link: str) -> CopyEntry:
        block = relation_block(path, self.control.relation_segment_blocks)
        return CopyEntry(
            str(self.root), path, "file", stat.S_IMODE(status.st_mode), status.st_size, status.st_mtime, link,
            is_relation=block is not None, first_block=block or 0,
            mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns, inode=status.st_ino,
        )  # fmt: skip

    def _made(self, path: str, kind: str, mode: int, *, mtime: float = 0.0, link: str = "") -> CopyEntry:
        return CopyEntry(str(self.root), path, kind, mode, 0, mtime, link)

    def _leave(self, path: str, reason: str) -> None:
        _log.warning("%r is left out of the backup: %s", path, reason)
        self.left_out.append((path, reason))


def _walk(data_directory: Path, control: ControlData, left_out: list[tuple[str, str]]) -> Iterator[CopyEntry]:
    return _Walker(data_directory, control, left_out, _tablespaces(data_directory)).directory("")


def _tablespaces(data_directory: Path) -> dict[str, str]:
    places: dict[str, str] = {}
    for link in _listed(data_directory / "pg_tblspc"):
        if link.is_symlink():
            places[os.path.realpath(link)] = f"pg_tblspc/{link.name}"
    return places


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _is_data(path: str) -> bool:
    return path.startswith(("base/", "pg_tblspc/", "pg_logical/", "pg_multixact/"))


def _is_carriable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # os.fsdecode keeps foreign bytes as lone surrogates
        return False
    return "\n" not in path


def _closed(path: Path) -> PrivilegeMissing:
    return PrivilegeMissing(
        f"{path} cannot be read by this account",
        hint="Run as root, as the server's account, or in its group after `initdb --allow-group-access`.",
    )
