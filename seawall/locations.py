"""Storage locations: opening them, and proving that one can be used before anything relies on it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from seawall import throttle
from seawall.capacity import Capacity
from seawall.errors import (
    Cancelled,
    ClusterMismatch,
    Damaged,
    NotARepository,
    ObjectExists,
    SeawallError,
    SettingsError,
    StorageDenied,
    StorageError,
)
from seawall.events import Noticed, Observer
from seawall.keys import KeyRing
from seawall.nearest import Copy, Nearest, telling
from seawall.repository import Repository
from seawall.repository.evidence import Evidence
from seawall.settings import PRIMARY, LocationRole, LocationSettings, RepositorySettings, Settings
from seawall.storage import open_storage
from seawall.storage.access import service_of
from seawall.storage.base import Capabilities, Storage, read
from seawall.storage.local import folder_of
from seawall.storage.wrappers import cancellable_sleep
from seawall.usage import Usage

_PROBE_BYTES = 64 * 1024


def _nobody_knows(_repository_id: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LocationFinding:
    """Something about a location that works: how grave it is, a stable code, and a sentence."""

    severity: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class LocationReport:
    """What a check of a location found.

    Args:
        problem: what is wrong with it; empty if nothing is.
        repository_id: of the repository that lies there; empty if none does yet.
        capabilities: what it can do, by its driver's and its service's word; None while that is not known.
        kept: why the probe could not be deleted, empty where it was: it is locked, or this account may not delete, as
            is wanted where another one cleans up.
        write_seconds, read_seconds, delete_seconds: of one probe of 64 KiB; 0 where it was not come so far.
        findings: what else was seen, the gravest first.
        usage: what lies there; None while that is not known.
        measured: whether `usage` was measured by this very check, and not before it.
        capacity: what is free beside it, and for how long.
    """

    name: str
    role: LocationRole
    url: str
    problem: str = ""
    error: SeawallError | None = None
    repository_id: str = ""
    write_seconds: float = 0.0
    read_seconds: float = 0.0
    delete_seconds: float = 0.0
    capabilities: Capabilities | None = None
    kept: str = ""
    free_bytes: int | None = None
    findings: tuple[LocationFinding, ...] = ()
    usage: Usage | None = None
    measured: bool = False
    capacity: Capacity | None = None

    @property
    def good(self) -> bool:
        return not self.problem

    @property
    def locks(self) -> bool:
        return self.capabilities is not None and self.capabilities.object_lock


def opened(settings: Settings, name: str, observe: Observer, *, deleting: bool = False) -> Storage:
    """A location's storage, at the pace that its limits allow; waiting for bandwidth can be cancelled.

    Args:
        deleting: with the credentials that may delete, where these are others.

    Raises:
        SettingsError: none of that name is configured, or no driver knows its URL.
    """
    sleep = cancellable_sleep(observe.cancel)
    bucket = throttle.location_bucket(settings, name, sleep=sleep)
    place = settings.location(name).storage
    return open_storage(place.deleting if deleting else place, bucket=bucket, sleep=sleep)


def check(location: LocationSettings, settings: Settings, observe: Observer) -> LocationReport:
    """Open a location, write a probe, read it back, see it refused a second time, and delete it.

    What goes wrong is in the report; nothing stays behind but a probe that cannot be deleted. Nothing is written into a
    configured location that holds no copy: what belongs there may not be mounted.
    """
    where = location.storage.url.partition("?")[0]
    try:
        with _closing(_open(location, settings, observe)) as storage:
            found = _repository_id(storage)
            if not found and _is_known(location, settings):
                raise NotARepository(
                    f"{storage.url} holds no copy of the repository",
                    hint="Mount what belongs there, or begin a new copy with `seawall mirror --begin`.",
                )
            written, came_back, gone, kept = _probe(storage)
            return LocationReport(
                location.name,
                location.role,
                storage.url,
                repository_id=found,
                write_seconds=written,
                read_seconds=came_back,
                delete_seconds=gone,
                capabilities=storage.capabilities,
                kept=kept,
                free_bytes=storage.free_bytes(),
                findings=_unsafe(storage.capabilities),
            )
    except SeawallError as error:
        return LocationReport(location.name, location.role, where, problem=error.message, error=error)


def _unsafe(can: Capabilities) -> tuple[LocationFinding, ...]:
    if not can.unsafe:
        return ()
    text = f"it does not offer {', '.join(can.unsafe)}: let only one host write there"
    return (LocationFinding("medium", "capabilities", text),)


def _open(location: LocationSettings, settings: Settings, observe: Observer) -> Storage:
    """As `opened`, also for a location that the settings do not name yet."""
    if _is_known(location, settings):
        return opened(settings, location.name, observe)
    return open_storage(location.storage, sleep=cancellable_sleep(observe.cancel))


def _is_known(location: LocationSettings, settings: Settings) -> bool:
    return location.name == PRIMARY or location.name in settings.locations


def _probe(storage: Storage) -> tuple[float, float, float, str]:
    name, data = f"probes/{secrets.token_hex(16)}", secrets.token_bytes(_PROBE_BYTES)
    written = _timed(lambda: storage.put(name, [data]))
    try:
        found: list[bytes] = []
        came_back = _timed(lambda: found.append(read(storage, name)))
        if found != [data]:
            raise Damaged(f"the probe {name} came back with other bytes than were written")
        if [stat.name for stat in storage.list(name)] != [name]:
            raise StorageError(
                f"the probe {name} is stored but not listed", hint="The storage's listing is not prompt."
            )
        refuse_overwriting(storage, name, data)
    finally:
        kept = ""
        begin = time.monotonic()
        try:
            storage.delete(name)
        except StorageDenied as error:
            # As wanted, where another account cleans up; it finds the probe a day later.
            kept = error.message
        gone = time.monotonic() - begin
    if not kept and next(iter(storage.list(name)), None) is not None:
        raise StorageError(f"the probe {name} was deleted but is still listed", hint="Retention cannot work so.")
    return written, came_back, 0.0 if kept else gone, kept


def refuse_overwriting(storage: Storage, name: str, data: bytes) -> None:
    """Go on only where a second put of an object is refused, whatever the driver says of its service.

    Raises:
        StorageError: it was not.
    """
    try:
        storage.put(name, [data])
    except ObjectExists:
        return
    raise StorageError(
        f"the storage overwrote the probe {name}", hint="Two writers would destroy each other's objects."
    )


def _timed(act: Callable[[], object]) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


# ---- apart from each other


def overlap(first: RepositorySettings, second: RepositorySettings) -> str:
    """What is wrong with having both as locations, as far as their URLs say; empty if nothing is."""
    (here, inner), (there, outer) = sorted((_whereabouts(first), _whereabouts(second)), key=lambda one: -len(one[1]))
    if here != there or inner[: len(outer)] != outer:
        return ""
    return "the same place" if inner == outer else "one inside the other"


def _whereabouts(place: RepositorySettings) -> tuple[str, tuple[str, ...]]:
    """The server or bucket that a URL names, and the folders there; links on this host are followed."""
    if (folder := folder_of(place.url)) is not None:
        return "", Path(os.path.realpath(folder)).parts
    scheme, _, rest = place.url.partition("?")[0].partition("://")
    host, _, below = rest.partition("/")
    server = host.rpartition("@")[2] if scheme == "sftp" else host
    return f"{place.url if not rest else scheme} {service_of(place)} {server}", tuple(filter(None, below.split("/")))


def refuse_overlap(settings: Settings, name: str) -> None:
    """Stop at a location that is another one as well: its copies are none, and its own retention would clean up there.

    Raises:
        SettingsError: two names are one place.
    """
    place = settings.location(name).storage
    for other in in_order(settings):
        if other != name and (why := overlap(place, settings.location(other).storage)):
            raise _same_place(name, other, why)


def _same_place(name: str, other: str, why: str) -> SettingsError:
    return SettingsError(
        f"locations {name} and {other} are {why}: a copy there would be none",
        hint="Give each location a place of its own.",
    )


def refuse_same(settings: Settings, name: str, observe: Observer) -> None:
    """As `refuse_overlap`, and by a probe that is written here and looked for elsewhere: addresses do not tell all.

    Raises:
        SettingsError: two names are one place.
        StorageError: the location does not take the probe.
    """
    refuse_overlap(settings, name)
    probe = f"probes/{secrets.token_hex(16)}"
    with _closing(opened(settings, name, observe)) as storage:
        storage.put(probe, [b"whose is this?"])
        try:
            same = next((other for other in in_order(settings) if other != name and _sees(settings, other, probe)), "")
        finally:
            with suppress(StorageDenied):
                storage.delete(probe)
    if same:
        raise _same_place(name, same, "the same place")


def _sees(settings: Settings, name: str, probe: str) -> bool:
    # Once, and without waiting: one that does not answer now cannot be asked.
    place = replace(settings.location(name).storage, attempts=1)
    try:
        with _closing(open_storage(place)) as storage:
            storage.stat(probe)
    except SeawallError:
        return False
    return True


def _repository_id(storage: Storage) -> str:
    try:
        return Repository.open(storage).id
    except NotARepository:
        return ""


@contextmanager
def _closing(storage: Storage) -> Iterator[Storage]:
    try:
        yield storage
    finally:
        storage.close()


def nearest(settings: Settings, observe: Observer, ring: KeyRing | None = None) -> Nearest:
    """All configured locations as one storage to read from, the primary first, offsite before secondary offsite.

    One that does not answer, or holds another repository than the rest (see `others`), is left out with a notice.

    Raises:
        StorageError: not one of them could be read.
    """
    found, failures = _copies(settings, in_order(settings), observe, repository_in=_known_repository)
    if not found:
        raise failures[0]
    return _as_one(found, observe, ring)


def others(
    settings: Settings,
    observe: Observer,
    ring: KeyRing | None = None,
    *,
    knows: Callable[[str], bool] = _nobody_knows,
) -> Nearest | None:
    """As `nearest`, for when the primary is gone: the other locations that answer and hold one repository's copies.

    None where there are none. Where they hold different ones, the one counts that somebody knows, else that which lies
    in more locations, else that which has more of the configured sources; the rest is left out.

    Args:
        knows: whether the repository of that id was seen before, such as by the catalog.
    """
    found, _ = _copies(settings, in_order(settings)[1:], observe, repository_in=Repository.open, knows=knows)
    return _as_one(found, observe, ring) if found else None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A location that answers, and the repository there; None where it cannot be told."""

    copy: Copy
    repository: Repository | None


