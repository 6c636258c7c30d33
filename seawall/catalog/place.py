"""Where a catalog is, and how long its database may take: what both ways into it agree on."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

from seawall.errors import CatalogMissing, CatalogUnreachable, SettingsError

BUSY_TIMEOUT = timedelta(seconds=30)
CONNECT_TIMEOUT = timedelta(seconds=10)
APPLICATION = "seawall-catalog"
HINT = "Use sqlite:////absolute/path.db or postgresql://user@host:5432/database."
# As SQLAlchemy's make_url splits it: scheme, perhaps a driver, credentials, host, database, options.
_URL = re.compile(
    r"(?P<system>\w+)(\+\w+)?://((?P<user>[^:/@]*)(:(?P<password>[^@]*))?@)?(?P<host>[^/?]*)"
    r"(/(?P<database>[^?]*))?(\?(?P<options>.*))?",
    re.DOTALL,
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a catalog is.

    Args:
        url: without the name of a driver.
        file: of an SQLite catalog; None for one in a PostgreSQL database.
    """

    url: str
    file: Path | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that a URL names: `sqlite:////absolute/file` or `postgresql://user@host/database`.

        Raises:
            SettingsError: it is malformed, names another database system, has a password, or is an SQLite catalog
                without a file (one in memory would be gone with the process).
        """
        found = _URL.fullmatch(text)
        if found is None:
            raise SettingsError("the catalog's URL is malformed", hint=HINT)
        system, database, options = found["system"], found["database"] or "", found["options"] or ""
        if system not in {"sqlite", "postgresql"}:
            raise SettingsError(f"a catalog in {system} is not supported", hint=HINT)
        if found["password"] is not None or "password" in parse_qs(options, keep_blank_values=True):
            raise SettingsError(
                "the catalog's URL has a password in it", hint="Use libpq's passfile: …?passfile=/path."
            )
        if system == "sqlite" and database in {"", ":memory:"}:
            raise SettingsError("the catalog's URL names no file", hint=HINT)
        plain = system + text[text.index("://") :]
        return cls(plain, Path(database) if system == "sqlite" else None)


def prepare_file(path: Path, *, create: bool) -> None:
    """Make sure that an SQLite catalog exists, private to its owner.

    Raises:
        CatalogMissing: its directory is missing, or the file is and `create` is false.
        CatalogUnreachable: this account may not create or use it.
    """
    try:
        if not path.parent.is_dir():
            raise CatalogMissing(
                f"the catalog's directory {path.parent} does not exist", hint=f"Create it: mkdir -p {path.parent}"
            )
        if create:
            _create_private(path)
        if not path.is_file():
            raise CatalogMissing(f"there is no catalog at {path}")
        mode = path.stat().st_mode
    except OSError as error:
        raise CatalogUnreachable(f"the catalog {path} cannot be used: {error.strerror}") from error
    if mode & 0o077:
        _log.warning("the catalog %s is open to other accounts; chmod 600 closes it", path)


def _create_private(path: Path) -> None:
    """SQLite gives its -wal and -shm files the same mode as this one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise CatalogUnreachable(f"the catalog {path} cannot be created: {error.strerror}") from error
