"""WAL summaries of PostgreSQL 17 and later: which blocks WAL changed between two positions.

Sources: PostgreSQL's documentation, section "WAL Summarization Functions"; `backend/postmaster/walsummarizer.c` for
what a limit block means; `backend/backup/basebackup_incremental.c` for what an incremental backup makes of it.

What is claimed here is claimed of main forks alone. The free space map is not WAL-logged; bits of the visibility map
are cleared by records that do not name its blocks, so that summaries do not know of it. Changes that no WAL tells of
(hint bits without checksums) are not claimed either. A summary is a claim of the server's: `cross_check` tests it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString, TypeAlias

import numpy as np
import numpy.typing as npt
import psycopg

from seawall.errors import IncrementalRefused
from seawall.events import Observer
from seawall.postgres.connect import Session, translated
from seawall.postgres.pages import page_lsn
from seawall.storage.base import Bytes
from seawall.wal import Lsn

Blocks: TypeAlias = npt.NDArray[np.uint32]
Runs: TypeAlias = npt.NDArray[np.bool_]

FIRST_MAJOR = 17
# As long as a server waits for its own summarizer before it gives an incremental backup up.
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1
_DEFAULT_SPACE, _GLOBAL_SPACE = 1663, 1664  # pg_tablespace.dat
_MAIN_FORK = 0
_MAIN = re.compile(r"(?:(global)|base/(\d+)|pg_tblspc/(\d+)/PG_[^/]+/(\d+))/(\d+)(?:\.\d+)?")
_AVAILABLE: LiteralString = """
    SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()
    WHERE tli = %s AND end_lsn > %s::pg_lsn AND start_lsn < %s::pg_lsn ORDER BY start_lsn
"""
_SUMMARIZER: LiteralString = """
    SELECT summarized_lsn::text, pending_lsn::text, summarizer_pid FROM pg_get_wal_summarizer_state()
"""
# Block numbers as four bytes each, most significant first: an array of millions would be as many Python objects.
_CONTENTS: LiteralString = """
    SELECT reltablespace::int8, reldatabase::int8, relfilenode::int8,
           min(block) FILTER (WHERE is_limit),
           string_agg(substr(int8send(block), 5), ''::bytea ORDER BY block) FILTER (WHERE NOT is_limit)
    FROM (SELECT DISTINCT c.reltablespace, c.reldatabase, c.relfilenode, c.relblocknumber, c.is_limit_block
          FROM unnest(%s::pg_lsn[], %s::pg_lsn[]) AS s (first, last),
               pg_wal_summary_contents(%s, s.first, s.last) AS c
          WHERE c.relforknumber = 0) AS d (reltablespace, reldatabase, relfilenode, block, is_limit)
    GROUP BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class RelationFork:
    """Main fork of a relation, by OIDs; `relfilenode` 0 stands for the whole of a database in a tablespace."""

    tablespace: int
    database: int
    relfilenode: int

    @classmethod
    def at(cls, path: str) -> RelationFork | None:
        """The main fork that a file (relative to the data directory) is a part of, None for all other files."""
        match = _MAIN.fullmatch(path)
        if match is None:
            return None
        shared, database, space, database_there, node = match.groups()
        if shared:
            return cls(_GLOBAL_SPACE, 0, int(node))
        return cls(int(space or _DEFAULT_SPACE), int(database or database_there), int(node))


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """`blocks` were changed, ascending; from `limit_block` on nothing of before is left (None: never cut)."""

    limit_block: int | None
    blocks: Blocks


