"""How much lies in a location, measured by listing it part by part, so that a measurement can stop and go on.

A part is what lies below one beginning of names: a day of backups, a stretch of WAL, any other folder. What was counted
is kept in a file on this host; a measurement that is stopped, or out of time, goes on with the parts that are left.

Not guaranteed: one moment for all parts. What comes or goes meanwhile may be counted or not.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from seawall.events import Observer
from seawall.storage.base import Stat, Storage
from seawall.storage.versions import hidden_bytes

log = logging.getLogger(__name__)

# What was counted longer ago is counted again.
KEPT_FOR = timedelta(hours=24)
# What was written within this is what a month costs in requests.
RECENT = timedelta(days=30)
_LABEL_DAY = len("20260101")
# Of a segment's name, so that a part has at most 4,096 segments and a few pages of a listing.
_WAL_STRETCH = 15
_LOOK_EVERY = 1000

Classify: TypeAlias = Callable[[Stat], str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies in a location.

    Args:
        measured_at: when the measurement began.
        recent_objects, recent_bytes: of these, what was written within 30 days.
        by_class: bytes by storage class.
        hidden_bytes: beside these, in versions that no list shows.
    """

    measured_at: datetime
    objects: int = 0
    used_bytes: int = 0
    recent_objects: int = 0
    recent_bytes: int = 0
    by_class: Mapping[str, int] = field(default_factory=dict)
    hidden_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """What is stored, seen or not: what a quota counts."""
        return self.used_bytes + self.hidden_bytes


@dataclass(frozen=True, slots=True)
class Part:
    """Names with one beginning.

    Args:
        whole: whether the beginning is a whole name or folder, so that `ab` is not counted below `a`.
    """

    prefix: str
    whole: bool

    def holds(self, name: str) -> bool:
        return not self.whole or name == self.prefix or name.startswith(f"{self.prefix}/")


@dataclass(frozen=True, slots=True)
class Count:
    """What one part holds."""

    objects: int
    used_bytes: int
    recent_objects: int
    recent_bytes: int
    by_class: Mapping[str, int]


def parts_of(storage: Storage) -> tuple[Part, ...]:
    """The parts of a repository, from a few listings of folders."""
    return tuple(_parts(storage))


def _parts(storage: Storage) -> Iterator[Part]:
    for top in storage.children(""):
        if top != "sources":
            yield Part(top, whole=True)
            continue
        for source in storage.children("sources/"):
            for area in storage.children(f"sources/{source}/"):
                yield from _of_area(storage, f"sources/{source}/{area}")


def _of_area(storage: Storage, folder: str) -> Iterator[Part]:
    area = folder.rpartition("/")[2]
    if area == "backups":
        days = {label[:_LABEL_DAY] for label in storage.children(f"{folder}/")}
        yield from (Part(f"{folder}/{day}", whole=False) for day in sorted(days))
    elif area == "wal":
        for timeline in storage.children(f"{folder}/"):
            stretches = {log[:_WAL_STRETCH] for log in storage.children(f"{folder}/{timeline}/")}
            yield from (Part(f"{folder}/{timeline}/{stretch}", whole=False) for stretch in sorted(stretches))
    else:
        yield Part(folder, whole=True)


def measure(
    storage: Storage,
    classify: Classify,
    *,
    memory: Path | None = None,
    until: float | None = None,
    now: datetime,
    observe: Observer,
) -> Usage | None:
    """Count what lies in a location; None if the time was over before all of it was counted.

    Args:
        classify: says in which storage class an object lies.
        memory: where an unfinished measurement is kept for the next run; nothing is kept without it.
        until: of the monotonic clock, in seconds; None for however long it takes.

    Raises:
        StorageError: the location does not answer; what was counted is kept.
        Cancelled: on request; what was counted is kept.
    """
    begun_at, done = _recall(memory, now)
    parts = parts_of(storage)
    try:
        for part in parts:
            if part.prefix in done:
                continue
            if until is not None and time.monotonic() > until:
                break
            done[part.prefix] = _counted(storage, part, classify, now, observe)
    finally:
        # Also when it was stopped or the storage went away: what was counted need not be counted again.
        finished = all(part.prefix in done for part in parts)
        _forget(memory) if finished else _keep(memory, begun_at, done)
    if not finished:
        return None
    return replace(total(begun_at, (done[part.prefix] for part in parts)), hidden_bytes=hidden_bytes(storage))


def total(measured_at: datetime, counts: Iterable[Count]) -> Usage:
    """All parts together. Pure."""
    found = list(counts)
    classes: Counter[str] = Counter()
    for count in found:
        classes.update(count.by_class)
    return Usage(
        measured_at,
        sum(count.objects for count in found),
        sum(count.used_bytes for count in found),
        sum(count.recent_objects for count in found),
        sum(count.recent_bytes for count in found),
        dict(classes),
    )


def _counted(storage: Storage, part: Part, classify: Classify, now: datetime, observe: Observer) -> Count:
    objects = used = recent_objects = recent_bytes = 0
    classes: Counter[str] = Counter()
    for stat in storage.list(part.prefix):
        if not part.holds(stat.name):
            continue
        objects += 1
        used += stat.size_bytes
        classes[classify(stat)] += stat.size_bytes
        if stat.modified_at > now - RECENT:
            recent_objects += 1
            recent_bytes += stat.size_bytes
        if objects % _LOOK_EVERY == 0:
            observe.checkpoint()
    return Count(objects, used, recent_objects, recent_bytes, dict(classes))


def _recall(memory: Path | None, now: datetime) -> tuple[datetime, dict[str, Count]]:
    """What an unfinished measurement counted; nothing if there is none, it is old, or it cannot be read."""
    if memory is None:
        return now, {}
    try:
        document: dict[str, Any] = json.loads(memory.read_text(encoding="utf-8"))
        begun_at = datetime.fromisoformat(document["begun_at"])
        counts = {prefix: Count(**count) for prefix, count in document["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # It spares time and nothing else: whatever is wrong with it, counting anew is right.
        return now, {}
    return (begun_at, counts) if timedelta(0) <= now - begun_at < KEPT_FOR else (now, {})


def _keep(memory: Path | None, begun_at: datetime, done: Mapping[str, Count]) -> None:
    if memory is None:
        return
    parts = {prefix: asdict(count) for prefix, count in done.items()}
    draft = memory.with_name(f"{memory.name}.new")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"begun_at": begun_at.isoformat(), "parts": parts}), encoding="utf-8")
        draft.replace(memory)
    except OSError as error:
        # The next measurement begins anew, which costs time only.
        log.warning("an unfinished measurement cannot be kept in %s: %s", memory, error.strerror)


def _forget(memory: Path | None) -> None:
    if memory is not None:
        with suppress(OSError):
            memory.unlink()
