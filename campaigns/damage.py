"""Damage: one random change to the stored bytes at a time; what notices it, and what a restore makes of it.

The trial's repository is the sample with one object changed, cut, exchanged, doubled or gone. Then everybody who reads
it is asked: verification of each backup, the audit's chain against the hash that was kept elsewhere, and the reader of
each kind of object. Last, the backups are planned and laid down, and WAL is fetched as recovery would.

What counts: `detected` if anybody said so. `harmless` if nobody did, and every answer and every restored byte is what
it was. `transient` if a lease or the tail of the open segment is gone without a trace, and no other answer changed:
both end by themselves within minutes, and docs/reliability.md says what their loss can cost. `unseen` if nobody did and
any other answer changed. `wrong` if a restore gave other bytes than were backed up, and `defect` if a reader failed
otherwise than with an error of ours.
"""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from campaigns.sample import NOON, SOURCE, Sample
from seawall import restore, traces, verify
from seawall.audit import AuditLog
from seawall.errors import SeawallError
from seawall.events import Observer
from seawall.keys import KeyRing
from seawall.model import BackupLabel, RecoveryTarget, SealingMode
from seawall.postgres.binaries import Account
from seawall.repository import Repository, SourceArea, documents, lease
from seawall.repository.evidence import Evidence
from seawall.restore import lay, tree
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

LATER = NOON + timedelta(hours=3)
VERDICTS = ("detected", "harmless", "transient", "unseen", "wrong", "defect")

_KINDS = (
    ("repository identity", r"seawall(-copy)?\.json"),
    ("recovery script", r"recover-[0-9a-f]{12}\.py"),
    ("audit record", r"audit/.*"),
    ("probe", r"probes/.*"),
    ("lease", r"leases/.*"),
    ("source identity", r".*/identity/.*"),
    ("wrapped key", r".*/keys/.*"),
    ("bundle", r".*/bundles/.*"),
    ("list of objects", r".*/objects\.json"),
    ("head", r".*/head\.json"),
    ("manifest copy", r".*/manifest\.copy"),
    ("manifest", r".*/manifest"),
    ("block map", r".*/blocks"),
    ("claim", r".*\.claim\.json"),
    ("history", r".*\.history"),
    ("partial", r".*\.partial"),
    ("tail", r".*\.tail-[0-9A-F]{16}"),
    ("segment", r".*/wal/.*"),
    ("list of WAL", r".*/wal-lists/.*"),
    ("hold", r".*/holds/.*"),
    ("mark", r".*/expired/.*"),
)


def kind_of(name: str) -> str:
    """What an object is, by its name."""
    return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, name)), "other")


Content = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Damage:
    """One change: how, to what, and a sentence for whoever repeats it."""

    how: str
    name: str
    sentence: str
    content: Mapping[str, bytes] = field(repr=False)

    @property
    def kind(self) -> str:
        return kind_of(self.name)


# ---- the changes


def flip(data: bytes, randomness: random.Random) -> bytes:
    """One to three bits, anywhere."""
    changed = bytearray(data)
    for _ in range(randomness.choice((1, 1, 1, 2, 3))):
        changed[randomness.randrange(len(changed))] ^= 1 << randomness.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, randomness: random.Random) -> bytes:
    """A run of up to a sector, with zeros or with noise."""
    length = min(len(data), randomness.choice((1, 16, 512)))
    at = randomness.randrange(len(data) - length + 1)
    new = bytes(length) if randomness.random() < 0.5 else randomness.randbytes(length)
    return data[:at] + new + data[at + length :]


def truncate(data: bytes, randomness: random.Random) -> bytes:
    return data[: randomness.choice((0, len(data) - 1, randomness.randrange(len(data))))]


def cut(data: bytes, randomness: random.Random) -> bytes:
    """A piece out of the middle, so that what follows moves."""
    at = randomness.randrange(len(data))
    return data[:at] + data[at + randomness.randint(1, min(4096, len(data))) :]


def lengthen(data: bytes, randomness: random.Random) -> bytes:
    tail = data[-randomness.randint(1, len(data)) :] if randomness.random() < 0.5 else randomness.randbytes(16)
    return data + tail


_CHANGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip, "overwrite": overwrite, "truncate": truncate, "cut": cut, "lengthen": lengthen,
}  # fmt: skip
WAYS = (*_CHANGES, "drop", "swap", "duplicate", "stray")


def draw(content: Content, how: str, kind: str, randomness: random.Random) -> Damage | None:
    """A random damage of that way to an object of that kind; None if it would change nothing."""
    name = randomness.choice(sorted(name for name in content if kind_of(name) == kind))
    damaged = dict(content)
    if how in _CHANGES:
        damaged[name] = _CHANGES[how](content[name], randomness)
        sentence = f"{how} {name}"
    elif how == "drop":
        del damaged[name]
        sentence = f"drop {name}"
    elif how == "stray":
        stray = _stray(name, randomness)
        if stray in content:
            return None
        damaged[stray] = content[name]
        sentence = f"copy {name} to {stray}"
    else:
        other = _other(content, name, randomness)
        damaged[name] = content[other]
        if how == "swap":
            damaged[other] = content[name]
        sentence = f"{how} {name} with {other}"
    return None if damaged == content else Damage(how, name, sentence, damaged)


def _other(content: Content, name: str, randomness: random.Random) -> str:
    """Another object, three times in four of the same kind."""
    alike = sorted(other for other in content if other != name and kind_of(other) == kind_of(name))
    return randomness.choice(alike if alike and randomness.random() < 0.75 else sorted(set(content) - {name}))


def _stray(name: str, randomness: random.Random) -> str:
    """A name of the same form that is free: the next number, another label, another segment."""
    digits = [match for match in re.finditer(r"[0-9A-F]+", name) if not match[0].isalpha()]
    if not digits:
        return f"{name}.copy"
    match = randomness.choice(digits)
    last = match.end() - 1
    number = (int(name[last], 16) + randomness.randint(1, 8)) % (10 if name[last].isdigit() else 16)
    return f"{name[:last]}{number:X}{name[last + 1 :]}"


# ---- what anybody sees


@dataclass
class Seen:
    """The answers of everybody who reads a repository.

    Args:
        told: who said that something is wrong, and with which code.
        view: the other answers.
        restored: labels that were laid down, with the bytes that were backed up; `refused` the others.
    """

    told: dict[str, str] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def changed(self, whole: Seen) -> set[str]:
        """Who gave another answer than when nothing was damaged."""
        everybody = self.view.keys() | whole.view.keys()
        return {who for who in everybody if self.view.get(who) != whole.view.get(who)}

    def ask(self, who: str, question: Callable[[], Any]) -> None:
        try:
            self.view[who] = question()
        except SeawallError as error:
            self.told[who] = error.code
        except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
            self.defects.append(f"{who}: {type(error).__name__}: {error}")


def _ends_by_itself(damage: Damage, changed: AbstractSet[str]) -> bool:
    """Whether what was dropped is a lease or a tail, and only the answers about that one are others.

    Without a tail, a restore that goes as far as it can ends where the last whole segment does.
    """
    if damage.kind == "lease":
        return changed == {"lease"}
    own = f"WAL {damage.name.rsplit('/', 1)[1].partition('.')[0]}.tail"
    return damage.kind == "tail" and all(who == own or who.startswith("plan ") for who in changed)


