"""A whole cluster through the replication protocol: `BASE_BACKUP`, from anywhere, with no agent.

Protocol: PostgreSQL's documentation, "Streaming Replication Protocol", BASE_BACKUP (parenthesised syntax, 15+):
start position → tablespaces → one COPY stream with messages n (new archive), d (data), p (progress) → end position.
Archives are tar (POSIX 1003.1 ustar; GNU and pax long names are understood too). No manifest is asked for: the
server would hash every byte for it, and whoever stores the bytes hashes them anyhow.

Page checksums are checked here and not by the server: the server would name a bad page only in its log and give
the whole backup up. A page that was written while it was read carries an LSN after the start, or, where the first
half of it was read before, another content a moment later. It is excused if its LSN lies between start and stop,
or if it was changed before stop: then WAL between the two holds its full image. Only a role that may execute
`pg_read_binary_file` can look again; for others such a torn page counts as bad.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType

from psycopg import pq

from seawall.errors import ClusterError, IncrementalRefused, PrivilegeMissing, ServerUnreachable, UsageError
from seawall.events import Noticed, Observer, silent
from seawall.model import Compression
from seawall.postgres.connect import connect, translated
from seawall.postgres.control import CONTROL_FILE, control_is_valid
from seawall.postgres.incremental import Increments, Layout, Prior, backup_manifest, begin_increments, whole_path
from seawall.postgres.inflate import inflated
from seawall.postgres.remote import RemoteFiles, Suspects
from seawall.postgres.scan import is_left_out, relation_block
from seawall.postgres.session import checked_backup_label
from seawall.postgres.summaries import FIRST_MAJOR
from seawall.postgres.tar import Member, TarReader
from seawall.postgres.wire import Wire
from seawall.settings import SourceSettings
from seawall.wal import Lsn

_CHUNK_BYTES = 2 * 1024 * 1024
_ARCHIVE, _DATA = b"nd"
_TABLESPACE_ARCHIVE = re.compile(r"(\d+)\.tar")
_SIZE = re.compile(r"(\d+)(kB|MB|GB|TB)?")
_UNITS = {"": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_NO_COMPRESSION = re.compile(r"does not support compression|not supported by this build")
_LOWEST_RATE, _HIGHEST_RATE = 32 << 10, 1 << 30
_TABLESPACE_MODE = 0o700  # what PostgreSQL gives a tablespace's directory; the stream does not say it
_NOT_IN_STATE = "55000"  # object_not_in_prerequisite_state: summaries missing, incomplete, or of another timeline
_INCREMENTAL_LINES = re.compile(r"^INCREMENTAL FROM (?:LSN|TLI): .*\n", re.MULTILINE)  # xlogbackup.c


@dataclass(frozen=True, slots=True)
class StreamedTablespace:
    """`oid` 0 is the data directory itself; `size_bytes` is the server's estimate."""

    oid: int
    location: str
    size_bytes: int


@dataclass(slots=True, eq=False)
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
    _content: Iterator[memoryview] = field(repr=False)
    _runs: Iterator[tuple[int, memoryview]] | None = field(default=None, repr=False)

    @property
    def is_partial(self) -> bool:
        """Whether only runs that differ from the prior's come: take `runs` then, and `chunks` otherwise."""
        return self._runs is not None

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        """Offset and content of what is not the prior's, ascending, in pieces of up to 2 MiB of whole runs.

        Only the file's last run may be shorter. Each piece is valid until the next is asked for.

        Raises:
            ServerUnreachable: the stream broke.
        """
        return iter(()) if self._runs is None else self._runs

    def chunks(self) -> Iterator[memoryview]:
        """The content in pieces of up to 2 MiB, each valid until the next is asked for.

        Raises:
            ServerUnreachable: the stream broke.
        """
        return self._content


