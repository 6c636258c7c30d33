"""recover.py restores with nothing of Seawall installed: every sealing mode, every codec, and a server that starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seawall import standalone
from seawall.errors import StorageUnreachable
from seawall.model import BackupKind, BackupLabel, Compression, Head, SealingMode
from seawall.repository import Repository
from seawall.storage.faulty import Fault, Faulty, Trouble
from seawall.wal import Segment

if TYPE_CHECKING:
    Site = Any

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROWS = "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t"
SCRIPT = Path(standalone.__file__).with_name("recover.py")


@dataclass
class Recovery:
    """Runs the script as somebody would who has a repository, a key, and an ordinary Linux system."""

    site: Site
    gnupg_home: Path
    rows: Callable[..., list[tuple[object, ...]]]

    def __call__(self, *more: str, into: Path | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
        arguments = ["--repository", str(self.site.home / "repository"), "--gnupg-home", str(self.gnupg_home)]
        arguments += ["--passphrase-file", str(self.site.ring.home.parent / "passphrase")]
        arguments += ["--source", "shop", "--into", str(into)] if into else []
        script = self.site.repository.install_recovery_script(SCRIPT.read_text())
        done = subprocess.run(
            ["/usr/bin/python3", "-I", str(self.site.home / "repository" / script), *arguments, *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"},
        )
        assert (done.returncode == 0) == ok, f"{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    @contextmanager
    def start(self, into: Path) -> Iterator[Any]:
        """Start what was restored, as the account that the directory is given to, and wait until it has replayed."""
        spaces = into.with_name(f"{into.name}.tablespaces")
        for place in (into, into.with_name(f"{into.name}.wal"), *([spaces] if spaces.exists() else [])):
            owner = f"{self.site.account.uid}:{self.site.account.gid}"
            subprocess.run(["chown", "-R", owner, str(place)], check=True)
        with self.site.running(into) as instance:
            replaying = "SELECT pg_is_in_recovery()"
            self.site.until(lambda: self.rows(instance, replaying) == [(False,)], "the end of recovery")
            yield instance


@pytest.fixture(scope="module")
def gnupg_home(ring: Any) -> Iterator[Path]:
    """An ordinary GnuPG home with the escrow key's owner's keys; its agent is ended with it."""
    home = ring.home.parent / "gnupg"
    home.mkdir(mode=0o700)
    options = ["--batch", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback"]
    options += ["--passphrase-file", str(ring.home.parent / "passphrase")]
    for key in ring.list():
        subprocess.run(
            ["gpg", *options, "--import"],
            input=ring.export_secret(key.fingerprint),
            text=True,
            check=True,
            capture_output=True,
        )
    yield home
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def cluster(sites: Any) -> Iterator[Any]:
    """One small cluster that all repositories of the matrix protect."""
    with sites.site(18) as site:
        site.query("CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 3000) AS n")
        site.stop_receiving()
        yield site


# Each mode and each codec at least once; their other combinations are repetitions.
_CHOSEN = (("none", "zstd"), ("aes-256-gcm", "lz4"), ("aes-256-gcm", "none"), ("openpgp", "gzip"))


def _matrix() -> Iterator[Any]:
    for mode in SealingMode:
        for codec in Compression:
            marks = () if (mode, codec) in _CHOSEN else (pytest.mark.repeats,)
            yield pytest.param((mode, codec), marks=marks, id=f"{mode}-{codec}")


@pytest.fixture(params=list(_matrix()))
def sealed_site(request: pytest.FixtureRequest, cluster: Site, sites: Any, sealed_with: Callable[..., Any]) -> Site:
    """Another repository for the cluster, sealed in its own way."""
    mode, codec = request.param
    home = cluster.home / f"{mode}-{codec}"
    home.mkdir()
    home.chmod(0o755)
    site = sites.beside(cluster.instance, home, sealed_with(mode, codec))
    site.slot = f"matrix_{mode.name.lower()}_{codec}"
    return site


def test_the_script_restores_what_any_mode_and_codec_sealed(
    sealed_site: Site, gnupg_home: Path, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    site = sealed_site
    site.query("DELETE FROM t WHERE n = 0", "DROP TABLE IF EXISTS added")
    site.receive()
    try:
        attempt = _fail(site)
        full = site.backup()
        assert any(f"/{attempt}/" in stored.name for stored in site.area.stored_objects(full.label))
        site.query("UPDATE t SET x = 'changed' WHERE n < 10", "CREATE TABLE added AS SELECT 1 AS n")
        built = site.backup(BackupKind.INCREMENTAL)
        assert built.prior == str(full.label)
        assert built.stored_bytes < full.stored_bytes / 2
        site.query("INSERT INTO t SELECT n, 'after' FROM generate_series(1, 100) AS n")
        expected = site.query(ROWS)
        site.ship()
        # What was written into the open segment is there, too.
        site.query("INSERT INTO t VALUES (0, 'in the open segment')")
        open_segment = site.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        site.until(lambda: site.area.wal.tails(Segment.parse(open_segment)), "the open segment's tail")
    finally:
        site.stop_receiving()
        site.query(f"SELECT pg_drop_replication_slot('{site.slot}')")
    recover = Recovery(site, gnupg_home, rows)
    into = site.place("recovered")
    recover(into=into)
    with recover.start(into) as instance:
        ((count, digest),) = rows(instance, "SELECT count(*), md5(string_agg(x, '' ORDER BY n)) FROM t WHERE n > 0")
        assert [(count, digest)] == expected
        assert rows(instance, "SELECT x FROM t WHERE n = 0") == [("in the open segment",)]
        assert rows(instance, "SELECT n FROM added") == [(1,)]
    assert not list(into.rglob("*seawall*"))


def _fail(site: Site) -> BackupLabel:
    """Lose the storage in the middle of a backup, so that the next one resumes it; its label."""
    storage = Faulty(site.storage, [Fault(Trouble.FAIL_BEFORE, "put", "*/bundles/*", skip=2, times=0)])
    with pytest.raises(StorageUnreachable):
        replace(site, storage=storage, repository=Repository.open(storage)).backup()
    return site.area.begun()[-1]


@dataclass
class Story:
    recover: Recovery
    first: Head
    last: Head
    target: str
    at_target: list[tuple[object, ...]]
    latest: list[tuple[object, ...]]
    middle: Segment


@pytest.fixture(scope="module")
def story(site: Site, gnupg_home: Path, rows: Callable[..., list[tuple[object, ...]]]) -> Story:
    """On each version: a tablespace, two backups, a time between writes, and a segment in the middle of the WAL."""
    space = site.home / "space"
    space.mkdir(mode=0o700)
    site.account.own(space)
    site.query(f"CREATE TABLESPACE space LOCATION '{space}'")
    site.query("CREATE TABLE t TABLESPACE space AS SELECT n, md5(n::text) AS x FROM generate_series(1, 20000) AS n")
    first = site.backup()
    site.query("INSERT INTO t SELECT n, 'more' FROM generate_series(1, 100) AS n")
    middle = site.ship()
    last = site.backup()
    site.query("INSERT INTO t SELECT n, 'wanted' FROM generate_series(1, 100) AS n")
    target = str(site.value("SELECT clock_timestamp()"))
    at_target = site.query(ROWS)
    site.query("SELECT pg_sleep(0.05)", "DELETE FROM t WHERE n % 2 = 0")
    latest = site.query(ROWS)
    site.ship()
    return Story(Recovery(site, gnupg_home, rows), first, last, target, at_target, latest, middle)


def test_the_script_lists_what_there_is(story: Story) -> None:
    shown = story.recover("--list").stdout
    assert str(story.first.label) in shown
    assert str(story.last.label) in shown


@pytest.mark.parametrize("which", ["first", "last"])
def test_the_script_stops_at_the_asked_time_with_tablespaces_beside_the_data(
    story: Story, which: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    into = story.recover.site.place("recovered")
    label = {"first": story.first, "last": story.last}[which].label
    story.recover("--target-time", story.target, "--label", str(label), into=into)
    with story.recover.start(into) as instance:
        assert rows(instance, ROWS) == story.at_target
        ((place,),) = rows(instance, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'")
    assert str(place).startswith(f"{into}.tablespaces/")


def test_the_script_replays_everything_when_no_time_is_named(
    story: Story, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    into = story.recover.site.place("recovered")
    story.recover(into=into)
    with story.recover.start(into) as instance:
        assert rows(instance, ROWS) == story.latest


def test_the_script_refuses_what_it_cannot_do_in_a_sentence(story: Story, tmp_path: Path) -> None:
    place = story.recover.site.place
    assert "no backup" in story.recover("--target-time", "2020-01-01 00:00:00Z", into=place("early"), ok=False).stderr
    assert "offset" in story.recover("--target-time", "2026-11-23 14:00:00", into=place("vague"), ok=False).stderr
    assert "exists already" in story.recover(into=tmp_path, ok=False).stderr
    assert "--source and --into" in story.recover(ok=False).stderr
    stranger = Recovery(story.recover.site, tmp_path, story.recover.rows)
    tmp_path.chmod(0o700)
    assert "gpg" in stranger(into=place("keyless"), ok=False).stderr


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_the_script_takes_no_gap_for_the_end_of_the_wal(
    story: Story, how: str, rows: Callable[..., list[tuple[object, ...]]]
) -> None:
    site = story.recover.site
    path = site.home / "repository" / site.area.layout.segment(story.middle.name)
    kept = path.read_bytes()
    path.unlink()
    if how == "flipped":
        flipped = bytearray(kept)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
    try:
        done = story.recover("--label", str(story.first.label), into=site.place("gap"), ok=False)
        assert story.middle.name in done.stderr
        # A backup behind the gap does not need what is missing.
        into = site.place("behind")
        story.recover(into=into)
        with story.recover.start(into) as instance:
            assert rows(instance, ROWS) == story.latest
        # Who knows of the gap and wants what lies before it says so.
        before = site.place("before")
        assert story.middle.name in story.recover("--label", str(story.first.label), "--accept-gap", into=before).stderr
        with story.recover.start(before) as instance:
            assert rows(instance, "SELECT count(*) FROM t WHERE x = 'wanted'") == [(0,)]
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(kept)


def test_a_damaged_bundle_stops_the_script_and_leaves_nothing_that_could_start(story: Story) -> None:
    site = story.recover.site
    bundles = sorted(site.area.stored_objects(story.last.label), key=lambda stored: stored.stored_bytes)
    path = site.home / "repository" / bundles[-1].name
    kept = path.read_bytes()
    path.unlink()
    flipped = bytearray(kept)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    into = site.place("damaged")
    try:
        assert bundles[-1].name in story.recover(into=into, ok=False).stderr
    finally:
        path.unlink()
        path.write_bytes(kept)
    assert not (into / "global" / "pg_control").exists()


def test_one_damaged_head_or_manifest_does_not_stop_the_script(story: Story) -> None:
    site = story.recover.site
    layout = site.area.layout
    path = site.home / "repository" / layout.head(story.first.label)
    kept = path.read_bytes()
    path.unlink()
    path.write_bytes(kept.replace(b"good", b"gOOd"))
    manifest = site.home / "repository" / layout.manifest(story.last.label)
    whole = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(whole[:-1])
    try:
        assert str(story.first.label) in story.recover("--list").stderr
        assert str(story.last.label) in story.recover(into=site.place("one")).stdout
    finally:
        for place, content in ((path, kept), (manifest, whole)):
            place.unlink()
            place.write_bytes(content)
