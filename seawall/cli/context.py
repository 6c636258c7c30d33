"""What every verb needs and none should make for itself: settings, repository, observer, time."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.console import Console
from seawall.errors import SettingsError
from seawall.events import Observer
from seawall.model import checked_name
from seawall.settings import RepositorySettings, Settings, SourceSettings, load

if TYPE_CHECKING:
    from seawall.catalog import Catalog
    from seawall.cli.reading import Reading
    from seawall.keys import KeyRing
    from seawall.repository import Repository, Sealing


@dataclass
class Context:
    """One run of the command line."""

    console: Console
    config: Path | None = None
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Observer(hear=self.console.hear)

    @cached_property
    def settings(self) -> Settings:
        return load(self.config)

    def source(self, name: str | None) -> SourceSettings:
        """The source that was named, or the only one that is configured.

        Raises:
            SettingsError: it is not configured, or none was named and there are several.
        """
        if name is None and len(self.settings.sources) == 1:
            return next(iter(self.settings.sources.values()))
        return self.settings.source(name or "")

    def stored_source(self, name: str | None) -> str:
        """The name of a source that the repository holds; unlike `source`, it need not be configured here.

        Raises:
            SettingsError: it is neither stored nor configured, or none was named and there are several.
        """
        if name is None and len(self.settings.sources) == 1:
            return next(iter(self.settings.sources))
        if name is not None and name in self.settings.sources:
            return name
        known = sorted({*self.settings.sources, *self.reading.repository.sources()})
        if name is None and len(known) == 1:
            return known[0]
        if name is not None and checked_name(name, what="source name") in known:
            return name
        what = "name a source" if name is None else f"there is no source {name!r}"
        raise SettingsError(f"{what} (known: {', '.join(known) or 'none'})")

    @cached_property
    def repository(self) -> Repository:
        return self._opened(self.settings.repository)

    @cached_property
    def deletable(self) -> Repository:
        """The repository, opened with the credentials that may delete, where these are others."""
        return self._opened(self.settings.repository.deleting)

    def _opened(self, place: RepositorySettings) -> Repository:
        from seawall.repository import Repository
        from seawall.storage import open_storage
        from seawall.throttle import location_bucket

        return Repository.open(open_storage(place, bucket=location_bucket(self.settings)))

    @cached_property
    def reading(self) -> Reading:
        """The repository as verbs read it that change nothing there: also without its primary location."""
        from seawall.cli.reading import reading

        return reading(self)

    @cached_property
    def copies(self) -> Repository:
        """The repository to restore from: each object from the nearest location that has it sound."""
        from seawall import locations
        from seawall.repository import Repository

        if not self.settings.locations:
            return self.repository
        return Repository.open(locations.nearest(self.settings, self.observer, self.ring))

    @cached_property
    def ring(self) -> KeyRing:
        from seawall.keys import open_ring

        return open_ring(self.settings.sealing)

    @cached_property
    def sealing(self) -> Sealing:
        from seawall.repository import sealing_of

        return sealing_of(self.settings.sealing)

    @contextmanager
    def catalog_if_any(self) -> Iterator[Catalog | None]:
        """The catalog, or None with a note where there is none that can be used: the deed counts without it."""
        from seawall.catalog import Catalog
        from seawall.errors import CatalogError

        try:
            catalog = Catalog.open(self.settings.catalog.url)
        except CatalogError as error:
            self.console.note(f"not recorded: {error.message}")
            yield None
            return
        with catalog:
            yield catalog

    def agent_socket(self, source: str) -> Path:
        """Where the agent of a source listens; reachable for the server's account."""
        return self.settings.agent_socket(source)

    def now(self) -> datetime:
        return datetime.now(UTC)

    @property
    def actor(self) -> str:
        """Who is at work, for leases and the audit."""
        return f"{os.environ.get('SUDO_USER') or _account()}@{socket.gethostname()}"


def _account() -> str:
    """By the kernel's word; the environment's may be missing or wrong."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may run under a number that has no name
        return str(os.geteuid())
