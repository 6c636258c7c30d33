"""The engine's objects from settings, and what tasks share in how they treat errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from seawall.catalog import BackupFile, Catalog
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.keys import KeyRing, open_ring
from seawall.locations import nearest, others
from seawall.model import BackupLabel
from seawall.nearest import SILENT, Nearest
from seawall.repository import Repository
from seawall.settings import PRIMARY, Settings
from seawall.storage import open_storage
from seawall.throttle import location_bucket
from seawall.watch import judge

# Storage wrappers have tried each request again by then; a minute is for a server or network that restarts.
RETRY_SECONDS = [60.0, 300.0]


@contextmanager
def opened(settings: Settings, *, deleting: bool = False) -> Iterator[Repository]:
    """The repository that settings name.

    Args:
        deleting: with the credentials that may delete, where these are others.
    """
    place = settings.repository.deleting if deleting else settings.repository
    storage = open_storage(place, bucket=location_bucket(settings))
    try:
        yield Repository.open(storage)
    finally:
        storage.close()


@contextmanager
def opened_copies(settings: Settings, observe: Observer, ring: KeyRing | None = None) -> Iterator[Repository]:
    """The repository to restore from: each object from the nearest location that has it sound."""
    if not settings.locations:
        with opened(settings) as repository:
            yield repository
        return
    storage = nearest(settings, observe, ring)
    try:
        yield Repository.open(storage)
    finally:
        storage.close()


@contextmanager
def opened_origin(
    settings: Settings, observe: Observer, ring: KeyRing | None, catalog: Catalog
) -> Iterator[tuple[Repository, SeawallError | None]]:
    """The repository to read, and why that is not the primary but the other locations as one, if so.

    Args:
        catalog: tells which repository it is where locations hold different ones.

    Raises:
        SeawallError: why the primary cannot be opened, where no other location can stand in.
    """
    with ExitStack() as stack:
        try:
            found, gone = stack.enter_context(opened(settings)), None
        except SILENT as error:
            storage = others(settings, observe, ring, knows=known_to(catalog))
            if storage is None:
                raise
            stack.callback(storage.close)
            found, gone = Repository.open(storage), error
        yield found, gone


def known_to(catalog: Catalog) -> Callable[[str], bool]:
    """Whether the catalog ever looked at the audit of the repository of an id, so that it is one of its own."""
    return lambda repository_id: catalog.repository_anchor(repository_id) is not None


def read_from(repository: Repository) -> tuple[str, ...]:
    """The locations that a repository is read in."""
    return repository.storage.names if isinstance(repository.storage, Nearest) else (PRIMARY,)


def note_primary_down(catalog: Catalog, gone: SeawallError, now: datetime) -> None:
    """Open the alert that the primary is down, which `location-health` resolves when it answers again."""
    judge(catalog, "location-down", PRIMARY, gone.message, now)


@contextmanager
def ring_of(settings: Settings) -> Iterator[KeyRing]:
    """The key ring that settings name."""
    with open_ring(settings.sealing) as ring:
        yield ring


def file_of(catalog: Catalog, repository: Repository, source: str, label: BackupLabel) -> BackupFile | None:
    """The catalog's record of a backup set, None if the catalog does not know it."""
    return catalog.find_backup_file(UUID(repository.id), source, label)


def can_help(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying a step again can help; the error itself says so."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, SeawallError) and error.retryable