class BaseBackup:
    """A running BASE_BACKUP. Iterate `files()` to the end; what the server says last is there after that.

    Known from the beginning: `start_lsn`, `timeline`, `tablespaces`, `estimated_bytes`, `checksums`,
    `compression` (what the server agreed to). After the last file: `stop_lsn`, `stop_timeline`, `backup_label`,
    `tablespace_map`, `stopped_at`, `bad_pages`.
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
    stopped_at: datetime

    def __init__(self, wire: Wire, files: RemoteFiles, request: _Request) -> None:
        self._wire, self._files = wire, files
        self.checksums = wire.show("data_checksums") == "on"
        block_bytes = int(wire.show("block_size"))
        self._layout = Layout(block_bytes, _size(wire.show("segment_size")) // block_bytes)
        if request.prior is not None:
            _upload(wire, files, request.prior, self._layout)
        self.start_lsn, self.timeline, self.compression = _begin(wire, request)
        self.tablespaces = tuple(_tablespaces(wire.result(pq.ExecStatus.TUPLES_OK)))
        wire.result(pq.ExecStatus.COPY_OUT)
        self._suspects = Suspects(files, self.start_lsn, block_bytes) if self.checksums else None
        self._increments: Increments | None = None
        if request.prior is not None:
            # Before the first file is given out, so that a refusal costs nothing but the checkpoint.
            self._increments = begin_increments(
                request.prior, files, self._layout, start=self.start_lsn, timeline=self.timeline,
                observe=wire.observe, randomness=request.randomness,
            )  # fmt: skip
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._next: memoryview | None = None
        self._end: pq.abc.PGresult | None = None
        self._bad: dict[str, tuple[int, ...]] = {}
        self.backup_label = self.tablespace_map = ""

    @property
    def estimated_bytes(self) -> int:
        """What the server expects to send, in bytes before compression."""
        return sum(space.size_bytes for space in self.tablespaces)

    @property
    def bad_pages(self) -> dict[str, tuple[int, ...]]:
        """Corrupt pages by file; complete after the last file."""
        return self._bad

    def files(self) -> Iterator[StreamedFile]:
        """Every directory, link and file, each once; pg_control comes near the end.

        Raises:
            ServerUnreachable: the stream broke.
            ClusterError: the server gave up, such as a standby that was promoted meanwhile.
        """
        self._next = self._message()
        while self._next is not None:
            message = bytes(self._next)
            if message[0] == _ARCHIVE:
                yield from self._archive(message)
            else:
                self._next = self._message()
        self._stop()

    def _message(self) -> memoryview | None:
        """The next message, None after the last; a stream that the server gave up ends with the server's words."""
        message = self._wire.copy_data()
        if message is None and self._end is None:
            self._end = self._wire.result(pq.ExecStatus.TUPLES_OK)
        return message

    def _data(self) -> Iterator[memoryview]:
        """The data messages up to one of another kind, which `_next` then is."""
        while (message := self._message()) is not None:
            kind = message[0]
            if kind == _DATA:
                yield message[1:]
            elif kind == _ARCHIVE:
                break
        self._next = message

    def _archive(self, message: bytes) -> Iterator[StreamedFile]:
        name = message[1:].partition(b"\0")[0].decode()
        match = _TABLESPACE_ARCHIVE.match(name)
        prefix = ""
        if match is not None:
            space = next(space for space in self.tablespaces if space.oid == int(match[1]))
            yield _root_of(space)
            prefix = f"pg_tblspc/{space.oid}/"
        tar = TarReader(inflated(self._data(), self.compression))
        while (member := tar.next()) is not None:
            self._wire.observe.checkpoint()
            yield from self._member(tar, member, prefix)

    def _member(self, tar: TarReader, member: Member, prefix: str) -> Iterator[StreamedFile]:
        # The server says `./pg_wal/archive_status`, but `base/1/1259`.
        path = _checked(prefix + member.path.removeprefix("./"))
        if path in ("backup_label", "tablespace_map"):
            text = b"".join(bytes(chunk) for chunk in self._chunks(tar, path)).decode("utf-8", "surrogateescape")
            # With the prior's runs in their places it is a whole cluster again, and would not start as half of one.
            setattr(self, path, _INCREMENTAL_LINES.sub("", text) if self._increments is not None else text)
        elif self._increments is not None and (whole := whole_path(path)) is not None:
            yield from self._partial(self._increments, tar, member, whole)
        elif self._is_wanted(path):
            block = relation_block(path, self._layout.segment_blocks) if member.kind == "file" else None
            content = self._chunks(tar, path, block)
            yield StreamedFile(
                path, member.kind, member.mode, member.size, member.mtime, member.link,
                block is not None, block or 0, content,
            )  # fmt: skip
            # Pages of a file that nobody wanted are judged all the same.
            for _ in content:
                pass

    def _partial(self, increments: Increments, tar: TarReader, member: Member, path: str) -> Iterator[StreamedFile]:
        size, found = increments.member(path, member.size, tar)
        block = relation_block(path, self._layout.segment_blocks) or 0
        runs = self._judged(path, block, found)
        yield StreamedFile(path, "file", member.mode, size, member.mtime, "", True, block, iter(()), runs)
        for _ in runs:
            pass

    def _judged(
        self, path: str, first_block: int, runs: Iterator[tuple[int, memoryview]]
    ) -> Iterator[tuple[int, memoryview]]:
        for offset, content in runs:
            self._wire.observe.checkpoint()
            if self._suspects is not None:
                self._suspects.look(path, first_block, offset, content)
            yield offset, content

    def _is_wanted(self, path: str) -> bool:
        if any(c == "\n" or "\udc80" <= c <= "\udcff" for c in path):
            message = f"{path!r} is left out of the backup: its name cannot be carried"
            self._wire.observe.hear(Noticed("medium", "left-out", message))
            return False
        # A link to a tablespace was told by its own archive.
        return not is_left_out(path) and re.fullmatch(r"pg_tblspc/\d+", path) is None

    def _chunks(self, tar: TarReader, path: str, first_block: int | None = None) -> Iterator[memoryview]:
        offset = 0
        while count := tar.readinto(self._buffer):
            self._wire.observe.checkpoint()
            chunk = self._buffer[:count]
            if first_block is not None and self._suspects is not None:
                self._suspects.look(path, first_block, offset, chunk)
            if path == CONTROL_FILE and not control_is_valid(bytes(chunk)):
                # Servers before 17 read it without a lock; a restore from half of it could not even start.
                raise ServerUnreachable("pg_control changed while the server sent it", hint="Take the backup again.")
            yield chunk
            offset += count

    def _stop(self) -> None:
        if self._end is None:
            raise ClusterError("the stream was not read to its end", hint="This is a defect.")
        self.stop_lsn, self.stop_timeline = _position(self._end)
        self._wire.finish()
        if self.stop_timeline != self.timeline or not self.backup_label:
            raise ClusterError(
                f"source {self._wire.source.name!r}: the backup began on timeline {self.timeline}, "
                f"ended on {self.stop_timeline}, and has {'a' if self.backup_label else 'no'} label",
                hint="The server was promoted meanwhile; take the backup again.",
            )
        if self._suspects is not None:
            self._bad = self._suspects.verdict(self.stop_lsn)
        self.stopped_at = _server_clock(self._wire.source)

    def close(self) -> None:
        """End the backup, whatever it has come to; a backup that was not read to its end is cancelled."""
        self._files.close()
        self._wire.close()

    def __enter__(self) -> BaseBackup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Request:
    """The options of one BASE_BACKUP; `max_rate` in bytes per second."""

    label: str
    max_rate: int
    compression: Compression
    fast: bool
    prior: Prior | None
    randomness: random.Random

    def command(self, compression: Compression) -> bytes:
        options = [
            f"LABEL {_quoted(self.label)}",
            "PROGRESS true",
            f"CHECKPOINT '{'fast' if self.fast else 'spread'}'",
            "WAL false",
            # Whoever takes the backup proves that its WAL is stored; PostgreSQL's archiver may never get there.
            "WAIT false",
            "TABLESPACE_MAP true",
            # Whoever stores the bytes hashes them; the server would hash them too, in the one process that sends.
            "MANIFEST 'no'",
            "VERIFY_CHECKSUMS false",
        ]
        if self.max_rate:
            options.append(f"MAX_RATE {min(self.max_rate, _HIGHEST_RATE) // 1024}")
        if self.prior is not None:
            options.append("INCREMENTAL")
        if compression is not Compression.NONE:
            options += [f"COMPRESSION '{compression.value}'", "COMPRESSION_DETAIL '1'"]
        return f"BASE_BACKUP ({', '.join(options)})".encode()


