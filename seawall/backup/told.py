"""What a server's WAL summaries tell a copy by files: which runs of a file that was written to need not be read.

Summaries are claims of the server's, never the only source of truth: a sample of what they call unchanged is read
and compared, and where it is another, none of them is believed (see `seawall.postgres.summaries`).
"""

from __future__ import annotations

from dataclasses import dataclass

from seawall.backup.changes import PriorFile
from seawall.backup.prior import Prior
from seawall.errors import IncrementalRefused
from seawall.events import Noticed, Observer
from seawall.model import Cluster
from seawall.postgres.connect import connect, translated
from seawall.postgres.pages import page_lsn
from seawall.postgres.scan import CopyEntry
from seawall.postgres.session import StartInfo
from seawall.postgres.summaries import FIRST_MAJOR, Runs, WalChanges, changed_blocks, is_missed
from seawall.settings import SourceSettings


@dataclass(frozen=True, slots=True)
class Told:
    """Changes between the starts of a prior and of the backup under way, of a cluster with these properties."""

    changes: WalChanges
    block_bytes: int
    checksums: bool

    def runs(self, entry: CopyEntry, known: PriorFile) -> Runs | None:
        """Which runs of a file have to be read, None where all of it has."""
        length, was = known.blocks.run_bytes, known.entry.size_bytes
        runs = self.changes.runs(
            entry.path, entry.size, first_block=entry.first_block, block_bytes=self.block_bytes, run_bytes=length
        )
        if runs is not None and entry.size != was:
            # Behind the shorter end there is nothing to take over, and the run that it lies in has another length.
            runs[min(was, entry.size) // length :] = True
        return runs

    def contradicts(self, run: bytes) -> bool:
        """Whether a run that is called unchanged, but is another than the prior's, proves the summaries wrong.

        Pages that were written after the start are replayed, whatever lies here. Without checksums a page may also
        differ in hints that no WAL tells of; its LSN is then from before the prior.
        """
        if is_missed(run, self.changes.prior_start, self.changes.start, self.block_bytes):
            return True
        whole = len(run) - len(run) % self.block_bytes
        pages = (run[at : at + self.block_bytes] for at in range(0, whole, self.block_bytes))
        return self.checksums and all(page_lsn(page) < self.changes.start for page in pages)


def told_by(
    source: SourceSettings, cluster: Cluster, prior: Prior, started: StartInfo, observe: Observer
) -> Told | None:
    """What the server's summaries say since a prior; None where it makes none, or not enough of them.

    Raises:
        ServerUnreachable: the server does not answer.
    """
    if cluster.major_version < FIRST_MAJOR or started.timeline != prior.head.timeline:
        return None
    if started.lsn < prior.head.stop_lsn:
        # A standby that lags: what the prior read may be ahead of this backup's own end, and only what is read here
        # and found the same may be taken over.
        return None
    with connect(source, application_name="seawall backup") as session:
        with translated(source.name):
            row = session.execute("SHOW summarize_wal").fetchone()
        if row is None or row[0] != "on":
            return None
        try:
            changes = changed_blocks(session, prior.head.start_lsn, started.lsn, started.timeline, observe=observe)
        except IncrementalRefused as refused:
            message = f"{refused.message}; files that were written to are read as a whole"
            observe.hear(Noticed("low", "changes-not-told", message))
            return None
    return Told(changes, cluster.block_bytes, cluster.checksums)
