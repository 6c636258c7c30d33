"""Leases: at most one writer for a source, across hosts, with a time to live and a fencing token.

A lease is an object whose number is one more than the last one's. Creating it is atomic because objects are
never overwritten: of two hosts that try, one gets `ObjectExists`. A lease ends by a release, or when neither
it nor a renewal is younger than its time to live. Its number is the fencing token: a writer that was paused
longer than its time to live finds a higher number, and stops before its commit.

A writer that was killed need not be waited for on its own host: the lease says which process it was, and where that is
provably gone, the next one takes over at once. From everywhere else it looks like one that is slow.

Where lists lag behind (`Capabilities.consistent_list`), what a list does not show yet is asked for by name, from the
newest that it shows, one number after the other. That is exact as long as a list lags less than an hour: so long traces
of older leases stay there.

Not guaranteed: that a paused writer stops at once. It stops at its next `check`, and every commit checks.
Ages are taken from the storage's clock, so that the clocks of hosts need not agree.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

from seawall.errors import Damaged, LeaseHeld, LeaseLost, ObjectExists, ObjectMissing, SeawallError, StorageError
from seawall.process import identity, is_gone
from seawall.repository import documents
from seawall.repository.layout import SourceLayout
from seawall.storage.base import Stat, Storage

log = logging.getLogger(__name__)
DEFAULT_TTL = timedelta(minutes=5)
# Purpose of the lease under which retention lets backups go; the one that a backup waits for.
CLEANUP = "cleanup"
# Purpose of the lease under which copies are brought to a location; it lies in that location.
MIRROR = "mirror"
_POLL_SECONDS = 1.0
# Longer than any lease that is made: nobody who still renews one is overtaken because it became unreadable.
_UNKNOWN_TTL = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The newest lease of a source as it lies in the storage; a damaged one has no nonce."""

    token: int
    holder: str
    purpose: str
    ttl: timedelta
    renewed_at: datetime
    released: bool
    nonce: str = ""
    process: str = ""

    def runs_at(self, moment: datetime) -> bool:
        return not self.released and moment < self.renewed_at + self.ttl

    def binds_at(self, moment: datetime) -> bool:
        """Whether others must wait: it runs, and its writer is not provably gone."""
        return self.runs_at(moment) and not is_gone(self.process)


def newest(storage: Storage, layout: SourceLayout) -> LeaseRecord | None:
    """The lease with the highest token, or None if there never was one."""
    stats = {stat.name.removeprefix(layout.leases): stat for stat in storage.list(layout.leases)}
    tokens = [int(name[:12]) for name in stats if len(name) == len("000000000000.json") and name[:12].isdigit()]
    token = max(tokens, default=0)
    own = {f"{layout.leases}{name}": stat for name, stat in stats.items() if name.startswith(f"{token:012d}.")}
    if not storage.capabilities.consistent_list:
        token, own = _unlisted(storage, layout, token, own)
    if not token:
        return None
    holder, purpose, ttl, nonce, writer = _stated(storage, layout.lease(token))
    return LeaseRecord(
        token=token,
        holder=holder,
        purpose=purpose,
        ttl=ttl,
        renewed_at=max(stat.modified_at for stat in own.values()),
        released=layout.lease_end(token) in own,
        nonce=nonce,
        process=writer,
    )


def _unlisted(storage: Storage, layout: SourceLayout, token: int, own: dict[str, Stat]) -> tuple[int, dict[str, Stat]]:
    """The newest lease and its objects when those are asked for by name that a list may not show yet."""
    while (stat := _stat(storage, layout.lease(token + 1))) is not None:
        token, own = token + 1, {stat.name: stat}
    renewal = 1 + max((_renewal(name) for name in own), default=0)
    while token and (stat := _stat(storage, layout.lease_renewal(token, renewal))) is not None:
        own, renewal = {**own, stat.name: stat}, renewal + 1
    end = _stat(storage, layout.lease_end(token)) if token else None
    return token, own if end is None else {**own, end.name: end}


def _renewal(name: str) -> int:
    """The number of a renewal; 0 of a lease's other objects."""
    part = name.rsplit(".", 2)[1]
    return int(part[1:]) if part[:1] == "r" and part[1:].isdigit() else 0


def _stat(storage: Storage, name: str) -> Stat | None:
    try:
        return storage.stat(name)
    except ObjectMissing:
        return None


