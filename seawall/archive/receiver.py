"""The streaming receiver: WAL leaves the server as it is written, through a replication slot, into the repository.

    server ─ replication ─▶ spool/received/<segment>.open ─▶ <segment> ─ shipper ─▶ repository
                                        └── every few seconds: the open segment's tail ──┘

The slot holds WAL on the server until it is durable *in the spool on this host*: that is what is reported as
flushed, so the receiver can be a synchronous standby (RPO 0 against the loss of the server). The repository has
complete segments as fast as they are shipped, and of the open one what is at most `tail_seconds` old.

Not guaranteed: that what only this host's spool holds survives the loss of this host together with the server.
A receiver that finds its spool lost asks the server for everything behind the repository's last segment.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from seawall.archive import spool as spooling
from seawall.archive.incoming import Incoming
from seawall.archive.intake import Intake, refuse_superseded
from seawall.archive.store import Area
from seawall.errors import (
    Cancelled,
    ClusterError,
    ClusterMismatch,
    PrivilegeMissing,
    SeawallError,
    ServerUnreachable,
    StorageError,
    SupersededTimeline,
    UsageError,
    WalConflict,
    WalGap,
)
from seawall.events import Noticed, Observer, silent
from seawall.model import ClusterIdentity
from seawall.postgres.connect import connect
from seawall.postgres.walsender import Slot, Switch, Walsender
from seawall.settings import SourceSettings
from seawall.wal import DEFAULT_SEGMENT_BYTES, Lsn, Segment, TimelineHistory

if TYPE_CHECKING:
    from seawall.repository import Sealing

_log = logging.getLogger(__name__)
RECEIVED = "received"
_FATAL = (WalGap, WalConflict, SupersededTimeline, ClusterMismatch, UsageError)
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_REPORT_EVERY_SECONDS = 10.0
_IDLE_MILLISECONDS = 200
_WAL, _KEEPALIVE = ord("w"), ord("k")
_START = struct.Struct("!Q")
_WAL_HEADER_BYTES = 25
_REPLY_WANTED = 17


@dataclass(frozen=True, slots=True)
class ReceiverStatus:
    """How far a receiver is; `stored` is in the repository, `waiting` counts files in the spool."""

    connected: bool
    timeline: int
    received: Lsn
    flushed: Lsn
    stored: Lsn
    waiting: int
    last_error: str


def starting_place(
    local: Segment | None, stored: Segment | None, slot: Slot, history: TimelineHistory, segment_bytes: int
) -> Segment:
    """The segment from whose beginning to stream.

    Args:
        local: where the spool says to go on.
        stored: the newest segment of the repository on this server's ancestry.
        slot: what the server keeps.
        history: of the server's timeline.

    Raises:
        SupersededTimeline: this host received WAL of a timeline that the server does not descend from.
        WalGap: nothing says where to begin, because the slot lost its WAL.
    """
    if local is not None:
        return _on_ancestry(local, history)
    if stored is not None:
        return _on_ancestry(stored.next(), history)
    if slot.restart is None:
        raise WalGap("the slot keeps no WAL any more", hint="Drop it, create it again, and take a full backup.")
    return Segment.containing(slot.restart, slot.timeline or history.timeline, segment_bytes)


def _on_ancestry(wanted: Segment, history: TimelineHistory) -> Segment:
    """`wanted`, or where the server's ancestry left that timeline before it."""
    if not history.contains(wanted.timeline):
        raise SupersededTimeline(
            f"WAL of timeline {wanted.timeline} was received, but the server on timeline {history.timeline} does not "
            "descend from it",
            hint="Find out which server is the true primary; then give the other one a source of its own.",
        )
    left = history.switched_from(wanted.timeline)
    if left is not None and left < wanted.start:
        return Segment.containing(left, history.timeline_at(left), wanted.segment_bytes)
    return wanted


