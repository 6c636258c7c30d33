"""Watching a recovery reach its target or fail.

The server's silence is not success: a promoted server may stand later than was asked, so what was reached is
compared with the target. Its log says in words why replay ended; those words are translated here, with a quote.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import LiteralString

from seawall.errors import Cancelled, RecoveryFailed, ServerUnreachable, WalGap
from seawall.events import Advanced, Observer, silent
from seawall.model import RecoveryTarget, TargetAction
from seawall.postgres.connect import Session, translated
from seawall.postgres.control import read_control
from seawall.postgres.instance import Instance
from seawall.wal import Lsn, Segment

_POLL_SECONDS = 0.1
_SILENCE_SECONDS = 60.0
_QUOTED_LINES = 12
_NO_DATABASE = re.compile(r'database ".*" does not exist')
_STATE: LiteralString = """
    SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
           CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END
"""
_TIMELINE: LiteralString = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
_RECOVERING_TIMELINE: LiteralString = """
    SELECT greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                    (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
"""
_RESTORED = re.compile(r'restored log file "([0-9A-F]{24})" from archive')
_REDO_DONE = re.compile(r"redo done at ([0-9A-F]+/[0-9A-F]+)")
_STOPPED = re.compile(r"((?:recovery stopping|pausing at|recovery has paused|shutdown at recovery).*)")
_FATAL = re.compile(r"(?:FATAL|PANIC):\s+(.*)")
_LOG_LEVEL = re.compile(r"(?:FATAL|PANIC|DETAIL|HINT|ERROR|WARNING):|could not|redo done|recovery")
_ENDED_EARLY = (
    "recovery ended before configured recovery target was reached",
    "WAL ends before end of online backup",
    "WAL ends before consistent recovery point",
    "WAL ends before end time of backup",
)
# The words of xlogrecovery.c and xlog.c, and what the administrator can do about each.
_HINTS = (
    (re.compile("could not locate (a valid|required) checkpoint record|could not locate a valid checkpoint"),
     "The segment with the backup's first checkpoint did not come out of the archive. Verify the backup's WAL."),
    (re.compile("insufficient parameter settings"),
     "The source had higher settings than pg_control tells; pass them in `settings`, as the log's DETAIL says."),
    (re.compile("could not restore file .* from archive: "),
     "The archive client reported a storage error, which is not the end of WAL. Mend the storage and start again."),
    (re.compile("restore_command"), "No restore_command is set: run the restore again."),
    (re.compile("requested timeline .* is not (a child of|in) this server's history"),
     "The backup is not on the way to that timeline; choose another backup or timeline."),
    (re.compile("requested recovery stop point is before consistent recovery point"),
     "The target lies before the end of the backup; choose an older backup."),
    (re.compile("multiple recovery targets"), "Another file sets a recovery target as well; take it out."),
    (re.compile("could not (open|load|access) file .*\\.so|could not access file|could not load library"),
     "Install the extension's library on this host, in the source's version."),
    (re.compile("No space left on device"), "Free space at the destination, then start the server again."),
)  # fmt: skip


class Outcome(StrEnum):
    """How a recovery ended."""

    PROMOTED = "promoted"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where recovery stopped.

    `lsn` is the end of the last record replayed, `last_commit_at` the time of the last commit or abort replayed (None:
    none was), `timeline` the one now open, `stopped` what the log says about where it stopped.
    """

    outcome: Outcome
    lsn: Lsn
    last_commit_at: datetime | None
    timeline: int
    stopped: str
    seconds: float


def watch(
    instance: Instance,
    target: RecoveryTarget,
    *,
    action: TargetAction = TargetAction.PROMOTE,
    timeout: float = 4 * 3600.0,
    observe: Observer | None = None,
) -> Reached:
    """Follow a recovery that `instance.start(wait=False)` began until it ended.

    Args:
        instance: its superuser must be admitted (start it with `private=True`).
        target: for messages and for the comparison.
        action: as given to `configure`.
        timeout: seconds without any progress of replay until RecoveryFailed.
        observe: hears `Advanced("replay", …)`; cancelling stops the server.

    Raises:
        WalGap: WAL ended before the target or before consistency.
        RecoveryFailed: anything else that ended recovery, or it ended later than asked; the log is quoted.
        PrivilegeMissing: the server refuses the superuser.
        Cancelled: the observer asked to stop.
    """
    watcher = _Watcher(instance, action, timeout, observe or silent())
    try:
        reached = watcher.follow()
    except Cancelled:
        instance.stop("immediate")
        raise
    finally:
        watcher.close()
    refuse_later(target, reached)
    return reached


def wait_for_promotion(instance: Instance, *, observe: Observer) -> Reached:
    """Wait until somebody resumes a server that `watch` saw paused at its target, which promotes it.

    Args:
        instance: its superuser must be admitted.
        observe: cancelling stops the server, which stays unpromoted.

    Raises:
        RecoveryFailed: the server ended instead.
        Cancelled: the observer asked to stop.
    """
    watcher = _Watcher(instance, TargetAction.PAUSE, 0.0, observe)
    try:
        return watcher.wait_for_promotion()
    except Cancelled:
        instance.stop("fast")
        raise
    finally:
        watcher.close()


class _Watcher:
    def __init__(self, instance: Instance, action: TargetAction, timeout: float, observe: Observer) -> None:
        self._instance, self._action, self._observe = instance, action, observe
        self._timeout = timeout
        self._began = time.monotonic()
        self._session: Session | None = None
        self._replayed: Lsn | None = None
        self._segment_bytes = 0
        self._sign: object = None
        self._unheard_since: float | None = None
        self._past_pause = False
        self._moved = self._began

    def follow(self) -> Reached:
        while True:
            self._observe.checkpoint()
            reached = self._look()
            if reached is not None:
                return reached
            if time.monotonic() - self._moved > self._timeout:
                raise RecoveryFailed(
                    f"replay made no progress for {self._timeout:.0f} s\n{quote(self._instance.log_text())}"
                )
            time.sleep(_POLL_SECONDS)

    def wait_for_promotion(self) -> Reached:
        """Look on while somebody else decides what becomes of a paused server; no time is too long for that."""
        self._past_pause = True
        while (reached := self._look()) is None:
            self._observe.checkpoint()
            time.sleep(_POLL_SECONDS)
        return reached

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _look(self) -> Reached | None:
        # Asked in this order: a server seen as ended has written all that its log will say.
        if not self._instance.is_running():
            return self._ended()
        if not self._instance.is_ready():
            self._follow_log()
            return None
        try:
            reached = self._state()
        except ServerUnreachable as error:  # on its way up or down; the next look tells which
            self.close()
            self._refuse_silence(error)
            return None
        self._unheard_since = None
        return reached

    def _refuse_silence(self, error: ServerUnreachable) -> None:
        """A server that calls itself ready but answers nobody for that long will not do so later either."""
        now = time.monotonic()
        self._unheard_since = self._unheard_since or now
        if now - self._unheard_since > _SILENCE_SECONDS:
            raise error

    def _follow_log(self) -> None:
        """Before consistency nobody can be asked: the segments that came out of the archive tell how far it is."""
        text = self._instance.log_text()
        self._note(len(text))
        restored = _RESTORED.findall(text)
        if restored:
            self._segment_bytes = self._segment_bytes or read_control(self._instance.data_directory).segment_bytes
            self._advance(Segment.parse(restored[-1], self._segment_bytes).start)

    def _state(self) -> Reached | None:
        # What the server refuses (this role, this function) it refuses again: only its absence is worth another look.
        if self._session is None:
            self._session = self._connected()
        with translated("recovering server"):
            row = self._session.execute(_STATE).fetchone()
        if row is None:
            return None
        lsn = Lsn.parse(str(row[1])) if row[1] is not None else Lsn(0)
        self._advance(lsn)
        if not row[0]:
            return self._reached(Outcome.PROMOTED, lsn, row[2], self._number(_TIMELINE))
        if row[3] == "paused" and not self._past_pause:
            if self._action is not TargetAction.PAUSE:
                # Nobody asked for it: a setting that is lower than at the source pauses a hot standby.
                raise failure(self._instance.log_text())
            return self._reached(Outcome.PAUSED, lsn, row[2], self._number(_RECOVERING_TIMELINE))
        return None

    def _connected(self) -> Session:
        """Some administrators drop the database `postgres`."""
        try:
            return self._instance.connect()
        except ServerUnreachable as error:
            if not _NO_DATABASE.search(error.message):
                raise
            return self._instance.connect("template1")

    def _number(self, statement: LiteralString) -> int:
        with translated("recovering server"):
            row = self._session.execute(statement).fetchone() if self._session is not None else None
        return 0 if row is None else int(row[0])

    def _advance(self, lsn: Lsn) -> None:
        if self._replayed is None or self._replayed < lsn:
            if self._replayed is not None:
                self._observe.hear(Advanced("replay", lsn - self._replayed))
            self._replayed = lsn
            self._note(lsn)

    def _note(self, sign: object) -> None:
        """Anything that changed is progress: the log before consistency, the replayed position after it."""
        if sign != self._sign:
            self._sign, self._moved = sign, time.monotonic()

    def _ended(self) -> Reached:
        text = self._instance.log_text()
        if self._action is not TargetAction.SHUTDOWN or "shutdown at recovery target" not in text:
            raise failure(text)
        # The server wrote down up to where its files must be replayed again; nobody can be asked for more.
        control = read_control(self._instance.data_directory)
        lsn = max(control.minimum_recovery_lsn, control.checkpoint_lsn, self._replayed or Lsn(0))
        return self._reached(Outcome.SHUTDOWN, lsn, None, control.minimum_recovery_timeline or control.timeline)

    def _reached(self, outcome: Outcome, lsn: Lsn, moment: object, timeline: int) -> Reached:
        stopped = _STOPPED.findall(self._instance.log_text())
        at = moment.astimezone(UTC) if isinstance(moment, datetime) else None
        seconds = time.monotonic() - self._began
        return Reached(outcome, lsn, at, timeline, stopped[0].strip() if stopped else "", seconds)


def refuse_later(target: RecoveryTarget, reached: Reached) -> None:
    """Compare what was reached with a target in time or position.

    PostgreSQL says nothing when the backup itself already holds commits after a target in time: it becomes
    consistent later than was asked, and stops there.

    Raises:
        RecoveryFailed: a commit after the target was replayed, or replay ended before a position.
    """
    moment, lsn, at = target.moment, target.lsn, reached.last_commit_at
    hint = "Choose a backup that ended before the target."
    if moment is not None and at is not None and (at > moment or (at == moment and not target.inclusive)):
        raise RecoveryFailed(f"a commit of {at} was replayed, which is after the target {moment}", hint=hint)
    # After a shutdown only a lower bound of the position is known; the log's own words said that it was the target.
    known = reached.outcome is not Outcome.SHUTDOWN
    if lsn is not None and target.inclusive and known and reached.lsn < lsn:
        raise RecoveryFailed(f"replay ended at {reached.lsn}, before the target {lsn}", hint=hint)


def failure(log: str) -> RecoveryFailed | WalGap:
    """The error that a recovery's log stands for.

    Args:
        log: what the server said since its start; lc_messages must be C.
    """
    fatal = [line for line in _FATAL.findall(log) if "the database system is" not in line]
    first = fatal[0].strip() if fatal else "the server ended without a word"
    for words in _ENDED_EARLY:
        if words in log:
            return WalGap(f"{words}: {_where(log)}\n{quote(log)}")
    for pattern, hint in _HINTS:
        if pattern.search(log):
            return RecoveryFailed(f"{first}\n{quote(log)}", hint=hint)
    return RecoveryFailed(f"{first}\n{quote(log)}")


def _where(log: str) -> str:
    restored, done = _RESTORED.findall(log), _REDO_DONE.findall(log)
    place = f", replay ended at {done[-1]}" if done else ""
    if not restored:
        return f"no segment came out of the archive{place}"
    return f"the last segment that came out of the archive is {restored[-1]}{place}; the next one is missing"


def quote(log: str) -> str:
    """The lines of a log that matter for a failure, at most twelve."""
    lines = [line for line in log.splitlines() if _LOG_LEVEL.search(line)]
    return "\n".join(lines[-_QUOTED_LINES:])
