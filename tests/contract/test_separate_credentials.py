"""An account that writes and one that deletes, with the policies that docs/how-to/s3.md gives them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from prefect_aws import AwsCredentials

from blocks.repository import BackupRepository
from blocks.site import BlockNames, settings_for
from seawall import locations, retention
from seawall.errors import ObjectMissing, StorageDenied
from seawall.events import Event, Noticed, Observer, silent
from seawall.health import host
from seawall.health.result import Status
from seawall.lockprobe import LockState, probe_location
from seawall.model import SealingMode
from seawall.repository import Repository, sealing_of
from seawall.settings import PRIMARY, RepositorySettings, SealingSettings, Settings
from seawall.storage import open_storage
from seawall.storage.base import read
from seawall.storage.memory import MemoryStorage
from seawall.storage.wrappers import Wrapper
from seawall.wal import Lsn, Segment
from tasks.opening import opened
from tools.storage_servers import free_port, process, secret_file
from tools.surroundings import ROOT

BUCKET = "acme-backups"  # as in the page


def documented() -> list[dict[str, Any]]:
    """The policies of the page, in its order: who writes, what may be removed by it, who deletes."""
    text = (ROOT / "docs/how-to/s3.md").read_text(encoding="utf-8")
    return [found for found in map(json.loads, re.findall(r"```json\n(.*?)```", text, re.S)) if "Statement" in found]


def test_a_condition_on_the_prefix_stands_only_where_aws_knows_it() -> None:
    """The service authorization reference of S3 names the key for these actions; for others it would never hold."""
    knows = {"s3:ListBucket", "s3:ListBucketVersions"}
    under_condition = [
        one["Action"]
        for policy in documented()
        for one in policy["Statement"]
        if "s3:prefix" in str(one.get("Condition"))
    ]
    assert under_condition
    for actions in under_condition:
        assert set([actions] if isinstance(actions, str) else actions) <= knows


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RepositorySettings]:
    """A locking bucket in an account that enforces policies, one user who writes and one who deletes."""
    writes, _, deletes = documented()
    users = {"writer": [writes], "deleter": [writes, deletes]}
    # So many requests are admitted unasked: those that make the bucket, the users, their policies and keys.
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", str(1 + sum(2 + len(policies) for policies in users.values())))
    port = free_port()
    about = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    with process([sys.executable, "-m", "tools.s3_server", str(port)], port, tmp_path):
        boto3.client("s3", **about, **keys).create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        iam = boto3.client("iam", **about, **keys)
        files = {}
        for name, policies in users.items():
            iam.create_user(UserName=name)
            for number, policy in enumerate(policies):
                iam.put_user_policy(UserName=name, PolicyName=str(number), PolicyDocument=json.dumps(policy))
            made = iam.create_access_key(UserName=name)["AccessKey"]
            text = f"aws_access_key_id = {made['AccessKeyId']}\naws_secret_access_key = {made['SecretAccessKey']}\n"
            files[name] = secret_file(tmp_path / name, f"[default]\n{text}")
        yield RepositorySettings(
            url=f"s3://{BUCKET}/shop",
            endpoint=about["endpoint_url"],
            region="us-east-1",
            attempts=1,
            credentials_file=files["writer"],
            deleting_credentials_file=files["deleter"],
        )


@pytest.mark.servers
def test_the_account_that_writes_does_all_but_delete_and_the_one_that_deletes_cleans_up_behind_it(
    place: RepositorySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, settings = datetime.now(UTC), Settings(repository=place)
    writer = open_storage(place)
    repository = Repository.create(writer, now=now)
    area = repository.source("shop")
    with area.lease("a host", "backup"):
        area.storage.put("sources/shop/backups/20261101T020000Z-full/bundles/1", [b"worth a lot"])
    sealing = sealing_of(SealingSettings(mode=SealingMode.NONE, keyring=tmp_path / "keys"))
    segment = Segment(1, 1, 1 << 20)
    for end in (100, 200):
        area.wal.put_tail(segment, Lsn(segment.start.value + end), b"x" * end, sealing)
    with pytest.raises(StorageDenied, match="AccessDenied"):
        writer.delete("sources/shop/backups/20261101T020000Z-full/bundles/1")

    # What it cannot is no fault of it.
    report = locations.check(settings.location(PRIMARY), settings, Observer())
    assert report.good and report.locks
    assert "AccessDenied" in report.kept
    finding = host.storage_keeps(writer, others_delete=True)
    assert finding.status is Status.OK
    assert "cannot, as wanted" in finding.sentence
    assert len(list(writer.list("probes/"))) == 2
    assert len(area.wal.tails(segment)) == 2
    assert probe_location(settings.location(PRIMARY), settings, now=now, observe=Observer()).state is LockState.HOLDS

    cleaner = Repository.open(open_storage(place.deleting))
    retention.collect(cleaner, "shop", actor="test", now=cleaner.storage.now(), observe=silent())
    assert len(area.wal.tails(segment)) == 1
    cleaner.storage.delete("sources/shop/backups/20261101T020000Z-full/bundles/1")
    with pytest.raises(ObjectMissing):
        read(writer, "sources/shop/backups/20261101T020000Z-full/bundles/1")

    # The same accounts as blocks of Prefect's.
    writer.put("probes/by-blocks", [b"1"])
    by_blocks = _blocks(place, tmp_path, monkeypatch)
    with opened(by_blocks(deleting=False), deleting=True) as repository, pytest.raises(StorageDenied):
        repository.storage.delete("probes/by-blocks")
    with opened(by_blocks(deleting=True)) as repository, pytest.raises(StorageDenied):
        repository.storage.delete("probes/by-blocks")
    with opened(by_blocks(deleting=True), deleting=True) as repository:
        repository.storage.delete("probes/by-blocks")


def _blocks(place: RepositorySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings as a flow makes them of blocks that say what `place` does."""

    def block(file: Path | None) -> AwsCredentials:
        assert file is not None
        said = dict(line.split(" = ") for line in file.read_text().splitlines() if " = " in line)
        about = {"endpoint_url": place.endpoint}
        return AwsCredentials(**said, region_name=place.region, aws_client_parameters=about)

    known = {
        "offsite": BackupRepository(url=place.url, credentials="writer", deleting_credentials="deleter", attempts=1),
        "writer": block(place.credentials_file),
        "deleter": block(place.deleting_credentials_file),
    }
    monkeypatch.setattr("blocks.site.loaded", lambda _kind, name: known[name])
    file = tmp_path / "seawall.toml"
    file.write_text(f'[repository]\nurl = "memory:"\n[server]\nwork_directory = "{tmp_path}/work"\n[sources.shop]\n')
    return partial(settings_for, "", str(file), BlockNames(repository="offsite"))


