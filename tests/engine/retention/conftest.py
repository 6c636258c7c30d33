"""Heads of backups that never were, for decisions that only look at heads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from seawall.model import (
    BackupKind,
    BackupLabel,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    SealingMode,
)
from seawall.wal import Lsn

MakeHead = Callable[..., Head]


def head_of(
    stopped_at: datetime,
    *,
    kind: BackupKind = BackupKind.FULL,
    prior: Head | None = None,
    health: Health = Health.GOOD,
    segment: int = 0,
    stored_bytes: int = 50,
) -> Head:
    base = None
    if kind is not BackupKind.FULL and prior is not None:
        base = prior.label.base_begun_at or prior.label.begun_at
    begun = stopped_at.replace(microsecond=0)
    return Head(
        label=BackupLabel(begun, kind, base), source="shop", kind=kind, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7, 18, (1,)), server_version=180006, timeline=1, start_lsn=Lsn(segment << 24),
        stop_lsn=Lsn((segment + 1) << 24), segment_bytes=1 << 24, began_at=begun - timedelta(minutes=5),
        ended_at=stopped_at, stopped_at=stopped_at, plain_bytes=100, stored_bytes=stored_bytes, file_count=1,
        object_count=1, compression=Compression.ZSTD, sealing=SealingMode.NONE, key_id="", manifest_sha256="0" * 64,
        manifest_bytes=10, health=health, prior="" if prior is None else str(prior.label),
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_head() -> MakeHead:
    """Makes the head of a set that stopped at a moment; an incremental or differential builds on `prior`."""
    return head_of
