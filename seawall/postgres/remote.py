"""Parts of a cluster's files that its server reads for a streamed backup.

Needs EXECUTE on `pg_read_binary_file(text, bigint, bigint, boolean)`. Two uses: a page that looks wrong is looked at
again, and runs that an incremental backup needs as a whole are read where the server sent only some of their blocks.
What is read during a backup needs no more care than the backup's own reading: WAL replays all that changes meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import LiteralString

from seawall.errors import ClusterError, PrivilegeMissing
from seawall.postgres.connect import Session, connect, translated
from seawall.postgres.pages import FRAME_BYTES, PageChecker, page_lsn
from seawall.settings import SourceSettings
from seawall.wal import Lsn

_log = logging.getLogger(__name__)
_READ: LiteralString = """
    SELECT pg_read_binary_file(%s, r.first, r.length, true)
    FROM unnest(%s::int8[], %s::int8[]) WITH ORDINALITY AS r (first, length, number) ORDER BY r.number
"""
_MAY_READ: LiteralString = (
    "SELECT has_function_privilege('pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE')"
)


class RemoteFiles:
    """Files of one cluster; the session is opened when first needed."""

    def __init__(self, source: SourceSettings) -> None:
        self._source = source
        self._opened: Session | None = None

    @property
    def session(self) -> Session:
        if self._opened is None:
            self._opened = connect(self._source, application_name="seawall backup")
        return self._opened

    def may_read(self) -> bool:
        """Whether this role may read files through the server."""
        with translated(self._source.name):
            row = self.session.execute(_MAY_READ).fetchone()
        return row is not None and bool(row[0])

    def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """The content of each (offset, length) in bytes; shorter at the file's end, None if the file is gone.

        Raises:
            PrivilegeMissing, ServerUnreachable, ClusterError: the server does not read it.
        """
        offsets, lengths = [offset for offset, _ in ranges], [length for _, length in ranges]
        with translated(self._source.name):
            rows = self.session.execute(_READ, (path, offsets, lengths), binary=True).fetchall()
        return [None if row[0] is None else bytes(row[0]) for row in rows]

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


class Suspects:
    """Judges the pages of relation files as they pass, and keeps those that only the stop position can excuse."""

    def __init__(self, files: RemoteFiles, start: Lsn, block_bytes: int) -> None:
        self._files, self._start, self._block_bytes = files, start, block_bytes
        self._checker = PageChecker(FRAME_BYTES, block_bytes)
        self._may_look = True
        self._written: list[tuple[str, int, Lsn]] = []
        self._bad: dict[str, list[int]] = defaultdict(list)

    def look(self, path: str, first_block: int, offset: int, chunk: memoryview) -> None:
        """Judge one chunk of a file; `offset` is its place in the file, in bytes."""
        size = self._block_bytes
        first = first_block + offset // size
        unclear: list[tuple[int, memoryview]] = []
        for block in self._checker.check(chunk, first):
            page = chunk[(block - first) * size : (block - first + 1) * size]
            if page_lsn(page) > self._start:
                self._written.append((path, block, page_lsn(page)))
            else:
                unclear.append((block, page))
        if unclear:
            time.sleep(0.05)  # so that a write in progress ends
            self._bad[path] += [b for b, page in unclear if not self._changed(path, (b - first_block) * size, page)]

    def _changed(self, path: str, offset: int, page: memoryview) -> bool:
        """Whether the server reads something else there now; then it was writing the page when it sent it."""
        if not self._may_look:
            return False
        try:
            (again,) = self._files.read(path, [(offset, len(page))])
        except PrivilegeMissing:
            self._may_look = False
            return False
        except ClusterError as error:
            # Not being able to look again makes no page good, and need not end the backup.
            _log.warning("%s cannot be read again: %s", path, error.message)
            return False
        return again is None or again != bytes(page)

    def verdict(self, stop: Lsn) -> dict[str, tuple[int, ...]]:
        """All bad pages by file, once the stop position is known."""
        for path, block, lsn in self._written:
            if lsn > stop:
                self._bad[path].append(block)
        return {path: tuple(sorted(blocks)) for path, blocks in sorted(self._bad.items()) if blocks}
