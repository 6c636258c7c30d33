"""A repository in memory, segments that look like PostgreSQL's, and an agent on a socket."""

# Pytest hands fixtures over by name:
# ruff: noqa: PLR0917

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from seawall.archive.agent import Agent
from seawall.keys import KeyRing
from seawall.model import Compression, SealingMode
from seawall.repository import Repository, Sealing, SourceArea
from seawall.storage.memory import MemoryStorage
from seawall.wal import Segment

SYSTEM = 7_500_000_000_000_000_001
SMALL = 1 << 20  # the smallest segment PostgreSQL knows


@pytest.fixture
def wal_bytes() -> Callable[..., bytes]:
    """A segment's bytes: a true long page header (xlog_internal.h), then noise that its name determines."""

    def make(
        name: str,
        *,
        system: int = SYSTEM,
        magic: int = 0xD118,
        timeline: int | None = None,
        seed: str = "",
        size: int = SMALL,
    ) -> bytes:
        segment = Segment.parse(name[:24], size)
        header = struct.pack(
            "<HHIQI4xQII", magic, 2, timeline or segment.timeline, segment.start.value, 0, system, size, 8192
        )
        filler = (name + seed).encode() * (size // 24)
        return (header + filler)[:size]

    return make


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[KeyRing]:
    with KeyRing(tmp_path / "ring") as opened:
        yield opened


@pytest.fixture
def sealing(ring: KeyRing) -> Sealing:
    return Sealing(SealingMode.NONE, Compression.LZ4, 1, (), ring)


@pytest.fixture
def area() -> SourceArea:
    return Repository.create(MemoryStorage(), now=datetime.now(UTC)).source("shop")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A data directory with nothing but pg_wal in it."""
    directory = tmp_path / "data"
    (directory / "pg_wal" / "archive_status").mkdir(parents=True)
    return directory


@pytest.fixture
def ready(cluster: Path, wal_bytes: Callable[..., bytes]) -> Callable[..., Path]:
    """Lays a file into pg_wal and marks it ready to be archived."""

    def make(name: str, data: bytes | None = None) -> Path:
        path = cluster / "pg_wal" / name
        path.write_bytes(wal_bytes(name) if data is None else data)
        (cluster / "pg_wal" / "archive_status" / f"{name}.ready").touch()
        return path

    return make


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def agent_for(
    area: SourceArea, sealing: Sealing, ring: KeyRing, tmp_path: Path, socket_path: Path, cluster: Path
) -> Callable[..., Agent]:
    def make(**options: object) -> Agent:
        chosen = {"data_directory": cluster, "gap_patience_seconds": 0.1, **options}
        return Agent(
            chosen.pop("area", area),  # type: ignore[arg-type]
            chosen.pop("sealing", sealing),  # type: ignore[arg-type]
            chosen.pop("ring", ring),  # type: ignore[arg-type]
            tmp_path / "spool",
            socket_path,
            **chosen,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def eventually() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_at
            time.sleep(0.01)

    return wait


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Every descriptor that a test opened is closed again."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting names, no paths
    yield
    give_up_at = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > before:  # noqa: PTH208 - counting names, no paths
        assert time.monotonic() < give_up_at, "descriptors were left open"
        time.sleep(0.01)
