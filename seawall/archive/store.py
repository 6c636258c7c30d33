"""What the archive needs of a source's part of a repository; `seawall.repository.SourceArea` is one."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

from seawall.model import ClusterIdentity
from seawall.storage.base import Bytes
from seawall.wal import Lsn, Segment, TimelineHistory

if TYPE_CHECKING:
    from seawall.keys import KeyRing
    from seawall.repository import Sealing

Put = Literal["stored", "identical"]


class WalStore(Protocol):
    """WAL of one source; see `seawall.repository.WalArea` for what each promises."""

    def names(self, timeline: int | None = None) -> frozenset[str]: ...

    def stored(self, name: str) -> bool: ...

    def histories(self) -> dict[int, TimelineHistory]: ...

    def tails(self, segment: Segment) -> tuple[Lsn, ...]: ...

    def put_segment(self, name: str, data: Bytes, sealing: Sealing) -> Put: ...

    def put_history(self, name: str, data: bytes, sealing: Sealing) -> Put: ...

    def put_partial(self, name: str, data: Bytes, sealing: Sealing) -> Put: ...

    def put_tail(self, segment: Segment, end: Lsn, data: Bytes, sealing: Sealing) -> Put: ...

    def write_list(self) -> None: ...

    def forget_tails(self, segment: Segment) -> None: ...

    def fetch(self, name: str, ring: KeyRing) -> bytes: ...

    def fetch_tail(self, segment: Segment, ring: KeyRing) -> tuple[Lsn, bytes] | None: ...


class Area(Protocol):
    """One source in a repository."""

    @property
    def name(self) -> str: ...

    @property
    def wal(self) -> WalStore: ...

    def identity(self) -> ClusterIdentity | None: ...

    def claim(self, identity: ClusterIdentity, now: datetime) -> None: ...
