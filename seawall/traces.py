"""What a source's own records tell of objects that are not there any more, and which of its documents are damaged.

Verification reads what backups need. What only protects them, such as leases, marks and holds, is read here: each
document is proved by its own hash. And what is gone is told by others: the audit tells of holds and marks, backups and
WAL tell which cluster's they are. Reads only.

The audit lies in the primary location, and tells of marks in the others too. What a mirror may still be about to bring
to another location is not missed there.

Not guaranteed: that every loss is found. Nothing in a repository tells of a tail of WAL, which its receiver brings
again within a minute, nor of a lease, which ends by itself: a writer whose lease is gone finds that out before it
commits. A deed that was recorded in the audit and then failed looks like one whose object is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from seawall.audit import AuditLog, AuditRecord
from seawall.errors import Damaged, FormatTooNew, NameRefused, ObjectMissing
from seawall.events import Observer
from seawall.model import BackupLabel, Finding, Head
from seawall.repository import Repository, SourceArea, documents
from seawall.repository.evidence import Evidence
from seawall.storage.base import Storage

_WORKERS = 8
_WRONG = (Damaged, ObjectMissing, FormatTooNew)
_END = "999999999999"


def examine(repository: Repository, source: str, *, now: datetime, observe: Observer) -> tuple[Finding, ...]:
    """Prove every document of a source and of the repository, and look for what is gone.

    Raises:
        StorageUnreachable, StorageDenied: nothing can be said.
        Cancelled: on request.
    """
    area = repository.source(source)
    found = [*damaged_documents(repository.storage, area, observe), *missed(area, now=now)]
    return tuple(sorted(found, key=lambda finding: (finding.subject, finding.code)))


def missed(
    area: SourceArea, *, audit: AuditLog | None = None, until: datetime | None = None, now: datetime
) -> list[Finding]:
    """What should be there by the audit, and by what backups and WAL say, and is not.

    Args:
        audit: of the primary location, if this is another one; else the location's own.
        until: records after this moment are no evidence of holds: a mirror may still be about to bring those.

    Raises:
        StorageUnreachable, StorageDenied: nothing can be said.
    """
    told, found = audit or AuditLog(area.storage), lost_identities(area)
    try:
        records = _records(told, area.name)
    except Damaged as error:
        # What a broken chain says of holds and marks is no evidence.
        return [*found, Finding("audit-broken", "audit/", error.message)]
    found += lost_holds(area, [record for record in records if until is None or record.at <= until], now)
    return found + lost_marks(area, records, primary=told.url)


def _records(audit: AuditLog, source: str) -> list[AuditRecord]:
    return [record for record in audit.records() if record.subject.partition(" ")[0] == source]


# ---- documents


def damaged_documents(storage: Storage, area: SourceArea, observe: Observer) -> Iterator[Finding]:
    """Documents that are not what was written, the recovery scripts among them."""
    evidence = Evidence([storage])

    def prove(name: str) -> Finding | None:
        observe.checkpoint()
        try:
            evidence.refuse_damaged(name, storage.get(name))
        except ObjectMissing:
            # Let go between the listing and now; what should be there is asked for below.
            return None
        except (Damaged, FormatTooNew) as error:
            return Finding("document-damaged", name, error.message)
        return None

    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="documents") as pool:
        yield from (finding for finding in pool.map(prove, _documents(storage, area)) if finding)


def _documents(storage: Storage, area: SourceArea) -> Iterator[str]:
    yield from (name for name in storage.children("") if name.endswith((".json", ".py")))
    for prefix in (area.layout.leases, area.layout.root):
        yield from (stat.name for stat in storage.list(prefix) if stat.name.endswith(".json"))


# ---- what the audit tells


@dataclass
class _Holds:
    """What the audit says of a source's holds; older records do not say which, only of which backup."""

    placed: dict[str, AuditRecord] = field(default_factory=dict)
    unnamed: dict[str, int] = field(default_factory=dict)
    released: dict[str, AuditRecord] = field(default_factory=dict)

    def hear(self, record: AuditRecord) -> None:
        subject = record.subject.partition(" ")[2]
        if record.action == "release-hold":
            self.released[subject] = record
        elif record.action == "hold" and "id" in record.details:
            self.placed[record.details["id"]] = record
        elif record.action == "hold":
            self.unnamed[subject] = self.unnamed.get(subject, 0) + 1


def lost_holds(area: SourceArea, records: Iterable[AuditRecord], now: datetime) -> list[Finding]:
    """Holds, and ends of holds, that the audit tells of and that are not there."""
    told = _Holds()
    for record in records:
        told.hear(record)
    layout, there = area.layout, {stat.name for stat in area.storage.list(area.layout.holds)}
    found = []
    for hold_id, record in told.placed.items():
        if layout.hold(hold_id) not in there and hold_id not in told.released and not _is_over(record, now):
            found.append(Finding("hold-lost", layout.hold(hold_id), _hold_sentence(record)))
    for hold_id, record in told.released.items():
        if layout.hold(hold_id) in there and layout.hold_release(hold_id) not in there:
            why = f"{record.actor} released this hold at {record.at:%Y-%m-%d %H:%M}Z, but it is in force"
            found.append(Finding("release-lost", layout.hold_release(hold_id), why))
    return found + _lost_unnamed_holds(area, told, there)