class Examiner:
    """Asks everybody about one repository after the other.

    Args:
        into: a directory for restores; best in memory.
    """

    def __init__(self, sample: Sample, ring: KeyRing, into: Path) -> None:
        self.sample, self._ring, self._into = sample, ring, into
        self.content = sample.content()
        self._moments = {stat.name: stat.modified_at for stat in sample.storage.list()}
        self._account = Account(into.stat().st_uid, into.stat().st_gid, "campaign", into)
        self.whole = self.examine(self.content)
        if self.whole.told or self.whole.defects or self.whole.wrong or self.whole.refused:
            raise AssertionError(f"the sample itself is not whole: {self.whole}")

    def verdict(self, damage: Damage) -> tuple[str, Seen]:
        seen = self.examine(damage.content)
        if seen.defects:
            return "defect", seen
        if seen.wrong:
            return "wrong", seen
        if seen.told:
            return "detected", seen
        changed = seen.changed(self.whole)
        if not changed:
            return "harmless", seen
        return ("transient" if damage.how == "drop" and _ends_by_itself(damage, changed) else "unseen"), seen

    def examine(self, content: Mapping[str, bytes]) -> Seen:
        seen, storage = Seen(), self._stored(content)
        seen.ask("repository", lambda: Repository.open(storage).id)
        seen.ask("audit", lambda: self._audit(storage, seen))
        area = SourceArea(storage, SOURCE)
        seen.ask("identity", area.identity)
        seen.ask("holds", lambda: area.holds(LATER))
        seen.ask("lease", lambda: lease.newest(storage, area.layout))
        seen.ask("marks", lambda: _documents(storage, area.layout.expired))
        self._prove_all(storage, seen)
        seen.ask("traces", lambda: self._traces(storage, seen))
        seen.ask("labels", lambda: area.labels(with_expired=True))
        for label in sorted({*self.sample.labels, *seen.view.get("labels", ())}):
            seen.ask(f"verify {label}", lambda label=label: self._verify(area, label, seen))  # type: ignore[misc] # default binds the loop's value
        seen.ask("histories", area.wal.histories)
        seen.ask("stored-WAL", area.wal.names)
        for name in sorted({*self.sample.wal, *seen.view.get("stored-WAL", ())}):
            seen.ask(f"WAL {name}", lambda name=name: self._wal(area, name, seen))  # type: ignore[misc] # as above
        for label in self.sample.labels[1:]:
            # The first one is marked as expired, and not offered any more.
            self._restore(storage, label, seen)
        return seen

    def _stored(self, content: Mapping[str, bytes]) -> MemoryStorage:
        current = [LATER]
        storage = MemoryStorage(clock=lambda: current[0])
        for name, data in content.items():
            current[0] = self._moments.get(name, LATER)
            storage.put(name, [data])
        current[0] = LATER
        return storage

    def _prove_all(self, storage: MemoryStorage, seen: Seen) -> None:
        """Ask the repository itself about each of its objects."""
        # Opening WAL costs a process of gpg for each object in mode openpgp; `_wal` does that once already.
        evidence = Evidence([storage], None if self.sample.mode is SealingMode.OPENPGP else self._ring)
        for stat in storage.list():
            if evidence.can_tell(stat.name):
                seen.ask("objects", lambda name=stat.name: evidence.refuse_damaged(name, storage.get(name)))  # type: ignore[misc] # default binds the loop's value

    def _traces(self, storage: MemoryStorage, seen: Seen) -> int:
        """What `seawall verify --all` asks beside the backups."""
        found = traces.examine(Repository.open(storage), SOURCE, now=LATER, observe=Observer())
        for finding in found:
            seen.told["traces"] = finding.code
        return len(found)

    def _audit(self, storage: MemoryStorage, seen: Seen) -> tuple[int, str]:
        found = AuditLog(storage).verify()
        if found != self.sample.audited:
            seen.told["audit"] = "not the hash that was kept"
        return found

    def _verify(self, area: SourceArea, label: BackupLabel, seen: Seen) -> object:
        verdict = verify.check(area, label, self._ring, now=LATER, observe=Observer(), workers=1)
        for finding in verdict.findings:
            seen.told[f"verify {label}"] = finding.code
        return verdict.reached

    def _wal(self, area: SourceArea, name: str, seen: Seen) -> str:
        if name.endswith(".tail"):
            found = area.wal.fetch_tail(Segment.parse(name[:24], 1 << 20), self._ring)
            fetched = found[1] if found else None
        else:
            fetched = area.wal.fetch(name, self._ring)
        if fetched is not None and fetched != self.sample.wal.get(name):
            seen.wrong.append(f"WAL {name}")
        return "none" if fetched is None else "whole"

    def _restore(self, storage: MemoryStorage, label: BackupLabel, seen: Seen) -> None:
        place = self._into / "restored"
        try:
            repository = Repository.open(storage)
            plan = restore.plan(repository, SOURCE, RecoveryTarget(), place, label=label, now=LATER)
            area = repository.source(SOURCE)
            lay.lay(plan, area, self._ring, self._account, workers=1, observe=Observer())
            tree.reveal_control(place)
            seen.view[f"plan {label}"] = (plan.wal_end, plan.wal_last, plan.history)
            (seen.restored if files_laid(place) == as_laid(self.sample.expected[label]) else seen.wrong).append(
                f"restore {label}"
            )
        except SeawallError as error:
            seen.told.setdefault(f"restore {label}", error.code)
            seen.refused.append(f"restore {label}")
        except Exception as error:  # noqa: BLE001 - finding such failures is what this is for
            seen.defects.append(f"restore {label}: {type(error).__name__}: {error}")
        finally:
            for left in self._into.glob("restored*"):
                shutil.rmtree(left)