def _copies(
    settings: Settings,
    names: Sequence[str],
    observe: Observer,
    *,
    repository_in: Callable[[Storage], Repository | None],
    knows: Callable[[str], bool] = _nobody_knows,
) -> tuple[list[Copy], list[SeawallError]]:
    """Those locations that can be read and hold one repository, and why the rest is left out."""
    seen: list[_Seen] = []
    failures: list[SeawallError] = []

    def leave_out(name: str, error: SeawallError) -> None:
        failures.append(error)
        text = f"location {name} cannot be read and is left out: {error.message}"
        observe.hear(Noticed("medium", "location-silent", text))

    with ExitStack() as unless_kept:
        for name in names:
            try:
                seen.append(_seen(settings, name, observe, repository_in))
                unless_kept.callback(seen[-1].copy.storage.close)
            except Cancelled:
                raise
            except SeawallError as error:
                leave_out(name, error)
        ours = _ours(settings, seen, knows)
        kept = [one for one in seen if ours is None or one.repository is None or one.repository.id == ours.id]
        unless_kept.pop_all()
    for one in seen:
        if one not in kept and ours is not None and one.repository is not None:
            one.copy.storage.close()
            leave_out(one.copy.name, other_repository(ours, one.repository))
    return [one.copy for one in kept], failures