def base_backup(
    source: SourceSettings,
    label: str,
    *,
    max_rate: int = 0,
    compression: Compression | None = None,
    fast: bool = True,
    prior: Prior | None = None,
    randomness: random.Random | None = None,
    observe: Observer | None = None,
) -> BaseBackup:
    """Begin a BASE_BACKUP; returns after the checkpoint. Use it as a context.

    Args:
        source: which cluster; the role needs REPLICATION.
        label: shown in backup_label.
        max_rate: bytes per second that the server sends at most; 0 is no limit, else 32 KiB to 1 GiB.
        compression: done by the server and undone here, to spare the network; what the source's
            `stream_compression` says when omitted. A server that was built without it is asked again for plain
            data, which `observe` hears as `Noticed`.
        fast: checkpoint at once.
        prior: let the server send of its files only what changed since then (PostgreSQL 17 and later).
        randomness: chooses what is looked at to test what the server says of changes; system randomness if omitted.
        observe: `checkpoint` is called for each chunk.

    Raises:
        UsageError: the label cannot be one, or the rate is below 32 KiB per second.
        PrivilegeMissing: no REPLICATION, or pg_hba.conf has no line for it.
        IncrementalRefused: with `prior`: the server cannot tell what changed. Without it the backup is possible.
        ServerUnreachable, ClusterError: the server could not.
    """
    if 0 < max_rate < _LOWEST_RATE or max_rate < 0:
        raise UsageError(f"a server cannot send at {max_rate} bytes per second", hint="0 is no limit; at least 32768.")
    codec = source.stream_compression if compression is None else compression
    chance = randomness or random.SystemRandom()
    request = _Request(checked_backup_label(label), max_rate, codec, fast, prior, chance)
    wire, files = Wire(source, observe or silent()), RemoteFiles(source)
    try:
        return BaseBackup(wire, files, request)
    except BaseException:
        files.close()
        wire.close()
        raise