def _documents(storage: MemoryStorage, prefix: str, suffix: str = ".json") -> dict[str, Any]:
    names = [stat.name for stat in storage.list(prefix) if stat.name.endswith(suffix)]
    return {name: documents.get(storage, name) for name in names}


def as_laid(content: Content) -> dict[str, bytes]:
    """A backup's files by the paths at which `files_laid` finds them."""
    return {path.removeprefix("pg_tblspc/16400/"): data for path, data in content.items()}


def files_laid(place: Path) -> dict[str, bytes]:
    """What was laid down, its tablespace too, without what the restore itself adds."""
    own = {"backup_label", "tablespace_map", ".seawall-restore.json"}
    roots = [root for root in place.parent.glob("restored*") if root.is_dir()]
    found = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                name = str(path.relative_to(root))
                found[re.sub(r"^16400/", "", name)] = path.read_bytes()
    return {name: data for name, data in found.items() if name not in own}


# ---- the campaign


@dataclass
class Tally:
    """How many trials ended how, by kind of object and way of damage; and those that a person should look at."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    readers: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    restored: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, damage: Damage, verdict: str, seen: Seen) -> None:
        self.counts[damage.kind, damage.how, verdict] += 1
        self.refused += bool(seen.refused)
        self.restored += not seen.refused
        if seen.told:
            self.readers[_first_word(seen.told)] += 1
        if verdict in ("wrong", "defect"):
            self.examples.append(f"{verdict}: {damage.sentence}: {seen.wrong or seen.defects}")
        if verdict == "unseen":
            self.examples.append(f"unseen: {damage.sentence}")

    def total(self, verdict: str = "", what: str = "") -> int:
        """How many trials, of one verdict, of one kind of object or way of damage."""
        return sum(
            count
            for key, count in self.counts.items()
            if (not verdict or key[2] == verdict) and (not what or what in key[:2])
        )

    def unnoticed_changes(self) -> Counter[str]:
        """Kinds of objects whose bytes were changed, exchanged or cut without anybody's notice."""
        found: Counter[str] = Counter()
        for (kind, how, verdict), count in self.counts.items():
            if verdict != "detected" and how not in ("drop", "stray"):
                found[kind] += count
        return found


def _first_word(told: Mapping[str, str]) -> str:
    """Who is named as the one that noticed: verification before everybody else."""
    return min((who.split(" ")[0] for who in told), key=lambda who: (who != "verify", who))


def trials(sample: Sample, number: int, seed: int) -> Iterator[Damage]:
    """So many damages, every kind of object and every way in turn."""
    randomness, content = random.Random(seed), sample.content()
    kinds = sorted({kind_of(name) for name in content})
    pairs = [(kind, how) for kind in kinds for how in WAYS]
    randomness.shuffle(pairs)
    made = 0
    while made < number:
        for kind, how in pairs:
            damage = draw(content, how, kind, randomness)
            if damage is not None and made < number:
                made += 1
                yield damage


def run(sample: Sample, ring: KeyRing, into: Path, number: int, seed: int) -> Tally:
    """The campaign over one sample."""
    examiner, tally = Examiner(sample, ring, into), Tally()
    for damage in trials(sample, number, seed):
        tally.add(damage, *examiner.verdict(damage))
    return tally
