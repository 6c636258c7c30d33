"""What should be in a location and is not there any more.

What lies in a location tells of much itself (`traces`). Of the rest the other locations tell. Where an object is
missing in one of those, the next mirror brings it. Nothing brings what is missing in the primary: a whole backup, or a
manifest without which it is not listed; WAL, histories and keys, which nothing else there names. So whatever another
location has, the primary's own rules keep and no cleanup in the audit let go is missed there.

Not guaranteed: that a loss is found while the only location with a copy does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from seawall import locations, mirror, retention, traces
from seawall.audit import AuditLog, AuditRecord
from seawall.errors import Cancelled, Damaged, NameRefused, NotARepository, SeawallError, StorageError
from seawall.events import Noticed, Observer
from seawall.model import BackupLabel, Finding
from seawall.repository import Repository, SourceArea
from seawall.retention.decide import plan
from seawall.settings import PRIMARY, Settings

# What another location may have, so that healing brings it back; nothing else than the audit knows of a mark.
HEALABLE = frozenset(
    {
        "hold-lost",
        "release-lost",
        "identity-lost",
        "backup-lost",
        "wal-lost",
        "history-lost",
        "key-lost",
        "size-differs",
    }
)


def missed(
    settings: Settings, area: SourceArea, location: str, *, within: timedelta, now: datetime, observe: Observer
) -> list[Finding]:
    """What a source lacks in a location by all that can be asked.

    Args:
        within: so long a mirror has time to bring what another location lacks.

    Raises:
        StorageError: the location does not answer.
        Cancelled: on request.
    """
    if location == PRIMARY:
        return [*traces.missed(area, now=now), *_known_elsewhere(settings, area, now=now, observe=observe)]
    try:
        with closing(locations.opened(settings, PRIMARY, observe)) as primary:
            found = traces.missed(area, audit=AuditLog(primary), until=now - within, now=now)
            return [*found, *_of_other_size(area, SourceArea(primary, area.name))]
    except (StorageError, NotARepository) as error:
        text = f"the audit cannot be asked what {area.name} in {location} lacks: {error.message}"
        observe.hear(Noticed("medium", "audit-unread", text))
        return []


def _of_other_size(area: SourceArea, primary: SourceArea) -> Iterator[Finding]:
    """Objects that are not as large as in the primary; no backup that is listed here may name them."""
    root = area.layout.root
    theirs = mirror.sizes(primary.storage, root)
    for name, size in mirror.sizes(area.storage, root).items():
        if theirs.get(name, size) != size and not name.startswith((area.layout.expired, area.layout.leases)):
            yield Finding("size-differs", name, f"it has {size} bytes here and {theirs[name]} in the primary location")


def _known_elsewhere(settings: Settings, area: SourceArea, *, now: datetime, observe: Observer) -> list[Finding]:
    """What the source's other locations have that the primary should have; those that do not answer tell nothing."""
    configured = settings.sources.get(area.name)
    if configured is None or not configured.mirrors:
        return []
    try:
        gone = let_go(AuditLog(area.storage).records(), area.name, area.storage.url)
    except Damaged:
        # `traces.missed` says so; without its records, nobody knows what was let go.
        return []
    policy, found = retention.policy_for(settings, area.name), dict[str, Finding]()
    for name in configured.mirrors:
        try:
            with closing(locations.opened(settings, name, observe)) as storage:
                locations.refuse_other(Repository.open(area.storage), Repository.open(storage))
                lacking = lost(area, name, SourceArea(storage, area.name), policy, gone, now=now)
        except Cancelled:
            raise
        except SeawallError as error:
            text = f"location {name} cannot be asked what the primary lacks: {error.message}"
            observe.hear(Noticed("medium", "location-silent", text))
        else:
            found = {one.subject: one for one in lacking} | found
    return list(found.values())


@dataclass(frozen=True, slots=True)
class LetGo:
    """What cleanups of the primary marked or removed, by the audit: backups, keys, spans of WAL."""

    labels: frozenset[BackupLabel] = frozenset()
    keys: frozenset[str] = frozenset()
    spans: tuple[tuple[str, str], ...] = ()

    def spanned(self, segment: str) -> bool:
        return any(first <= segment <= last for first, last in self.spans)


