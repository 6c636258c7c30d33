"""What `BASE_BACKUP … INCREMENTAL` of PostgreSQL 17 and later wants and sends.

It wants a manifest of the prior backup (UPLOAD_MANIFEST; documentation, "Backup Manifest Format", version 2), which
is made here from what Seawall knows of it. The server looks only at the paths in it, its position in WAL and the
cluster's identity. It sends `INCREMENTAL.<name>` in place of a relation's file: a header, numbers of blocks, and these
blocks (`backend/backup/basebackup_incremental.c`, `bin/pg_combinebackup/reconstruct.c`).

Only main forks are named in the manifest, so that everything else comes whole: see `summaries` for why a claim on a
visibility map would be worth nothing.

Blocks are not runs, and a repository stores runs. `Increments` makes whole runs of what comes: what the server did
not send of a run it reads for us in a second session, as good as if it had been sent.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

from seawall.errors import ClusterError, IncrementalRefused
from seawall.events import Noticed, Observer
from seawall.postgres.pages import FRAME_BYTES
from seawall.postgres.remote import RemoteFiles
from seawall.postgres.scan import relation_block
from seawall.postgres.summaries import RelationFork, SampledFile, WalChanges, changed_blocks, cross_check
from seawall.postgres.tar import TarReader
from seawall.wal import Lsn

_MAGIC = 0xD3AE1F0D
_HEADER = struct.Struct("=III")
_PREFIX = "INCREMENTAL."
_PIECE_BYTES = 64 * 1024
_SAMPLED_RUNS = 128


@dataclass(frozen=True, slots=True)
class PriorFile:
    """A relation's file as the prior backup stored it: its bytes, and how long its runs are."""

    size_bytes: int
    run_bytes: int


class PriorFiles(Protocol):
    """Files by path, as a dictionary has them; there may be a million, so they need not all be in memory."""

    def get(self, path: str, /) -> PriorFile | None: ...

    def items(self) -> Iterable[tuple[str, PriorFile]]: ...


@dataclass(frozen=True, slots=True)
class Prior:
    """The backup that an incremental one builds on.

    Args:
        start_lsn, stop_lsn: its own, both on `timeline`.
        files: by path, those whose unchanged runs can be referred to; all others are sent whole.
    """

    system_identifier: int
    timeline: int
    start_lsn: Lsn
    stop_lsn: Lsn
    files: PriorFiles

    def referable(self, block_bytes: int) -> Iterator[tuple[str, PriorFile]]:
        """Files of which a server may send parts: main forks, in whole blocks and runs of whole blocks."""
        for path, file in self.files.items():
            whole = not file.size_bytes % block_bytes and not file.run_bytes % block_bytes
            if whole and is_main_fork(path):
                yield path, file


def is_main_fork(path: str) -> bool:
    """Whether a file may come in parts at all."""
    return RelationFork.at(path) is not None


def backup_manifest(prior: Prior, block_bytes: int) -> Iterator[bytes]:
    """The manifest of a prior backup as a server wants it, in pieces of about 64 KiB."""
    digest = hashlib.sha256()
    for piece in _pieces(_manifest_lines(prior, block_bytes)):
        digest.update(piece)
        yield piece
    # The checksum is of everything before its own line (parse_manifest.c, verify_manifest_checksum).
    yield f'"Manifest-Checksum": "{digest.hexdigest()}"}}\n'.encode()


def _manifest_lines(prior: Prior, block_bytes: int) -> Iterator[str]:
    yield '{ "PostgreSQL-Backup-Manifest-Version": 2,\n'
    yield f'"System-Identifier": {prior.system_identifier},\n"Files": ['
    separator = "\n"
    for path, file in prior.referable(block_bytes):
        # Nobody compares the time; the parser only wants one.
        time = "2000-01-01 00:00:00 GMT"
        yield f'{separator}{{ "Path": {json.dumps(path)}, "Size": {file.size_bytes}, "Last-Modified": "{time}" }}'
        separator = ",\n"
    yield '\n],\n"WAL-Ranges": [\n'
    yield f'{{ "Timeline": {prior.timeline}, "Start-LSN": "{prior.start_lsn}", "End-LSN": "{prior.stop_lsn}" }}\n],\n'


def _pieces(lines: Iterator[str]) -> Iterator[bytes]:
    held = bytearray()
    for line in lines:
        held += line.encode()
        if len(held) >= _PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def whole_path(path: str) -> str | None:
    """The relation's file that an `INCREMENTAL.` member of the archive stands for, None for other members."""
    directory, _, name = path.rpartition("/")
    if not directory or not name.startswith(_PREFIX):
        return None
    whole = f"{directory}/{name.removeprefix(_PREFIX)}"
    return whole if is_main_fork(whole) else None


