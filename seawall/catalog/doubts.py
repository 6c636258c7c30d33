"""Which backup sets in a location count as no good ones, by what proofs and verifications found there.

A head says what was known when its backup was taken. Retention also has to know what was read back since: a set that is
damaged must not be the one for whose sake others go.

Not guaranteed: that every damaged set is known. What was never read is taken for sound.
"""

from __future__ import annotations

from collections.abc import Mapping

from seawall.catalog.logbook import Logbook
from seawall.errors import Damaged, FormatTooNew, NameRefused
from seawall.model import BackupLabel
from seawall.repository import SourceArea
from seawall.settings import PRIMARY


def doubted(catalog: Logbook, area: SourceArea, repository_id: str, location: str) -> dict[BackupLabel, str]:
    """Sets of a source that were found wrong in a location when they were last read, and why.

    Raises:
        CatalogError: it does not answer.
    """
    wrong = catalog.wrong_objects(repository_id, location, area.layout.backups)
    failed = catalog.failed_verifications(repository_id, area.name) if location == PRIMARY else {}
    found: dict[BackupLabel, str] = {}
    for label in area.labels(with_expired=True) if wrong or failed else ():
        why = failed.get(str(label)) or _of_its_objects(area, label, wrong)
        if why:
            found[label] = why
    return found


def _of_its_objects(area: SourceArea, label: BackupLabel, wrong: Mapping[str, str]) -> str:
    own = area.layout.backup(label)
    names = {name for name in wrong if name.startswith(own)}
    try:
        # Objects of earlier sets that it refers to are its own as much as any.
        names |= area.needed_objects(label) & wrong.keys() if wrong else set()
    except (Damaged, FormatTooNew, NameRefused) as error:
        return error.message
    return "; ".join(f"{name}: {wrong[name]}" for name in sorted(names)[:3])