def test_a_writer_that_may_delete_although_another_does_is_warned_about(tmp_path: Path) -> None:
    storage = open_storage(RepositorySettings(url="memory:too-many-rights"))
    assert host.storage_keeps(storage).status is Status.OK
    found = host.storage_keeps(storage, others_delete=True)
    assert found.status is Status.WARNING
    assert "may delete as well" in found.sentence


def test_probes_that_a_writer_left_go_a_day_later_with_a_cleanup() -> None:

    clock = [datetime(2026, 11, 23, tzinfo=UTC)]
    storage = MemoryStorage(clock=lambda: clock[0])
    repository = Repository.create(storage, now=clock[0])
    storage.put("probes/0123", [b"probe"])
    storage.put_locked("probes/canary-1", [b"canary"], clock[0] + timedelta(days=3))
    for days, left in ((0, 2), (2, 1), (2, 0)):
        clock[0] += timedelta(days=days)
        retention.collect(repository, "shop", actor="test", now=clock[0], observe=silent())
        assert len(list(storage.list("probes/"))) == left


def test_an_account_that_may_not_look_for_broken_uploads_cleans_up_all_else_and_says_so() -> None:
    heard: list[Event] = []
    now = datetime(2026, 11, 23, tzinfo=UTC)
    storage = MemoryStorage(clock=lambda: now)
    repository = Repository.create(Unswept(storage), now=now)
    storage.put("probes/0123", [b"probe"])
    done = retention.collect(
        repository, "shop", actor="test", now=now, observe=Observer(heard.append), grace=timedelta(days=1)
    )
    assert done.swept == 0
    now += timedelta(days=2)
    assert retention.collect(repository, "shop", actor="test", now=now, observe=Observer(heard.append)).swept == 1
    assert [one.message for one in heard if isinstance(one, Noticed)] == [
        "what broken uploads left stays: not allowed to list uploads"
    ] * 2


class Unswept(Wrapper):
    def sweep(self, older_than: timedelta) -> int:
        raise StorageDenied("not allowed to list uploads")


def test_the_credentials_that_delete_are_the_only_ones_where_no_others_are_named(tmp_path: Path) -> None:
    one = RepositorySettings(url="s3://b/p", credentials_file=tmp_path / "a")
    assert one.deleting.credentials_file == tmp_path / "a"
    assert replace(one, deleting_credentials_file=tmp_path / "b").deleting.credentials_file == tmp_path / "b"