@dataclass(frozen=True, slots=True)
class Header:
    """What begins an `INCREMENTAL.` member; blocks are numbered from the beginning of their file.

    Args:
        blocks: those that follow, ascending.
        truncation: blocks below this number that do not follow are those of the prior.
    """

    blocks: tuple[int, ...]
    truncation: int

    @classmethod
    def read(cls, path: str, size_bytes: int, read: Callable[[int], bytes], block_bytes: int) -> Header:
        """Read it and the padding after it.

        Args:
            size_bytes: of the whole member.
            read: gives as many bytes as it is asked for, or fewer at the member's end.

        Raises:
            ClusterError: it makes no sense.
        """
        begin = read(_HEADER.size)
        if len(begin) < _HEADER.size:
            raise _broken(path, f"it has {len(begin)} bytes")
        magic, count, truncation = _HEADER.unpack(begin)
        length = _HEADER.size + 4 * count
        padding = -length % block_bytes if count else 0
        if magic != _MAGIC or size_bytes != length + padding + count * block_bytes:
            raise _broken(path, f"{size_bytes} bytes cannot hold {count} blocks after {magic:#x}")
        numbers = read(4 * count)
        if len(numbers) < 4 * count or len(read(padding)) < padding:
            raise _broken(path, "it ends in its header")
        blocks = struct.unpack(f"={count}I", numbers)
        if any(later <= earlier for earlier, later in pairwise(blocks)):
            raise _broken(path, "its blocks do not ascend")
        return cls(blocks, truncation)

    def final_blocks(self, most: int) -> int:
        """How many blocks the file has in the end, at most as many as a file may have.

        Servers before the fix of 2025 may name a truncation beyond the file's largest size.
        """
        return min(most, max(self.truncation, self.blocks[-1] + 1 if self.blocks else 0))


@dataclass(frozen=True, slots=True)
class RunsToSend:
    """Runs of a file that cannot be referred to in the prior, by their numbers, ascending.

    A run is stored whole, but a server sends blocks: `lacking` are those runs that it sent in part or not at all.
    """

    numbers: tuple[int, ...]
    lacking: frozenset[int]


