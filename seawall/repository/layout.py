"""Where everything lies in a repository: the names of objects, and nothing else.

The tree is documented in docs/repository-format.md, section "Layout". Names are never reused, so objects are
never overwritten and "the newest" is found by listing.
"""

from __future__ import annotations

from seawall.errors import NameRefused
from seawall.model import BackupLabel, checked_name
from seawall.wal import Segment

FORMAT = 1
IDENTITY = "seawall.json"
# The same under another name: without either, nobody could say whose objects these are.
IDENTITY_COPY = "seawall-copy.json"
# Where locked bytes cannot be replaced, a sound copy of the object lies under this prefix in the same location.
REPAIRS = "repairs/"
_TAIL_MARK = ".tail-"


def recovery_script(sha256: str) -> str:
    return f"recover-{sha256[:12]}.py"


def is_tail(name: str) -> bool:
    """Whether an object is the durable beginning of an open segment, which a longer one or the segment supersedes."""
    return _TAIL_MARK in name


class SourceLayout:
    """Names below one source's prefix.

    Args:
        source: a name that `model.checked_name` admits.
    """

    def __init__(self, source: str) -> None:
        self.source = checked_name(source, what="source name")
        self.root = f"sources/{source}/"
        self.backups = f"{self.root}backups/"
        self.identities = f"{self.root}identity/"
        self.keys = f"{self.root}keys/"
        self.wal = f"{self.root}wal/"
        self.histories = f"{self.root}wal/history/"
        self.wal_lists = f"{self.root}wal-lists/"
        self.holds = f"{self.root}holds/"
        self.expired = f"{self.root}expired/"
        self.leases = f"leases/{source}/"

    def identity(self, number: int) -> str:
        return f"{self.identities}{number:04d}.json"

    def key(self, key_id: str, generation: int) -> str:
        return f"{self.keys}{key_id}/{generation:04d}.json"

    def backup(self, label: BackupLabel) -> str:
        return f"{self.backups}{label}/"

    def head(self, label: BackupLabel) -> str:
        return f"{self.backup(label)}head.json"

    def objects(self, label: BackupLabel) -> str:
        return f"{self.backup(label)}objects.json"

    def manifest(self, label: BackupLabel) -> str:
        return f"{self.backup(label)}manifest"

    def manifest_copy(self, label: BackupLabel) -> str:
        return f"{self.backup(label)}manifest.copy"

    def bundle(self, label: BackupLabel, number: int, token: str) -> str:
        return f"{self.backup(label)}bundles/{number:08d}-{token}"

    def blocks(self, label: BackupLabel) -> str:
        return f"{self.backup(label)}blocks"

    def is_own(self, name: str, label: BackupLabel) -> bool:
        """Whether an object bears that backup's name, and not that of an earlier one or of an attempt."""
        return name.startswith(self.backup(label))

    def is_new(self, name: str, label: BackupLabel, prior: str) -> bool:
        """Whether an object was stored for that backup: by itself, or by an attempt after its prior that it resumed.

        Args:
            prior: the label that it builds on; empty for a full backup.

        Raises:
            NameRefused: it is no object of a backup of this source.
        """
        if self.is_own(name, label) or not prior:
            return True
        return self.label_of(name).begun_at > BackupLabel.parse(prior).begun_at

    def label_of(self, name: str) -> BackupLabel:
        """The backup whose object this is.

        Raises:
            NameRefused: it is no object of a backup of this source.
        """
        if not name.startswith(self.backups):
            raise NameRefused(f"{name!r} is no object of a backup of {self.source}")
        return BackupLabel.parse(name.removeprefix(self.backups).partition("/")[0])

    def logical(self, name: str) -> str:
        """The name sealed into an object: the same in every location that holds a copy of it."""
        return name.removeprefix("sources/")

    def segment(self, name: str) -> str:
        return f"{self.wal}{name[:8]}/{name[:16]}/{name}"

    def history(self, timeline: int) -> str:
        return f"{self.histories}{timeline:08X}.history"

    def partial(self, name: str) -> str:
        return f"{self.segment(name)}.partial"

    def tail(self, segment: Segment, end: int) -> str:
        return f"{self.segment(segment.name)}{_TAIL_MARK}{end:016X}"

    def hold(self, hold_id: str) -> str:
        return f"{self.holds}{hold_id}.json"

    def hold_release(self, hold_id: str) -> str:
        return f"{self.holds}{hold_id}.released.json"

    def expiry(self, label: BackupLabel) -> str:
        return f"{self.expired}{label}.json"

    def lease(self, token: int) -> str:
        return f"{self.leases}{token:012d}.json"

    def lease_renewal(self, token: int, number: int) -> str:
        return f"{self.leases}{token:012d}.r{number:06d}.json"

    def lease_end(self, token: int) -> str:
        return f"{self.leases}{token:012d}.released.json"
