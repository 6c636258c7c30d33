"""Where a restore may write, and where it must not: looked at when planning and again before the first write.

A restore never overwrites what it does not know. A delta restore removes what does not belong, so it accepts only
a data directory or an interrupted restore, and only tablespace directories that this data directory points to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from seawall.errors import DestinationInUse, StorageDenied, StorageFull
from seawall.model import Head

MARKER = ".seawall-restore.json"
_RESERVE_BYTES = 64 * 1024 * 1024
Moved = tuple[int, str, Path]


def refuse_destination(destination: Path, *, delta: bool) -> None:
    """Stop before anything of value is overwritten.

    Raises:
        DestinationInUse: a server runs there; it is not empty and no delta restore; it is no directory, or a root.
        StorageDenied: it cannot be looked at.
    """
    try:
        _refuse_place(destination)
        if destination.exists():
            _refuse_content(destination, delta=delta)
    except OSError as error:
        raise StorageDenied(f"{error.filename or destination}: {error.strerror}") from error


def _refuse_place(place: Path) -> None:
    if not place.is_absolute() or place == Path(place.anchor) or ".." in place.parts:
        raise DestinationInUse(
            f"{place} cannot be a destination", hint="Name an absolute path of a new directory, without `..`."
        )
    if "\n" in str(place) or "\r" in str(place):
        raise DestinationInUse("a destination's path has no line breaks")
    if place.is_symlink():
        raise DestinationInUse(f"{place} is a link", hint="Name the directory that it points to.")
    if place.exists() and not place.is_dir():
        raise DestinationInUse(f"{place} is no directory")


def _refuse_content(destination: Path, *, delta: bool) -> None:
    pid = _server(destination)
    if pid is not None:
        raise DestinationInUse(
            f"a server with process id {pid} runs in {destination}",
            hint="Stop it. If that process is no PostgreSQL, remove the stale postmaster.pid.",
        )
    if not any(destination.iterdir()):
        return
    unfinished = (destination / MARKER).exists()
    if not delta:
        hint = "It holds an interrupted restore: go on with it by a delta restore." if unfinished else None
        raise DestinationInUse(f"{destination} is not empty", hint=hint)
    if not unfinished and not (destination / "PG_VERSION").exists():
        raise DestinationInUse(
            f"{destination} holds no data directory and no interrupted restore",
            hint="A delta restore removes what does not belong, so it works only on a data directory.",
        )


def _server(directory: Path) -> int | None:
    """The process id in postmaster.pid, if that process lives."""
    try:
        # A stand-alone backend notes its process id as a negative number (PostgreSQL miscinit.c, CreateLockFile).
        pid = abs(int((directory / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0]))
    except (FileNotFoundError, ValueError):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return pid
    return pid if pid else None


def refuse_repository(url: str, places: Iterable[Path]) -> None:
    """Stop where a restore would write into the repository it reads, or around it.

    Raises:
        DestinationInUse: one of the places is in the repository or the other way round.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return
    repository = Path(unquote(parts.path)).resolve()
    for place in places:
        if _overlap(place.resolve(), repository):
            raise DestinationInUse(
                f"{place} and the repository {repository} lie in each other", hint="Choose a place outside of it."
            )


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def tablespaces(head: Head, destination: Path, given: Mapping[str, Path], *, delta: bool) -> tuple[Moved, ...]:
    """Where each tablespace goes: (oid, original location, new location).

    Raises:
        DestinationInUse: `given` names one that the backup does not have.
    """
    unknown = set(given) - {tablespace.location for tablespace in head.tablespaces}
    if unknown:
        known = ", ".join(tablespace.location for tablespace in head.tablespaces) or "none"
        raise DestinationInUse(f"no tablespace lay at {', '.join(sorted(unknown))}; there are: {known}")
    # Beside the destination and never at the original place, where a live cluster may still have its own; only a
    # data directory that is repaired keeps those it points to.
    beside = destination.with_name(f"{destination.name}.tablespaces")
    found = []
    for space in head.tablespaces:
        own = _pointed_to(destination, space.oid) if delta else None
        found.append((space.oid, space.location, given.get(space.location, own or beside / str(space.oid))))
    return tuple(found)


def _pointed_to(destination: Path, oid: int) -> Path | None:
    link = destination / "pg_tblspc" / str(oid)
    return link.readlink() if link.is_symlink() and link.readlink().is_absolute() else None


def refuse_tablespaces(moved: Sequence[Moved], destination: Path, *, delta: bool) -> None:
    """Stop where a tablespace would overwrite something, or lie where another one or the data directory lies.

    Raises:
        DestinationInUse: it would.
        StorageDenied: a place cannot be looked at.
    """
    taken = [destination]
    for oid, _, place in moved:
        try:
            _refuse_place(place)
            own = delta and _pointed_to(destination, oid) == place
            if not own and place.exists() and any(place.iterdir()):
                raise DestinationInUse(
                    f"tablespace directory {place} is not empty", hint="Map the tablespace to an empty directory."
                )
            if own and place.exists():
                _refuse_foreign(place)
        except OSError as error:
            raise StorageDenied(f"{error.filename or place}: {error.strerror}") from error
        for other in taken:
            if _overlap(place.resolve(), other.resolve()):
                raise DestinationInUse(f"{place} and {other} lie in each other", hint="Map it to a place of its own.")
        taken.append(place)


def _refuse_foreign(place: Path) -> None:
    """A delta restore removes what does not belong; a tablespace only ever holds `PG_…` directories."""
    strangers = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("PG_"))
    if strangers:
        raise DestinationInUse(f"tablespace directory {place} holds other things: {', '.join(strangers[:5])}")


def refuse_full(destination: Path, head: Head, *, delta: bool) -> None:
    """Stop when the file system of the destination is too small.

    Raises:
        StorageFull: it is; with the numbers.
    """
    place = destination
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    free, needed = status.f_bavail * status.f_frsize, head.plain_bytes + _RESERVE_BYTES
    held = _held_bytes(destination) if delta and free < needed else 0
    if free + held < needed:
        raise StorageFull(
            f"{place} has {free} bytes free, the restore needs {needed - held} (64 MiB of it for WAL)",
            hint="Free space, or choose another place.",
        )


def _held_bytes(directory: Path) -> int:
    """Bytes that a delta restore keeps or replaces."""
    walked = os.walk(directory, followlinks=False)
    return sum(os.lstat(f"{folder}/{name}").st_size for folder, _, files in walked for name in files)