@dataclass(frozen=True, slots=True)
class WalChanges:
    """What WAL from `prior_start` (inclusive) to `start` changed.

    A fork that is not in `forks` was not changed by WAL, unless its database was made meanwhile.
    """

    prior_start: Lsn
    start: Lsn
    forks: Mapping[RelationFork, BlockChanges]

    def limit(self, path: str) -> int | None:
        """The block of the whole fork from which on nothing of before is left, None if it was never cut."""
        fork = RelationFork.at(path)
        if fork is None or RelationFork(fork.tablespace, fork.database, 0) in self.forks:
            return 0
        changes = self.forks.get(fork)
        return None if changes is None else changes.limit_block

    def runs(self, path: str, size_bytes: int, *, first_block: int, block_bytes: int, run_bytes: int) -> Runs | None:
        """Which runs of a relation file may differ from what they were at `prior_start`.

        Runs beyond the file's former end are not among them: whoever knows that end adds them. None means that
        nothing is claimed and the file is to be read whole.

        Args:
            path: relative to the data directory.
            size_bytes: what is to be read of it.
            first_block: the number of its first block within the fork.
            block_bytes: the cluster's block size.
            run_bytes: how long the runs are; a multiple of the block size.
        """
        fork, limit = RelationFork.at(path), self.limit(path)
        if fork is None or run_bytes % block_bytes or (limit is not None and limit <= first_block):
            return None
        changed = np.zeros(-(-size_bytes // run_bytes), np.bool_)
        per_run = run_bytes // block_bytes
        known = self.forks.get(fork)
        if known is not None:
            own = known.blocks[np.searchsorted(known.blocks, first_block) :].astype(np.int64) - first_block
            at = own // per_run
            changed[at[at < changed.size]] = True
        if limit is not None:
            changed[(limit - first_block) // per_run :] = True
        return changed


def changed_blocks(
    session: Session,
    prior_start: Lsn,
    start: Lsn,
    timeline: int,
    *,
    observe: Observer,
    patience_seconds: float = PATIENCE_SECONDS,
) -> WalChanges:
    """What a server's WAL summaries say of the time between the start of a prior backup and that of a new one.

    Waits for the summarizer as long as it gets on.

    Args:
        session: of any role; the functions are open to all.
        prior_start: where the prior backup began.
        start: where the new one began, on the same timeline.
        timeline: of both.
        observe: its `checkpoint` is called while this waits.
        patience_seconds: how long the summarizer may stand still.

    Raises:
        IncrementalRefused: the server is older than 17, summarizes nothing, or misses a part of that WAL.
        ServerUnreachable: the session was lost.
    """
    if session.info.server_version // 10000 < FIRST_MAJOR:
        raise IncrementalRefused("a server before PostgreSQL 17 has no WAL summaries")
    with translated("summaries"):
        covering = _covering(session, prior_start, start, timeline, observe=observe, patience_seconds=patience_seconds)
        try:
            return WalChanges(prior_start, start, dict(_contents(session, timeline, covering)))
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:  # a summary that was removed a moment ago, or cannot be read
            raise IncrementalRefused(f"the WAL summaries cannot be read: {error.diag.message_primary}") from error


def _covering(
    session: Session, prior_start: Lsn, start: Lsn, timeline: int, *, observe: Observer, patience_seconds: float
) -> list[tuple[Lsn, Lsn]]:
    """Summaries of all WAL between two positions, once the summarizer got there."""
    pending, stands_since = "", time.monotonic()
    while True:
        # Asked first: what was summarized by then is among the summaries that are listed now.
        state = session.execute(_SUMMARIZER).fetchone()
        found = session.execute(_AVAILABLE, (timeline, str(prior_start), str(start))).fetchall()
        ranges = [(Lsn.parse(str(first)), Lsn.parse(str(last))) for first, last in found]
        reached = covered_to(ranges, prior_start)
        if reached >= start:
            return ranges
        if state is None or state[2] is None:
            raise IncrementalRefused(f"WAL from {reached} to {start} is not summarized, and no summarizer runs")
        if str(state[1]) != pending:
            pending, stands_since = str(state[1]), time.monotonic()
        # What the summarizer has passed already without a summary of it will never come.
        if Lsn.parse(str(state[0])) >= start or time.monotonic() - stands_since > patience_seconds:
            raise IncrementalRefused(f"WAL from {reached} to {start} on timeline {timeline} is not summarized")
        observe.checkpoint()
        time.sleep(_POLL_SECONDS)


def covered_to(ranges: Iterable[tuple[Lsn, Lsn]], begin: Lsn) -> Lsn:
    """How far `ranges`, sorted by their beginnings, cover WAL from `begin` on without a gap."""
    reached = begin
    for first, last in ranges:
        if first > reached:
            break
        reached = max(reached, last)
    return reached


def _contents(
    session: Session, timeline: int, covering: Sequence[tuple[Lsn, Lsn]]
) -> Iterator[tuple[RelationFork, BlockChanges]]:
    parameters = ([str(first) for first, _ in covering], [str(last) for _, last in covering], timeline)
    with session.cursor(binary=True) as cursor:
        for space, database, node, limit, blocks in cursor.stream(_CONTENTS, parameters):
            numbers = np.frombuffer(blocks or b"", dtype=">u4").astype(np.uint32)
            yield RelationFork(int(space), int(database), int(node)), BlockChanges(limit, numbers)


ReadRun: TypeAlias = Callable[[str, int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class SampledFile:
    """A file of the prior for `cross_check`: its bytes then, the length of its runs, its first block in the fork."""

    path: str
    size_bytes: int
    run_bytes: int
    first_block: int


def cross_check(
    changes: WalChanges,
    files: Callable[[], Iterable[SampledFile]],
    read: ReadRun,
    *,
    block_bytes: int,
    runs: int,
    randomness: random.Random,
) -> tuple[str, int] | None:
    """The first run of a random sample that WAL changed although no summary names it, as path and offset in bytes.

    A page's own LSN tells: it lies between the two positions although its block is not among the changed ones. A
    page that was changed after `changes.start` is none of the summaries' business.

    Args:
        changes: what the summaries say.
        files: gives relation files of the prior, the same each time; all their runs have the same chance.
        read: the content of a file of now, by path, offset and length in bytes; None if it is gone.
        block_bytes: the cluster's block size.
        runs: how many to look at.
        randomness: where the choice comes from.
    """
    for file, number in _drawn(files, runs, randomness):
        claimed = changes.runs(
            file.path, file.size_bytes, first_block=file.first_block, block_bytes=block_bytes, run_bytes=file.run_bytes
        )
        if claimed is None or claimed[number]:
            continue
        content = read(file.path, number * file.run_bytes, file.run_bytes)
        if content is not None and is_missed(content, changes.prior_start, changes.start, block_bytes):
            return file.path, number * file.run_bytes
    return None


def _drawn(
    files: Callable[[], Iterable[SampledFile]], runs: int, randomness: random.Random
) -> Iterator[tuple[SampledFile, int]]:
    total = sum(file.size_bytes // file.run_bytes for file in files())
    chosen = sorted(randomness.randrange(total) for _ in range(runs if total else 0))
    at = passed = 0
    for file in files():
        count = file.size_bytes // file.run_bytes
        while at < len(chosen) and chosen[at] < passed + count:
            yield file, chosen[at] - passed
            at += 1
        passed += count


def is_missed(run: Bytes, prior_start: Lsn, start: Lsn, block_bytes: int) -> bool:
    """Whether a run that nobody claims to have changed has a page that WAL between the two positions changed."""
    whole = len(run) - len(run) % block_bytes
    pages = (run[at : at + block_bytes] for at in range(0, whole, block_bytes))
    return any(prior_start <= page_lsn(page) < start for page in pages)