class Receiver:
    """Streams one source's WAL; one works in a spool at a time.

    Args:
        source: how to connect, and which slot.
        area: the source's part of the repository.
        sealing: how WAL is sealed.
        spool: this source's spool on this host; the receiver works in `spool/received`.
        observe: hears `Advanced("archive", …)` for shipped files and `Noticed` for trouble; its `cancel` stops.
        clock: the time, aware, for identity records.
        tail_seconds: how old the open segment's tail in the repository may get.
        tail_look_seconds: how often it is looked whether a tail that needs no change is still there.
        create_slot: make the slot if it is missing.
        accept_gap: go on behind WAL that is lost (a full backup must follow) instead of stopping with `WalGap`.
        workers: segments shipped at once.
        spool_limit_bytes: with more than that waiting, receiving pauses and the server keeps WAL.
        application_name: as `synchronous_standby_names` knows it; the slot's name when empty.
    """

    def __init__(
        self,
        source: SourceSettings,
        area: Area,
        sealing: Sealing,
        spool: Path,
        *,
        observe: Observer | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tail_seconds: float = 5.0,
        tail_look_seconds: float = 60.0,
        create_slot: bool = False,
        accept_gap: bool = False,
        workers: int = 2,
        spool_limit_bytes: int = 4 * 1024 * 1024 * 1024,
        application_name: str = "",
    ) -> None:
        self._source = source
        self._area = area
        self._observe = observe or silent()
        self._directory = spool / RECEIVED
        self._tail_seconds = tail_seconds
        self._tail_look_seconds = tail_look_seconds
        self._create_slot = create_slot
        self._accept_gap = accept_gap
        self._limit_bytes = spool_limit_bytes
        self._application_name = application_name or source.slot_name
        self._intake = Intake(area, sealing, observe=self._observe, clock=clock)
        self._shipper = spooling.Shipper(
            self._directory, self._intake.take, workers=workers, observe=self._observe, shipped=self._was_shipped
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: SeawallError | None = None
        self._last_error = ""
        self._connected = False
        self._skip_gap = False
        self._timeline = 0
        self._segment_bytes = DEFAULT_SEGMENT_BYTES
        self._incoming: Incoming | None = None
        self._completed = 0
        self._tailed: set[str] = set()
        self._looked_at = 0.0
        self._stored = Lsn(0)
        self._reported_at = 0.0

    # ---- life

    def start(self) -> None:
        """Receive in a thread of its own; `stop` raises what ended it."""
        self._thread = threading.Thread(target=self._run_quietly, name="archive-receiver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End within seconds: what was received is durable in the spool, what is in flight is finished.

        Raises:
            SeawallError: what had ended the receiver before.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._failure is not None:
                raise self._failure

    def _run_quietly(self) -> None:
        try:
            self.run()
        except SeawallError as error:
            self._failure = error
            self._last_error = error.message
            self._observe.hear(Noticed("critical", error.code, error.message))

    def run(self) -> None:
        """Receive until stopped, connecting again whenever the server or the network fails.

        Raises:
            WalGap: WAL was lost; a full backup is needed.
            WalConflict, SupersededTimeline, ClusterMismatch: this is not the server it should be.
            PrivilegeMissing, UsageError: the server never admitted this user, or there is no slot.
            LeaseHeld: another receiver works in this spool.
        """
        spooling.prepare(self._directory)
        tails = threading.Thread(target=self._send_tails, name="archive-tails", daemon=True)
        with ExitStack() as ending:
            ending.callback(os.close, spooling.lock(self._directory))
            ending.callback(self._intake.close)
            ending.callback(self._shipper.stop)
            ending.callback(self._close_incoming)
            self._shipper.start()
            tails.start()
            ending.callback(tails.join)
            ending.callback(self._stop.set)
            self._keep_connected()

    def _close_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()

    def status(self) -> ReceiverStatus:
        incoming = self._incoming
        return ReceiverStatus(
            connected=self._connected,
            timeline=self._timeline,
            received=incoming.received if incoming else Lsn(0),
            flushed=incoming.flushed if incoming else Lsn(0),
            stored=self._stored,
            waiting=len(self._shipper.waiting()),
            last_error=self._last_error,
        )

    def _stopping(self) -> bool:
        return self._stop.is_set() or self._observe.cancel.is_set()

    def _keep_connected(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping():
            began_at = time.monotonic()
            try:
                self._session()
            except Cancelled:
                return
            except WalGap as error:
                self._go_on_behind(error)
            except PrivilegeMissing as error:
                if not self._timeline:
                    raise
                # It was admitted before: a password may be being changed. Ending now would only let WAL pile up.
                self._trouble(error)
            except _FATAL:
                raise
            except SeawallError as error:
                self._trouble(error)
            finally:
                self._connected = False
            # Only a session that worked for a while earns the short pause again.
            pause = _FIRST_PAUSE_SECONDS if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS else pause
            self._stop.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _trouble(self, error: SeawallError) -> None:
        if error.message != self._last_error:
            self._observe.hear(Noticed("high", error.code, f"{error.message}; it is tried again"))
        self._last_error = error.message

    def _go_on_behind(self, gap: WalGap) -> None:
        if not self._accept_gap or self._skip_gap:
            raise gap
        self._observe.hear(Noticed("critical", gap.code, f"{gap.message}; going on behind the gap"))
        self._skip_gap = True

    # ---- one connection

    def _session(self) -> None:
        session = connect(self._source, replication=True, application_name=self._application_name)
        sender = Walsender(session, self._source.name, self._stopping)
        try:
            place: Segment | None = self._place(sender)
            while place is not None:
                place = self._follow(sender, place)
        except psycopg.Error as error:
            raise sender.lost(error) from error
        finally:
            sender.close()

    def _place(self, sender: Walsender) -> Segment:
        """Prove that this is the right server, and decide where to go on."""
        found = sender.identify()
        self._intake.identify(ClusterIdentity(found.system_identifier, sender.major_version, (found.timeline,)))
        self._segment_bytes = sender.segment_bytes()
        history, _content = sender.history(found.timeline)
        self._refuse_zombie(found.timeline, found.position)
        slot = self._slot(sender)
        if self._incoming is None:
            self._incoming = Incoming(self._directory, self._segment_bytes, self._shipper.nudge)
        if self._skip_gap:
            self._skip_gap = False
            place = starting_place(None, None, slot, history, self._segment_bytes)
        else:
            local = self._incoming.resume_at()
            stored = None if local else self._newest_stored(history)
            place = starting_place(local, stored, slot, history, self._segment_bytes)
        if place.timeline == found.timeline and found.position < place.start:
            raise ClusterError(
                f"source {self._source.name!r}: the server is at {found.position} of timeline {found.timeline}, but "
                f"WAL up to {place.start} was received already",
                hint="A standby may still get there. A primary has lost WAL: find out which server is the true one.",
            )
        self._keep_histories(sender, history)
        self._tailed.add(place.name)
        return place

    def _refuse_zombie(self, timeline: int, position: Lsn) -> None:
        try:
            histories = self._intake.histories(fresh=True)
        except StorageError as error:
            # An outage of the storage must not stop the receiving: each segment is looked at again when it is stored.
            _log.warning("timelines are not known at the moment: %s", error)
            return
        segment = Segment.ending_at(position, timeline, self._segment_bytes)
        refuse_superseded(segment, position, histories)

    def _slot(self, sender: Walsender) -> Slot:
        name = self._source.slot_name
        slot = sender.slot(name)
        if slot is not None and slot.restart is None and self._skip_gap:
            sender.drop_slot(name)
            slot = None
        if slot is None and (self._create_slot or self._skip_gap):
            sender.create_slot(name)
            slot = sender.slot(name)
        if slot is None:
            raise UsageError(
                f"source {self._source.name!r} has no slot {name!r}", hint="Let the receiver create it (--create-slot)."
            )
        if slot.restart is None:
            raise WalGap(
                f"slot {name!r} was invalidated: the server removed WAL that was not received yet",
                hint="Raise max_slot_wal_keep_size, start again with --accept-gap, and take a full backup.",
            )
        return slot

    def _newest_stored(self, history: TimelineHistory) -> Segment | None:
        segments = (Segment.parse(name, self._segment_bytes) for name in self._area.wal.names())
        return max((segment for segment in segments if history.contains(segment.timeline)), default=None)

    def _keep_histories(self, sender: Walsender, history: TimelineHistory) -> None:
        """Store the history of every ancestor too: recovery looks for them one by one and stops at a missing one."""
        timelines = [branch.timeline for branch in history.branches] + [history.timeline]
        for timeline in timelines:
            if timeline == 1:
                continue
            try:
                _parsed, content = sender.history(timeline)
            except (WalGap, ClusterError) as error:
                if timeline == history.timeline:
                    raise
                _log.warning("the server has no history of timeline %d: %s", timeline, error)
                continue
            self._spooled_to().keep_history(timeline, content)
        self._shipper.nudge()

    def _spooled_to(self) -> Incoming:
        if self._incoming is None:
            raise UsageError("nothing was received yet", hint="This is a defect.")
        return self._incoming

    def _follow(self, sender: Walsender, place: Segment) -> Segment | None:
        """Stream one timeline to its end; where the next one begins, or None when asked to stop."""
        incoming = self._spooled_to()
        switch = sender.start(self._source.slot_name, place.start, place.timeline)
        self._timeline = place.timeline
        self._connected = True
        self._last_error = ""
        if switch is None:
            incoming.begin(place.start, place.timeline)
            switch = self._stream(sender, incoming)
            if switch is None:
                return None
            incoming.leave()
        history, _content = sender.history(switch.timeline)
        self._keep_histories(sender, history)
        _log.info("timeline %d ended at %s, following %d", place.timeline, switch.position, switch.timeline)
        return Segment.containing(switch.position, switch.timeline, self._segment_bytes)

    def _stream(self, sender: Walsender, incoming: Incoming) -> Switch | None:
        pgconn = sender.pgconn
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        self._reported_at = 0.0
        looked = False
        while True:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                self._handle(sender, incoming, data)
                looked = False
            elif count < 0:
                return self._ended(sender.finish())
            elif not looked or poll.poll(0):
                # Read before believing the socket: bytes may already wait in the TLS layer, where poll sees nothing.
                pgconn.consume_input()
                looked = True
            elif self._rest(sender, incoming):
                sender.end_copy()
                return None
            else:
                poll.poll(_IDLE_MILLISECONDS)
                looked = False

    def _handle(self, sender: Walsender, incoming: Incoming, data: memoryview) -> None:
        """One message: WAL, or the server asking whether somebody is there."""
        if data[0] == _WAL:
            (start,) = _START.unpack_from(data, 1)
            if incoming.write(start, data[_WAL_HEADER_BYTES:]):
                self._completed += 1
                self._report(sender, incoming)
                self._hold_back(sender, incoming)
        elif data[0] == _KEEPALIVE and data[_REPLY_WANTED]:
            self._report(sender, incoming)

    def _rest(self, sender: Walsender, incoming: Incoming) -> bool:
        """Nothing is pending: make durable what came and tell the server at once; true when it is time to stop."""
        if incoming.flushed != incoming.received:
            incoming.sync()
            self._report(sender, incoming)
        elif time.monotonic() - self._reported_at > _REPORT_EVERY_SECONDS:
            self._report(sender, incoming)
        self._refuse_failure()
        return self._stopping()

    def _report(self, sender: Walsender, incoming: Incoming) -> None:
        sender.report(incoming.received, incoming.flushed)
        self._reported_at = time.monotonic()

    def _refuse_failure(self) -> None:
        failure = self._shipper.failure() or self._failure
        if failure is not None:
            raise failure

    def _hold_back(self, sender: Walsender, incoming: Incoming) -> None:
        """Read no further while too much waits: the server then keeps WAL, and `max_slot_wal_keep_size` decides."""
        self._refuse_failure()
        told = False
        while (len(self._shipper.waiting()) + incoming.closing()) * self._segment_bytes > self._limit_bytes:
            if self._stopping():
                raise Cancelled("stopped on request")
            if not told:
                self._observe.hear(
                    Noticed("high", "spool-full", f"{self._directory} is full; the server keeps WAL now")
                )
                told = True
            incoming.sync()
            self._report(sender, incoming)
            self._refuse_failure()
            self._stop.wait(0.5)

    def _ended(self, switch: Switch | None) -> Switch:
        if switch is None:
            raise ServerUnreachable(f"source {self._source.name!r}: the server ended the stream")
        return switch

    # ---- the open segment's tail

    def _send_tails(self) -> None:
        """Every few seconds, store what is durable of the open segment, unless segments complete faster anyway."""
        sent, completed = Lsn(0), 0
        while not self._stop.wait(self._tail_seconds):
            fast = self._completed - completed >= 2
            completed = self._completed
            if fast or self._incoming is None:
                continue
            try:
                sent = self._send_tail(self._incoming, sent)
            except _FATAL as error:
                self._failure = error
            except SeawallError as error:
                self._trouble(error)

    def _send_tail(self, incoming: Incoming, sent: Lsn) -> Lsn:
        snapshot = incoming.snapshot()
        if snapshot is None:
            return sent
        try:
            if snapshot.end == sent and not self._is_tail_lost(snapshot.segment, sent):
                return sent
            data = os.pread(snapshot.descriptor, snapshot.end - snapshot.segment.start, 0)
        finally:
            os.close(snapshot.descriptor)
        refuse_superseded(snapshot.segment, snapshot.end, self._intake.histories())
        self._tailed.add(snapshot.segment.name)
        self._area.wal.put_tail(snapshot.segment, snapshot.end, data, self._intake.sealing)
        self._stored, self._looked_at = max(self._stored, snapshot.end), time.monotonic()
        # The segment may have been completed, shipped and cleaned up behind while its tail was on the way.
        if incoming.flushed >= snapshot.segment.end:
            self._area.wal.forget_tails(snapshot.segment)
        return snapshot.end

    def _is_tail_lost(self, segment: Segment, end: Lsn) -> bool:
        """Whether the tail that was stored is gone: nothing else would tell, as long as nothing is written."""
        if time.monotonic() - self._looked_at < self._tail_look_seconds:
            return False
        self._looked_at = time.monotonic()
        if (
            end.value <= segment.start.value
            or end in self._area.wal.tails(segment)
            or self._area.wal.stored(segment.name)
        ):
            return False
        text = f"the tail of {segment.name} is gone from the repository; it is stored again"
        self._observe.hear(Noticed("medium", "tail-lost", text))
        return True

    def _was_shipped(self, name: str) -> None:
        if len(name) != 24:
            return
        segment = Segment.parse(name, self._segment_bytes)
        self._stored = max(self._stored, segment.end)
        if name in self._tailed:
            self._tailed.discard(name)
            try:
                self._area.wal.forget_tails(segment)
            except SeawallError as error:
                _log.warning("tails of %s stay until the next cleaning: %s", name, error)