def _upload(wire: Wire, files: RemoteFiles, prior: Prior, layout: Layout) -> None:
    """Tell the server of the prior backup; it keeps that for the next BASE_BACKUP of this connection."""
    if wire.major_version < FIRST_MAJOR:
        raise IncrementalRefused(f"PostgreSQL {wire.major_version} cannot send what changed; 17 and later can")
    if wire.show("summarize_wal") != "on":
        raise IncrementalRefused("the server does not summarize its WAL (`summarize_wal`)")
    if not files.may_read():
        raise IncrementalRefused(
            "the role may not execute pg_read_binary_file, which completes the runs that blocks are parts of"
        )
    try:
        wire.upload(b"UPLOAD_MANIFEST", backup_manifest(prior, layout.block_bytes))
    except (ServerUnreachable, PrivilegeMissing):
        raise
    except ClusterError as error:
        raise IncrementalRefused(error.message) from error


def _begin(wire: Wire, request: _Request) -> tuple[Lsn, int, Compression]:
    """Ask for the backup, for plain data if the server cannot compress: start, timeline and the codec agreed on."""
    wire.send(request.command(request.compression))
    try:
        return *_position(wire.result(pq.ExecStatus.TUPLES_OK)), request.compression
    except ClusterError as error:
        if request.prior is not None and wire.sqlstate == _NOT_IN_STATE:
            raise IncrementalRefused(error.message) from error
        if request.compression is Compression.NONE or _NO_COMPRESSION.search(error.message) is None:
            raise
        wire.finish()
        message = f"{error.message}; the backup is sent plain"
        wire.observe.hear(Noticed("low", "stream-compression", message))
    wire.send(request.command(Compression.NONE))
    return *_position(wire.result(pq.ExecStatus.TUPLES_OK)), Compression.NONE


def _position(result: pq.abc.PGresult) -> tuple[Lsn, int]:
    lsn, timeline = result.get_value(0, 0) or b"", result.get_value(0, 1) or b""
    return Lsn.parse(lsn.decode()), int(timeline)


def _tablespaces(result: pq.abc.PGresult) -> Iterator[StreamedTablespace]:
    for row in range(result.ntuples):
        oid, location, kibibytes = (result.get_value(row, column) for column in range(3))
        text = (location or b"").decode("utf-8", "surrogateescape")
        yield StreamedTablespace(int(oid or 0), text, int(kibibytes or 0) * 1024)


def _root_of(space: StreamedTablespace) -> StreamedFile:
    """A tablespace's entry in pg_tblspc: a link, or a directory where it was made in place (a relative location)."""
    kind = "link" if space.location.startswith("/") else "directory"
    link = space.location if kind == "link" else ""
    return StreamedFile(f"pg_tblspc/{space.oid}", kind, _TABLESPACE_MODE, 0, 0.0, link, False, 0, iter(()))


def _checked(path: str) -> str:
    if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ClusterError(f"the server sent {path!r} as a path in its data directory", hint="Do not trust it.")
    return path


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ClusterError(f"the server says {text!r} for a size", hint="This is a defect.")
    return int(match[1]) * _UNITS[match[2] or ""]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _server_clock(source: SourceSettings) -> datetime:
    """The server's clock: BASE_BACKUP itself does not say when it stopped."""
    with connect(source) as session, translated(source.name):
        row = session.execute("SELECT clock_timestamp()").fetchone()
    if row is None or not isinstance(row[0], datetime):
        raise ClusterError(f"source {source.name!r}: the server's clock says {row!r}", hint="This is a defect.")
    return row[0].astimezone(UTC)