def runs_to_send(
    header: Header, prior: PriorFile, *, size_bytes: int, limit_block: int | None, block_bytes: int
) -> RunsToSend:
    """Decide which runs to store anew; pure.

    All runs with a changed block, and all from where the prior's content ends: where it was shorter, where the
    relation was cut meanwhile and grew again (a server would take empty blocks that WAL never named for the prior's),
    and where the last run is no longer as long as it was.

    Args:
        prior: the file as the prior backup stored it.
        size_bytes: of the file in the end.
        limit_block: from which on nothing of before is left, counted from the file's beginning; None if never cut.
        block_bytes: the cluster's block size.
    """
    run, blocks = prior.run_bytes, set(header.blocks)
    kept = min(prior.size_bytes, size_bytes, header.truncation * block_bytes)
    if limit_block is not None:
        kept = min(kept, limit_block * block_bytes)
    numbers = {block * block_bytes // run for block in blocks if block * block_bytes < size_bytes}
    if kept < size_bytes or size_bytes < prior.size_bytes:
        numbers.update(range(kept // run, -(-size_bytes // run)))

    def lacks(number: int) -> bool:
        end = min((number + 1) * run, size_bytes)
        return any(block not in blocks for block in range(number * run // block_bytes, end // block_bytes))

    return RunsToSend(tuple(sorted(numbers)), frozenset(number for number in numbers if lacks(number)))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a cluster cuts its relations: bytes of a block, blocks of a file."""

    block_bytes: int
    segment_blocks: int


class Increments:
    """Makes whole runs of `INCREMENTAL.` members; one at a time, because the buffer is one."""

    def __init__(self, prior: Prior, changes: WalChanges, files: RemoteFiles, layout: Layout) -> None:
        self._prior, self._changes, self._files, self._layout = prior, changes, files, layout
        self._buffer = memoryview(bytearray(FRAME_BYTES))

    def member(self, path: str, member_bytes: int, tar: TarReader) -> tuple[int, Iterator[tuple[int, memoryview]]]:
        """The file's size in the end, and the runs that are not the prior's: offset and content of runs in a row.

        Args:
            path: of the whole file, which the prior has.
            member_bytes: what the archive says.
            tar: stands at the member's content.

        Raises:
            ClusterError: the member makes no sense, or is of a file that was not asked for in parts.
        """
        block_bytes, prior = self._layout.block_bytes, self._prior.files.get(path)
        first_block = relation_block(path, self._layout.segment_blocks)
        if prior is None or first_block is None:
            raise _broken(path, "the prior has no such file")
        header = Header.read(path, member_bytes, lambda count: _read(tar, count), block_bytes)
        size = header.final_blocks(self._layout.segment_blocks) * block_bytes
        limit = self._changes.limit(path)
        local_limit = None if limit is None else max(0, limit - first_block)
        wanted = runs_to_send(header, prior, size_bytes=size, limit_block=local_limit, block_bytes=block_bytes)
        return size, self._runs(_Partial(path, size, prior.run_bytes, header, wanted), tar)

    def _runs(self, file: _Partial, tar: TarReader) -> Iterator[tuple[int, memoryview]]:
        run, size = file.run_bytes, self._layout.block_bytes
        blocks = iter(file.header.blocks)
        block = next(blocks, None)
        for batch in batches(file.wanted.numbers, len(self._buffer) // run):
            self._fill(file, batch)
            places = {number: index * run for index, number in enumerate(batch)}
            # The server's own blocks come over what was read in their place: they are the backup's.
            while block is not None and block * size // run in places:
                at = places[block * size // run] + block * size % run
                tar.readinto(self._buffer[at : at + size])
                block = next(blocks, None)
            for first, count in stretches(batch):
                length = min(count * run, file.size_bytes - first * run)
                yield first * run, self._buffer[places[first] : places[first] + length]

    def _fill(self, file: _Partial, batch: tuple[int, ...]) -> None:
        """Read what the server did not send of these runs; what is gone meanwhile is zeros, WAL tells why."""
        run = file.run_bytes
        lacking = [(index, number) for index, number in enumerate(batch) if number in file.wanted.lacking]
        if not lacking:
            return
        contents = self._files.read(file.path, [(number * run, run) for _, number in lacking])
        for (index, _), content in zip(lacking, contents, strict=True):
            self._buffer[index * run : (index + 1) * run] = (content or b"").ljust(run, b"\0")


@dataclass(frozen=True, slots=True)
class _Partial:
    path: str
    size_bytes: int
    run_bytes: int
    header: Header
    wanted: RunsToSend


def _read(tar: TarReader, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: tar.readinto(memoryview(buffer))])


def begin_increments(
    prior: Prior,
    files: RemoteFiles,
    layout: Layout,
    *,
    start: Lsn,
    timeline: int,
    observe: Observer,
    randomness: random.Random,
) -> Increments:
    """Learn what changed since the prior, and look at a sample of what is said not to have changed.

    Args:
        start, timeline: of the backup that has begun.
        observe: hears a critical notice if the server's summaries are wrong.
        randomness: where the sample comes from.

    Raises:
        IncrementalRefused: another timeline, or summaries that are incomplete or wrong.
    """
    if timeline != prior.timeline:
        raise IncrementalRefused(f"the prior is of timeline {prior.timeline}, the server is on {timeline}")
    changes = changed_blocks(files.session, prior.start_lsn, start, timeline, observe=observe)

    def sampled() -> Iterator[SampledFile]:
        for path, file in prior.referable(layout.block_bytes):
            first_block = relation_block(path, layout.segment_blocks) or 0
            yield SampledFile(path, file.size_bytes, file.run_bytes, first_block)

    missed = cross_check(
        changes,
        sampled,
        lambda path, offset, length: files.read(path, [(offset, length)])[0],
        block_bytes=layout.block_bytes,
        runs=_SAMPLED_RUNS,
        randomness=randomness,
    )
    if missed is not None:
        message = (
            f"WAL summaries say nothing of a change in {missed[0]} at byte {missed[1]}; nothing they say is trusted"
        )
        observe.hear(Noticed("critical", "summaries-wrong", message))
        raise IncrementalRefused(message)
    return Increments(prior, changes, files, layout)


def stretches(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow each other."""
    found: list[tuple[int, int]] = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        found.append((members[0], len(members)))
    return found


def batches(numbers: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
    """`numbers` in pieces of up to `most`."""
    for at in range(0, len(numbers), most):
        yield numbers[at : at + most]


def _broken(path: str, what: str) -> ClusterError:
    return ClusterError(f"{path} of the server's incremental backup makes no sense: {what}", hint="Take a full backup.")