def _seen(
    settings: Settings, name: str, observe: Observer, repository_in: Callable[[Storage], Repository | None]
) -> _Seen:
    with ExitStack() as unless_kept:
        storage = opened(settings, name, observe)
        unless_kept.callback(storage.close)
        found = _Seen(Copy(name, storage), repository_in(storage))
        unless_kept.pop_all()
    return found


def _ours(settings: Settings, seen: Sequence[_Seen], knows: Callable[[str], bool]) -> Repository | None:
    """The repository that the settings are about, of those that lie in locations."""
    told = [(one.copy.name, one.repository) for one in seen if one.repository is not None]
    first = next(iter(told), None)
    if first is None or first[0] == PRIMARY or len({repository.id for _, repository in told}) == 1:
        return None if first is None else first[1]

    def standing(repository: Repository) -> tuple[bool, int, int]:
        copies = sum(other.id == repository.id for _, other in told)
        return knows(repository.id), copies, len(settings.sources.keys() & _sources_of(repository))

    # The first of those that stand equal.
    return max((repository for _, repository in told), key=standing)


def _sources_of(repository: Repository) -> frozenset[str]:
    try:
        return frozenset(repository.sources())
    except StorageError:
        return frozenset()


def _known_repository(storage: Storage) -> Repository | None:
    """The repository that lies there; None where none can be told, as what is read there is proved all the same."""
    try:
        return Repository.open(storage)
    except (NotARepository, Damaged):
        return None


def _as_one(copies: Sequence[Copy], observe: Observer, ring: KeyRing | None) -> Nearest:
    return Nearest(copies, Evidence(telling(copies), ring), observe)


def refuse_other(repository: Repository, other: Repository) -> None:
    """Go on only where two places hold the same repository.

    Raises:
        ClusterMismatch: they do not.
    """
    if other.id != repository.id:
        raise other_repository(repository, other)


def other_repository(repository: Repository, other: Repository) -> ClusterMismatch:
    """The error of a place that holds another repository than it should."""
    return ClusterMismatch(
        f"{other.storage.url} is repository {other.id}, not a copy of {repository.id}",
        hint="A location mirrors one repository; give this one a place of its own.",
    )


def in_order(settings: Settings) -> tuple[str, ...]:
    """All locations, the primary first, offsite before secondary offsite."""
    order = list(LocationRole)
    others = sorted(settings.locations.values(), key=lambda location: (order.index(location.role), location.name))
    return (PRIMARY, *(other.name for other in others))
