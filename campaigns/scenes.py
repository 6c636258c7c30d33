"""Scenes that victims die in: a repository on disk with its keys, and for some of them a server that is backed up."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from campaigns import sample
from campaigns.victims import Scene
from seawall.model import Compression, SealingMode
from seawall.postgres.binaries import Account, find
from seawall.postgres.instance import Instance, free_port
from seawall.repository import Repository
from seawall.storage.local import LocalStorage

_MEMORY = Path("/dev/shm")  # noqa: S108 - the file system in memory of every Linux; not a place for secrets of others
_PLENTY_BYTES = 4 << 30
SERVER = {
    "fsync": "off", "autovacuum": "off", "shared_buffers": "16MB", "max_wal_senders": "6", "wal_keep_size": "512MB",
    "checkpoint_timeout": "1h", "max_wal_size": "2GB",
}  # fmt: skip


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory for a campaign, in memory where there is plenty; everybody may enter, because servers must."""
    spacious = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _PLENTY_BYTES
    place = Path(tempfile.mkdtemp(prefix="seawall-campaign-", dir=_MEMORY if spacious else None))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def make_keys(home: Path) -> None:
    """A key ring that each scene of a campaign shares."""
    with sample.make_ring(home / "ring"):
        pass


def still(home: Path, keys: Path, mode: SealingMode, seed: int) -> tuple[Scene, sample.Sample]:
    """A sample repository on disk, and no server."""
    scene = _scene(home, keys, mode)
    with sample.QuickRing(home / "ring") as ring:
        # Old enough that what it marked may go.
        noon = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
        made = sample.make(ring, mode, Compression.LZ4, seed, noon=noon)
    storage = LocalStorage(scene.place)
    for name, data in made.content().items():
        storage.put(name, [data])
    age(scene.place, timedelta(hours=3))
    return scene, made


def _scene(home: Path, keys: Path, mode: SealingMode, conninfo: str = "") -> Scene:
    home.mkdir(mode=0o755, exist_ok=True)
    for name in ("repository", "spool", "temporary"):
        (home / name).mkdir(exist_ok=True)
    (home / "ring").symlink_to(keys / "ring")
    return Scene(home, conninfo, mode)


def copied(scene: Scene, home: Path) -> Scene:
    """The same scene as it was made, for one more trial."""
    subprocess.run(["cp", "-a", str(scene.home), str(home)], check=True)
    return Scene(home, scene.conninfo, scene.mode, scene.copy_mode)


@contextmanager
def live(home: Path, keys: Path, mode: SealingMode, major: int = 18) -> Iterator[tuple[Scene, Instance]]:
    """A running cluster of some tens of megabytes, with an empty repository beside it."""
    account = Account.for_servers()
    cluster = home / "cluster"
    cluster.mkdir(mode=0o755, parents=True)
    account.own(cluster)
    instance = Instance(cluster / "data", find(major), account)
    # Segments of 1 MiB: sixteen times as many boundaries for the same bytes.
    instance.initdb(["--wal-segsize=1"])
    instance.start(free_port(), SERVER)
    try:
        with instance.connect() as session:
            session.execute("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 20000) AS n")
        scene = _scene(home / "scene", keys, mode, instance.conninfo)
        Repository.create(LocalStorage(scene.place), now=datetime.now(UTC))
        yield scene, instance
    finally:
        instance.stop("immediate")


def age(root: Path, by: timedelta, only: Callable[[Path], bool] = lambda _path: True) -> None:
    """Make files older, as waiting would: by the storage's clock, by which leases end and garbage is collected."""
    for path in root.rglob("*"):
        if path.is_file() and only(path):
            moment = time.time() - by.total_seconds()
            os.utime(path, (moment, moment), follow_symlinks=False)


def until(condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
    """Wait for a condition, and say what did not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.02)


def spread(count: int, points: int) -> Sequence[int]:
    """So many numbers from 1 to `count`, evenly apart, or all of them."""
    if points >= count:
        return range(1, count + 1)
    return sorted({round(1 + step * (count - 1) / max(points - 1, 1)) for step in range(points)})
