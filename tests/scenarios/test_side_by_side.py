"""Several clusters in one repository at the same time, and two backups of one cluster at the same time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from seawall.postgres.instance import Instance
from tests.conftest import ClusterMaker, PgCluster

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@dataclass
class House:
    """Settings, keys and one repository; every verb runs in a process of its own, as on hosts of their own."""

    home: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.home / "site" / "seawall.toml"

    def add(self, name: str, cluster: PgCluster, **settings: str) -> None:
        lines = {"conninfo": cluster.instance.conninfo, "mode": "stream"} | settings
        with self.config.open("a") as file:
            file.write(f"\n[sources.{name}]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()))

    def host(self, name: str, *changes: tuple[str, str]) -> Path:
        """The settings of another host: the same repository, but work directory and catalog of its own."""
        text, own = self.config.read_text(), f"{self.home}/{name}"
        for old, new in ((f"{self.home}/site/work", own), (f"{self.home}/site/catalog.db", f"{own}.db"), *changes):
            assert old in text
            text = text.replace(old, new)
        path = self.home / f"{name}.toml"
        path.write_text(text)
        return path

    def begin(self, *words: str, config: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "seawall", *words, "--config", str(config or self.config), "--json"]
        self.running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return self.running[-1]

    def run(self, *words: str, config: Path | None = None) -> tuple[int, Any]:
        process = self.begin(*words, config=config)
        return self.result(process)

    def result(self, process: subprocess.Popen[str]) -> tuple[int, Any]:
        out, err = process.communicate(timeout=240)
        self.running.remove(process)
        assert out, err
        return process.returncode, json.loads(out)

    def receive(self, name: str, cluster: PgCluster) -> None:
        self.begin("wal", "receive", name)
        cluster.wait("EXISTS (SELECT FROM pg_replication_slots WHERE active)")

    def close(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.communicate(timeout=60)


@pytest.fixture
def house() -> Iterator[House]:
    home = Path(tempfile.mkdtemp(prefix="seawall-house-"))
    home.chmod(0o755)
    made = House(home)
    try:
        command = [sys.executable, "-m", "seawall", "init", "--directory", str(home / "site"), "--compression", "lz4"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.close()
        shutil.rmtree(home)


def _filled(cluster: PgCluster, megabytes: int) -> PgCluster:
    cluster.fill("rows", megabytes)
    return cluster


def _rows(cluster: Any) -> Any:
    query = b"SELECT count(*), md5(string_agg(id || md5(body), ',' ORDER BY id)) FROM rows"
    instance = cluster.instance if isinstance(cluster, PgCluster) else cluster
    with instance.connect() as session:
        return session.execute(query).fetchall()


def test_three_clusters_of_three_versions_are_backed_up_at_the_same_time(
    house: House, make_cluster: ClusterMaker
) -> None:
    clusters = {f"shop{major}": _filled(make_cluster(major, fresh=True), 8) for major in (15, 17, 18)}
    for name, cluster in clusters.items():
        house.add(name, cluster)
    for name, cluster in clusters.items():
        house.receive(name, cluster)
    wanted: dict[str, list[tuple[str, Any]]] = {name: [] for name in clusters}
    for kind in ("full", "incremental"):
        begun = {name: house.begin("backup", name, "--kind", kind) for name in clusters}
        for name, process in begun.items():
            code, said = house.result(process)
            assert code == 0, said
            assert said["backup"]["kind"] == kind, said
            wanted[name].append((said["backup"]["label"], _rows(clusters[name])))
        for cluster in clusters.values():
            cluster.query("UPDATE rows SET body = 'changed' WHERE id % 100 = 1")
    for name in clusters:
        code, said = house.run("verify", name)
        assert code == 0, said
    with ThreadPoolExecutor(3) as pool:
        for compared in pool.map(lambda name: _compared(house, make_cluster, name, clusters, wanted), clusters):
            assert compared


def _compared(
    house: House, make_cluster: ClusterMaker, name: str, clusters: dict[str, PgCluster], wanted: dict[str, Any]
) -> bool:
    origin = clusters[name]
    for label, rows in wanted[name]:
        place = make_cluster.empty(origin.major)
        code, said = house.run("restore", name, "--into", str(place.data), "--label", label, "--immediate")
        assert code == 0, said
        restored = Instance(place.data, origin.instance.binaries, origin.instance.account)
        restored.start()
        try:
            assert _rows(restored) == rows
        finally:
            restored.stop()
    return True


def test_a_second_backup_of_one_cluster_is_refused_while_the_first_runs_also_from_another_host(
    house: House, make_cluster: ClusterMaker
) -> None:
    cluster = _filled(make_cluster(18), 4)
    house.add("shop", cluster)
    house.receive("shop", cluster)
    slow = house.host("slow", ('mode = "stream"', 'mode = "stream"\nmax_rate_bytes_per_second = 1000000'))
    first = house.begin("backup", "shop", config=slow)
    repository = house.home / "site" / "repository"
    until = time.monotonic() + 60
    while not list(repository.glob("sources/shop/backups/*/bundles/*")):
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.05)
    for config in (slow, house.config, house.host("other")):
        code, said = house.run("backup", "shop", config=config)
        assert (code, said["error"]["code"]) == (35, "lease-held"), said
    # On the first's own host the catalog knew; on others the repository's lease names who holds it.
    assert str(first.pid) in said["error"]["message"]
    assert first.poll() is None
    code, said = house.result(first)
    assert code == 0, said
    code, again = house.run("backup", "shop", config=house.host("other"))
    assert code == 0, again
    code, listed = house.run("list")
    both = {said["backup"]["label"], again["backup"]["label"]}
    assert {backup["label"] for backup in listed["backups"]} == both
    assert house.run("verify")[0] == 0
