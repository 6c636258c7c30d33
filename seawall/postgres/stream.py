"""A whole cluster through the replication protocol: `BASE_BACKUP`, from anywhere, with no agent.

Protocol: PostgreSQL's documentation, "Streaming Replication Protocol", BASE_BACKUP (parenthesised syntax, 15+):
start position → tablespaces → one COPY stream with messages n (new archive), d (data), m (manifest), p (progress)
→ end position. Archives are tar (POSIX 1003.1 ustar; GNU and pax long names are understood too).

Page checksums are checked here and not by the server: the server would name a bad page only in its log and give
the whole backup up. A page that was written while it was read carries an LSN after the start; only one whose
LSN lies between start and stop is excused, because WAL then holds its full image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from seawall.events import Observer
from seawall.model import Compression
from seawall.settings import SourceSettings
from seawall.wal import Lsn


@dataclass(frozen=True, slots=True)
class StreamedTablespace:
    """`oid` 0 is the data directory itself; `size_bytes` is the server's estimate."""

    oid: int
    location: str
    size_bytes: int


class StreamedFile:
    """One entry of the stream. Its chunks must be taken before the next entry is asked for, or are passed over.

    `path`, `kind`, `mode`, `size`, `mtime`, `link`, `is_relation` and `first_block` mean what they mean for
    `scan.CopyEntry`.
    """

    path: str
    kind: str
    mode: int
    size: int
    mtime: float
    link: str
    is_relation: bool
    first_block: int

    def chunks(self) -> Iterator[memoryview]:
        """The content in pieces of up to 2 MiB, each valid until the next is asked for.

        Raises:
            ServerUnreachable: the stream broke.
        """
        raise NotImplementedError


class BaseBackup:
    """A running BASE_BACKUP. Iterate `files()` to the end; what the server says last is there after that.

    Known from the beginning: `start_lsn`, `timeline`, `tablespaces`, `estimated_bytes`, `checksums`,
    `compression` (what the server agreed to). After the last file: `stop_lsn`, `stop_timeline`, `backup_label`,
    `tablespace_map`, `manifest`, `stopped_at`, `bad_pages`.
    """

    start_lsn: Lsn
    timeline: int
    tablespaces: tuple[StreamedTablespace, ...]
    checksums: bool
    compression: Compression
    stop_lsn: Lsn
    stop_timeline: int
    backup_label: str
    tablespace_map: str
    manifest: bytes
    stopped_at: datetime

    @property
    def estimated_bytes(self) -> int:
        """What the server expects to send, in bytes before compression."""
        raise NotImplementedError

    @property
    def bad_pages(self) -> dict[str, tuple[int, ...]]:
        """Corrupt pages by file; complete after the last file."""
        raise NotImplementedError

    def files(self) -> Iterator[StreamedFile]:
        """Every directory, link and file, each once; pg_control comes near the end.

        Raises:
            ServerUnreachable: the stream broke.
            ClusterError: the server gave up, such as a standby that was promoted meanwhile.
        """
        raise NotImplementedError

    def __enter__(self) -> BaseBackup:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError


def base_backup(
    source: SourceSettings,
    label: str,
    *,
    max_rate: int = 0,
    compression: Compression = Compression.NONE,
    fast: bool = True,
    observe: Observer | None = None,
) -> BaseBackup:
    """Begin a BASE_BACKUP; returns after the checkpoint. Use it as a context.

    Args:
        source: which cluster; the role needs REPLICATION.
        label: shown in backup_label.
        max_rate: bytes per second that the server sends at most; 0 is no limit, else 32 KiB to 1 GiB.
        compression: done by the server and undone here, to spare the network. A server that was built without it
            is asked again for plain data, which `observe` hears as `Noticed`.
        fast: checkpoint at once.
        observe: `checkpoint` is called for each chunk.

    Raises:
        PrivilegeMissing: no REPLICATION, or pg_hba.conf has no line for it.
        ServerUnreachable, ClusterError: the server could not.
    """
    raise NotImplementedError