def let_go(records: Iterable[AuditRecord], source: str, primary: str) -> LetGo:
    """What of a source was ever marked or removed; where a mark was taken back, nothing is said to be lost.

    Args:
        primary: the URL of the location that a record is about which names none.
    """
    labels, keys, spans = set(), set(), []
    for record in records:
        name, _, subject = record.subject.partition(" ")
        if name != source or record.details.get("location", primary) != primary:
            continue
        if record.action in ("expire-wal", "collect-wal"):
            first, _, last = subject.partition("..")
            spans.append((first, last))
        elif record.action == "collect-key":
            keys.add(subject)
        elif record.action in ("expire", "collect", "collect-unfinished"):
            with suppress(NameRefused):
                labels.add(BackupLabel.parse(subject))
    return LetGo(frozenset(labels), frozenset(keys), tuple(spans))


def lost(
    here: SourceArea,
    location: str,
    there: SourceArea,
    policy: retention.RetentionPolicy,
    gone: LetGo,
    *,
    now: datetime,
) -> list[Finding]:
    """What one other location has that a policy keeps here, that was not let go, and that is not here.

    Args:
        here: of the primary; it is read only.
        gone: what the audit says was let go here.
    """
    ours, unreadable = here.readable_heads(with_expired=True)
    known = {head.label for head in ours} | unreadable.keys() | gone.labels
    theirs = [head for head in there.readable_heads()[0] if head.label not in known]
    foreign = sorted(name for name in there.wal.names() - here.wal.names() if not gone.spanned(name))
    made = plan(here.name, [*ours, *theirs], here.holds(now), policy, now=now, wal_names=foreign, at_rest=True)
    kept = {decision.label for decision in made.keep}
    missing = _missing_of([head.label for head in theirs if head.label in kept], here, there)
    # What a head that cannot be read needs is not known, and it is found as a damaged document.
    unneeded = (
        set(foreign) if unreadable else {name for name in foreign if any(w.first <= name <= w.last for w in made.wal)}
    )
    where = f"{location} has it, the rules keep it here, and the audit tells of no cleanup"
    return [
        *(Finding("backup-lost", name, f"{label} needs it; {where}") for label, name in missing),
        *(Finding("wal-lost", here.layout.segment(name), where) for name in foreign if name not in unneeded),
        *(Finding("history-lost", name, where) for name in _unknown(here, there, here.layout.histories)),
        *(Finding("key-lost", name, where) for name in _keys(here, there, gone)),
    ]


def _missing_of(labels: Sequence[BackupLabel], here: SourceArea, there: SourceArea) -> Iterator[tuple[str, str]]:
    """Backups with the objects that they lack here."""
    present = {stat.name for stat in here.storage.list(here.layout.backups)} if labels else set()
    layout = here.layout
    for label in labels:
        documents = (layout.head, layout.objects, layout.manifest_copy, layout.manifest)
        needed = {*there.needed_objects(label), *(name(label) for name in documents)}
        yield from ((str(label), name) for name in sorted(needed - present))


def _unknown(here: SourceArea, there: SourceArea, prefix: str) -> list[str]:
    """Names below a prefix that are there and not here."""
    return sorted(
        {stat.name for stat in there.storage.list(prefix)} - {stat.name for stat in here.storage.list(prefix)}
    )


def _keys(here: SourceArea, there: SourceArea, gone: LetGo) -> Iterator[str]:
    """Wraps of keys of which none is left here; a single one may have been retired."""
    prefix = here.layout.keys
    wrapped = {_key_id(prefix, stat.name) for stat in here.storage.list(prefix)} | gone.keys
    yield from (name for name in _unknown(here, there, prefix) if _key_id(prefix, name) not in wrapped)


def _key_id(prefix: str, name: str) -> str:
    return name.removeprefix(prefix).partition("/")[0]