def _is_over(record: AuditRecord, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(record.details.get("until", "")) <= now
    except (ValueError, TypeError):
        return False


def _hold_sentence(record: AuditRecord) -> str:
    return (
        f"{record.actor} placed this hold at {record.at:%Y-%m-%d %H:%M}Z ({record.details.get('reason', '')}), but it "
        "is not there; place it again, or end it with `seawall hold release --id`"
    )


def _lost_unnamed_holds(area: SourceArea, told: _Holds, there: Iterable[str]) -> list[Finding]:
    if not told.unnamed:
        return []
    present: dict[str, int] = {}
    for name in there:
        hold_id = name.removeprefix(area.layout.holds).removesuffix(".json")
        if hold_id.endswith(".released") or hold_id in told.placed:
            continue
        try:
            label = str(documents.get(area.storage, name).get("label"))
        except _WRONG:
            # It may be any of them, and it is found as a damaged document.
            return []
        present[label] = present.get(label, 0) + 1
    lacking = {label: present.get(label, 0) for label, count in told.unnamed.items() if present.get(label, 0) < count}
    return [
        Finding(
            "hold-lost", area.layout.holds, f"of {told.unnamed[label]} holds of {label} in the audit, {few} are there"
        )
        for label, few in lacking.items()
    ]


def lost_marks(area: SourceArea, records: Iterable[AuditRecord], *, primary: str) -> list[Finding]:
    """Marks of this location that the audit tells of, that were not taken back, and that are not there.

    Args:
        primary: the URL of the location that a record is about which names none.
    """
    sets: dict[str, AuditRecord] = {}
    wal: dict[str, AuditRecord] = {}
    for record in records:
        if record.details.get("location", primary) != area.storage.url:
            continue
        subject = record.subject.partition(" ")[2]
        if record.action == "expire":
            sets[subject] = record
        elif record.action == "expire-wal":
            wal[subject] = record
        elif record.action == "unexpire":
            # All marks on WAL go with the mark that is taken back.
            sets.pop(subject, None)
            wal.clear()
        elif record.action == "collect":
            # A mirror may bring it there again one day, when the rules of that location changed.
            sets.pop(subject, None)
        elif record.action == "collect-wal":
            wal.pop(subject, None)
    there = {stat.name for stat in area.storage.list(area.layout.expired)}
    found = [one for subject, record in sets.items() if (one := _lost_mark(area, subject, record, there))]
    return found + [one for subject, record in wal.items() if (one := _lost_wal_mark(area, subject, record, there))]


def _lost_mark(area: SourceArea, subject: str, record: AuditRecord, there: Iterable[str]) -> Finding | None:
    try:
        label = BackupLabel.parse(subject)
    except NameRefused:
        return None
    name = area.layout.expiry(label)
    if name in there or label not in area.labels(with_expired=True):
        return None
    return Finding("mark-lost", name, _mark_sentence(record, "the backup is listed again"))


def _lost_wal_mark(area: SourceArea, subject: str, record: AuditRecord, there: Iterable[str]) -> Finding | None:
    first, _, last = subject.partition("..")
    if any(begin <= first and last <= end for begin, end in map(_marked, there)):
        return None
    # A mark goes when its WAL is gone; then nothing is lost with it.
    if not any(first <= segment <= last for segment in area.wal.segments()):
        return None
    name = f"{area.layout.expired}wal-{first}-{last}.json"
    return Finding("mark-lost", name, _mark_sentence(record, "this WAL stays"))


def _marked(name: str) -> tuple[str, str]:
    """The segments that a mark's name spans; of a mark of a backup, none."""
    leaf = name.rsplit("/", 1)[1].removesuffix(".json")
    kind, _, span = leaf.partition("-")
    first, _, last = span.partition("-")
    return (first, last) if kind == "wal" else (_END, "")


def _mark_sentence(record: AuditRecord, so: str) -> str:
    return (
        f"{record.actor} marked it at {record.at:%Y-%m-%d %H:%M}Z, but the mark is not there, so {so}; "
        "`seawall expire` marks it again if that is still right"
    )


# ---- what backups and WAL tell


def lost_identities(area: SourceArea) -> list[Finding]:
    """Records of which cluster this is that are not there, by their numbers, and by what backups and WAL say."""
    names = [stat.name for stat in area.storage.list(area.layout.identities)]
    numbers = {int(name[-9:-5]) for name in names if name[-9:-5].isdigit()}
    gaps = sorted(set(range(1, max(numbers, default=0))) - numbers)
    found = [Finding("identity-lost", area.layout.identity(number), "later records follow it") for number in gaps]
    heads, _ = area.readable_heads(with_expired=True)
    needed, major = _needed_timelines(area, heads), max((head.cluster.major_version for head in heads), default=0)
    try:
        known = area.identity()
    except _WRONG:
        return found
    lacking = sorted(needed - set(known.timelines if known else ()))
    if lacking or (known.major_version if known else 0) < major:
        what = f"timelines {', '.join(map(str, lacking))}" if lacking else f"PostgreSQL {major}"
        why = f"backups or WAL of {what} are stored, which no record names"
        found.append(Finding("identity-lost", area.layout.identity(max(numbers, default=0) + 1), why))
    return found


def _needed_timelines(area: SourceArea, heads: Iterable[Head]) -> set[int]:
    return {head.timeline for head in heads}.union(area.wal.timelines())


def forgotten_hold(repository: Repository, source: str, hold_id: str, now: datetime) -> bool:
    """Whether the audit tells of a hold in force that is not there, so that only the audit can end it."""
    area = repository.source(source)
    found = lost_holds(area, _records(AuditLog(repository.storage), source), now)
    return any(finding.subject == area.layout.hold(hold_id) for finding in found)


def forgotten_mark(repository: Repository, source: str, label: BackupLabel) -> bool:
    """Whether the audit tells of a mark on a backup that is not there, so that only the audit can take it back."""
    area = repository.source(source)
    audit = AuditLog(repository.storage)
    found = lost_marks(area, _records(audit, source), primary=audit.url)
    return any(finding.subject == area.layout.expiry(label) for finding in found)
