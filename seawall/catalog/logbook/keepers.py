"""Signs of life of the keepers that share this catalog.

Written and judged by the clock of the database, so that it does not matter how far those of the hosts are apart. (For
SQLite that is the clock of the one host that has the file.) Nothing is deleted: who need not be waited for is marked.
"""

from __future__ import annotations

from seawall.catalog.checks import bounded
from seawall.catalog.logbook.rows import Entries, moment
from seawall.catalog.views import KeeperBeat
from seawall.errors import RecordMissing

_BEAT = (
    "INSERT INTO keepers (host, beat_at) VALUES (:host, CURRENT_TIMESTAMP)"
    " ON CONFLICT (host) DO UPDATE SET beat_at = excluded.beat_at, ended_at = NULL"
)


class KeeperEntries(Entries):
    def beat(self, host: str) -> None:
        """Record that the keeper of a host is alive."""
        with self._writes() as rows:
            rows.execute(_BEAT, host=bounded(host, 255, "the host's name"))

    def keepers(self) -> tuple[KeeperBeat, ...]:
        """The keepers of which signs of life are expected, by host."""
        query = "SELECT host, beat_at, CURRENT_TIMESTAMP FROM keepers WHERE ended_at IS NULL ORDER BY host"
        with self._reads() as rows:
            found = rows.execute(query)
        return tuple(KeeperBeat(host, moment(seen), moment(now) - moment(seen)) for host, seen, now in found)

    def end_keeper(self, host: str) -> None:
        """Wait no longer for signs of life of a host's keeper, until it gives one.

        Raises:
            RecordMissing: none was ever heard of.
        """
        with self._writes() as rows:
            if not rows.changed("UPDATE keepers SET ended_at = CURRENT_TIMESTAMP WHERE host = :host", host=host):
                raise RecordMissing(f"the catalog has no keeper on a host {host!r}")