def _stated(storage: Storage, name: str) -> tuple[str, str, timedelta, str, str]:
    """Holder, purpose, time to live, nonce and process.

    Of a damaged lease what is safe: one that ran out must not stop all writers.
    """
    try:
        document = documents.get(storage, name)
        ttl = timedelta(seconds=float(document["ttl_seconds"]))
        own = str(document.get("nonce", "")), str(document.get("process", ""))
        return str(document["holder"]), str(document["purpose"]), ttl, *own
    except (Damaged, KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("%s is damaged and counts for %s: %s", name, _UNKNOWN_TTL, error)
        return "an unknown writer (its lease is damaged)", "an unknown purpose", _UNKNOWN_TTL, "", ""


class Lease:
    """One held lease; a context manager that renews in the background and releases at the end.

    Use `acquire` to get one.
    """

    def __init__(
        self, storage: Storage, layout: SourceLayout, token: int, *, holder: str, ttl: timedelta, nonce: str
    ) -> None:
        self.token = token
        self.holder = holder
        self._nonce = nonce
        self._storage = storage
        self._layout = layout
        self._ttl = ttl
        self._renewals = 0
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{layout.source}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def check(self) -> None:
        """Prove that this lease is still the newest one and still runs.

        Raises:
            LeaseLost: another writer took over, or renewing failed for longer than the time to live.
        """
        if self._lost:
            raise LeaseLost(self._lost)
        record = newest(self._storage, self._layout)
        if record is None or not self._is_ours(record):
            held = "is gone" if record is None else f"was taken over by {record.holder}"
            raise LeaseLost(f"the lease of {self._layout.source} {held}")
        if not record.runs_at(self._storage.now()):
            raise LeaseLost(f"the lease of {self._layout.source} ran out at {record.renewed_at + self._ttl}")

    def renew(self) -> None:
        """Extend the lease by its time to live from now.

        Raises:
            LeaseLost: another writer took over meanwhile.
        """
        record = newest(self._storage, self._layout)
        if record is None or not self._is_ours(record):
            self._lost = f"the lease of {self._layout.source} was taken over"
            raise LeaseLost(self._lost)
        self._renewals += 1
        name = self._layout.lease_renewal(self.token, self._renewals)
        documents.put(self._storage, name, {"holder": self.holder})

    def _is_ours(self, record: LeaseRecord) -> bool:
        # Where the newest lease was lost, the next writer gets its number again; only the nonce tells them apart.
        return record.token == self.token and record.nonce in (self._nonce, "")

    def _keep(self) -> None:
        # A third of the time to live leaves two more tries before the lease runs out.
        while not self._stop.wait(self._ttl.total_seconds() / 3):
            try:
                self.renew()
            except LeaseLost:
                return
            except SeawallError as error:
                log.warning("renewing the lease of %s failed: %s", self._layout.source, error)

    def _release(self) -> None:
        try:
            documents.put(self._storage, self._layout.lease_end(self.token), {"holder": self.holder})
        except StorageError as error:
            # Not released is safe: the lease runs out by itself.
            log.warning("releasing the lease of %s failed: %s", self._layout.source, error)


def acquire(
    storage: Storage,
    source: str,
    *,
    holder: str,
    purpose: str,
    ttl: timedelta = DEFAULT_TTL,
    patience: timedelta = timedelta(0),
    wait: Callable[[float], object] = time.sleep,
) -> Lease:
    """Become the one writer of a source.

    Args:
        source: its name.
        holder: who asks, shown to whoever is refused; host and process.
        purpose: what for, such as `backup`.
        ttl: how long the lease runs without a renewal.
        patience: how long to wait for a cleanup to end, by the storage's clock; for another backup nobody waits.
        wait: sleeps for so many seconds between two looks; raises when somebody asked to stop.

    Raises:
        LeaseHeld: another writer's lease still runs.
    """
    layout = SourceLayout(source)
    current = newest(storage, layout)
    until = storage.now() + patience
    while current is not None and current.purpose == CLEANUP and _runs_before(storage, current, until):
        wait(_POLL_SECONDS)
        current = newest(storage, layout)
    if current is not None and current.binds_at(storage.now()):
        until = current.renewed_at + current.ttl
        raise LeaseHeld(f"{source} is leased by {current.holder} for {current.purpose} until {until:%H:%M:%S %Z}")
    token = 1 if current is None else current.token + 1
    nonce = secrets.token_hex(8)
    try:
        documents.put(
            storage,
            layout.lease(token),
            {
                "holder": holder,
                "purpose": purpose,
                "ttl_seconds": ttl.total_seconds(),
                "token": token,
                "nonce": nonce,
                "process": identity(),
            },
        )
    except ObjectExists as error:
        raise LeaseHeld(f"{source} was leased by another writer at this moment") from error
    _forget_older(storage, layout, token)
    return Lease(storage, layout, token, holder=holder, ttl=ttl, nonce=nonce)


def _runs_before(storage: Storage, current: LeaseRecord, until: datetime) -> bool:
    now = storage.now()
    return now < until and current.binds_at(now)


def _forget_older(storage: Storage, layout: SourceLayout, token: int) -> None:
    """Remove the traces of leases long past; the two newest stay, so that numbers never start again."""
    kept_since = None if storage.capabilities.consistent_list else storage.now() - _UNKNOWN_TTL
    for stat in list(storage.list(layout.leases)):
        number = stat.name.removeprefix(layout.leases)[:12]
        if kept_since is not None and stat.modified_at > kept_since:
            # Whoever sees only an older list counts on from what it shows.
            continue
        if number.isdigit() and int(number) < token - 1:
            try:
                storage.delete(stat.name)
            except (ObjectMissing, StorageError) as error:
                log.debug("an old lease stays: %s", error)
