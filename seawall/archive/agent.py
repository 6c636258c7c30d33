"""The agent: a long-lived helper beside a cluster that answers its archive_command and restore_command.

    PostgreSQL ─ client push ─▶ socket ─▶ look-ahead ─▶ intake ─▶ repository
                     └─(no agent)─▶ spool ─▶ shipper ─────┘
    PostgreSQL ◀─ client get ─── socket ◀─ prefetcher ◀────────── repository

It needs no connection to the server. Several may run for one repository; one runs on each socket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from seawall.archive import spool as spooling
from seawall.archive.intake import Intake
from seawall.archive.lookahead import Lookahead
from seawall.archive.prefetch import Prefetcher
from seawall.archive.server import Request, Server
from seawall.archive.store import Area
from seawall.errors import KeyMissing, UsageError
from seawall.events import Observer, silent

if TYPE_CHECKING:
    from seawall.keys import KeyRing
    from seawall.repository import Sealing

PUSHED, FETCHED = "pushed", "fetched"


def _now() -> datetime:
    return datetime.now(UTC)


class Agent:
    """Answers archive and restore commands while it is started; a context manager, too.

    Args:
        area: the source's part of the repository.
        sealing: how new WAL is sealed; None for an agent that only gets.
        ring: opens stored WAL; None for an agent that only takes.
        spool: this source's spool on this host; the client spools into `spool/pushed`.
        socket_path: where it listens.
        workers: files in flight in each direction.
        observe: hears what happens; its `cancel` ends `run_forever`.
        data_directory: of the cluster, for checking paths and looking ahead; None where it is not at hand.
        accounts: user ids that may ask, besides root, this process's own and the owner of the data directory.
        depth: segments fetched ahead of recovery.
        ahead: ready files shipped ahead of the asking.
    """

    def __init__(
        self,
        area: Area,
        sealing: Sealing | None,
        ring: KeyRing | None,
        spool: Path,
        socket_path: Path,
        *,
        workers: int = 2,
        observe: Observer | None = None,
        data_directory: Path | None = None,
        accounts: frozenset[int] = frozenset(),
        depth: int = 16,
        ahead: int = 64,
        gap_patience_seconds: float = 10.0,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.socket_path = socket_path
        self.spool = spool
        self._observe = observe or silent()
        self._owner = None if data_directory is None else data_directory.stat().st_uid
        self._lookahead: Lookahead | None = None
        self._shipper: spooling.Shipper | None = None
        self._prefetcher: Prefetcher | None = None
        self._intake: Intake | None = None
        if sealing is not None:
            self._intake = intake = Intake(area, sealing, observe=self._observe, clock=clock)
            self._lookahead = Lookahead(intake, data_directory, workers=workers, ahead=ahead, observe=self._observe)
            self._shipper = spooling.Shipper(spool / PUSHED, intake.take, workers=workers, observe=self._observe)
        if ring is not None:
            self._prefetcher = Prefetcher(
                area.wal,
                ring,
                spool / FETCHED,
                workers=workers,
                depth=depth,
                observe=self._observe,
                gap_patience_seconds=gap_patience_seconds,
            )
        owners = frozenset() if self._owner is None else frozenset({self._owner})
        self._server = Server(socket_path, self._answer, accounts=accounts | owners)

    def start(self) -> None:
        """Begin to answer, and to ship what was spooled while no agent ran.

        Raises:
            LeaseHeld: another agent listens on the socket.
            StorageError: spool or socket cannot be made.
        """
        if self._shipper is not None:
            spooling.prepare(self.spool / PUSHED, owner=self._owner, mode=0o770)
        if self._prefetcher is not None:
            spooling.prepare(self.spool / FETCHED)
        # The socket first: its lock is what keeps two agents from shipping one spool.
        self._server.start()
        if self._shipper is not None:
            self._shipper.start()
        if self._lookahead is not None:
            self._lookahead.start()

    def stop(self) -> None:
        """Stop answering, finish what is in flight; the rest stays with PostgreSQL or in the spool."""
        self._server.stop()
        for part in (self._lookahead, self._shipper, self._prefetcher):
            if part is not None:
                part.stop()
        if self._intake is not None:
            self._intake.close()

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run_forever(self, stop: threading.Event | None = None) -> None:
        """Answer until `stop` is set or the observer is cancelled."""
        with self:
            while not self._observe.cancel.wait(0.5) and not (stop is not None and stop.is_set()):
                pass

    def spooled(self) -> tuple[str, ...]:
        """Names that wait in the spool."""
        return tuple(self._shipper.waiting()) if self._shipper is not None else ()

    def _answer(self, request: Request) -> int | None:
        match request:
            case Request("push", (path,), int(descriptor)):
                if self._lookahead is None:
                    raise UsageError("this agent only gets", hint="Give it a sealing to let it take WAL.")
                self._lookahead.push(path, descriptor)
                return None
            case Request("get", (name,), None):
                if self._prefetcher is None:
                    raise KeyMissing("this agent only takes WAL", hint="Give it a key ring that opens stored WAL.")
                return self._prefetcher.open(name)
            case Request("ping", (), None):
                return None
        raise UsageError(f"the agent does not understand {request.verb!r}", hint="Are client and agent of one version?")
