"""Which extensions a cluster had, and whether PostgreSQL's programs here have them too.

A restored database whose extension is not installed starts and answers, until somebody calls a function of it. So the
backup says what there was, and a restore looks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import BinariesMissing, Damaged
from seawall.postgres.binaries import Binaries

SPECIAL = "extensions.json"


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension that was created in a database, with its version there."""

    database: str
    name: str
    version: str


def encoded(found: tuple[tuple[str, str, str], ...]) -> str:
    """The text that a backup carries of `Cluster.extensions` (docs/repository-format.md, special texts)."""
    rows = [{"database": database, "name": name, "version": version} for database, name, version in found]
    return json.dumps({"extensions": rows}, ensure_ascii=False, indent=1) + "\n"


def of_backup(specials: Mapping[str, str]) -> tuple[Extension, ...]:
    """The extensions that a backup's special texts name; none where the backup says nothing of them.

    Raises:
        Damaged: the text is not what `encoded` makes.
    """
    text = specials.get(SPECIAL)
    if text is None:
        return ()
    try:
        rows = json.loads(text)["extensions"]
        return tuple(Extension(str(row["database"]), str(row["name"]), str(row["version"])) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{SPECIAL} of the backup cannot be read") from error


def missing(wanted: tuple[Extension, ...], binaries: Binaries) -> tuple[Extension, ...]:
    """Those whose control file these programs would not find; none if it cannot be said where they look.

    PostgreSQL documentation, 36.17 "Packaging Related Objects into an Extension": `SHAREDIR/extension/<name>.control`.
    """
    directory = _control_directory(binaries)
    if directory is None:
        return ()
    return tuple(one for one in wanted if not (directory / f"{one.name}.control").is_file())


def _control_directory(binaries: Binaries) -> Path | None:
    try:
        asked = subprocess.run(
            [binaries.path("pg_config"), "--sharedir"], check=True, capture_output=True, text=True, timeout=30
        )
    except (BinariesMissing, OSError, subprocess.SubprocessError):
        return None
    directory = Path(asked.stdout.strip()) / "extension"
    return directory if directory.is_dir() else None
