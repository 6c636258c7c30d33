"""Which backup the next one builds on, and every reason why it has to be full instead."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from seawall.backup.plan import BackupPlan, base_of, choose_prior, why_full
from seawall.model import (
    BackupKind,
    BackupLabel,
    Cluster,
    ClusterIdentity,
    Compression,
    CopyMode,
    Head,
    Health,
    SealingMode,
)
from seawall.wal import Lsn

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FULL, DIFFERENTIAL, INCREMENTAL = BackupKind.FULL, BackupKind.DIFFERENTIAL, BackupKind.INCREMENTAL
WEEK = timedelta(days=7)
CLUSTER = Cluster(
    system_identifier=7, server_version=180006, timeline=2, segment_bytes=1 << 24, block_bytes=8192, checksums=True,
    in_recovery=False, data_directory="/data",
)  # fmt: skip


def head(hours_ago: float, kind: BackupKind = FULL, base_hours_ago: float | None = None, **changed: Any) -> Head:
    begun = NOW - timedelta(hours=hours_ago)
    base = None if kind is FULL else NOW - timedelta(hours=base_hours_ago or hours_ago + 1)
    made = Head(
        label=BackupLabel(begun, kind, base), source="shop", kind=kind, mode=CopyMode.DIRECT,
        cluster=ClusterIdentity(7, 18, (2,)), server_version=180006, timeline=2, start_lsn=Lsn(1), stop_lsn=Lsn(2),
        segment_bytes=1 << 24, began_at=begun, ended_at=begun, stopped_at=begun, plain_bytes=1, stored_bytes=1,
        file_count=1, object_count=1, compression=Compression.LZ4, sealing=SealingMode.AES_256_GCM, key_id="k",
        manifest_sha256="", manifest_bytes=0, checksums=True,
    )  # fmt: skip
    return replace(made, **changed)


def test_an_incremental_builds_on_the_newest_and_a_differential_on_the_newest_full_one() -> None:
    heads = [head(1, INCREMENTAL), head(30), head(9), head(5, DIFFERENTIAL)]
    assert choose_prior(heads, INCREMENTAL) == heads[0]
    assert choose_prior(heads, DIFFERENTIAL) == heads[2]


def test_a_degraded_one_is_passed_over_while_there_is_a_good_one() -> None:
    bad, good = head(1, health=Health.DEGRADED), head(9)
    assert choose_prior([bad, good], INCREMENTAL) == good
    assert choose_prior([bad, good], DIFFERENTIAL) == good
    assert choose_prior([bad], INCREMENTAL) == bad


def test_without_any_there_is_none() -> None:
    assert choose_prior([], INCREMENTAL) is None
    assert choose_prior([head(1, INCREMENTAL)], DIFFERENTIAL) is None


def reason(prior: Head | None, sealing: SealingMode | None = SealingMode.AES_256_GCM, **changed: Any) -> str:
    return why_full(prior, replace(CLUSTER, **changed), now=NOW, sealing=sealing, full_after=WEEK)


def test_on_a_prior_of_the_same_cluster_an_incremental_is_taken() -> None:
    assert reason(head(1)) == ""
    assert reason(head(1, INCREMENTAL, 24)) == ""


@pytest.mark.parametrize(
    ("prior", "changed", "said"),
    [
        (None, {}, "no backup to build on"),
        (head(1), {"timeline": 3}, "promoted: it is on timeline 3"),
        (head(1), {"timeline": 1}, "promoted: it is on timeline 1"),
        (head(1), {"checksums": False}, "taken with page checksums, now there are none"),
        (head(1, checksums=False), {}, "taken without page checksums, now there are some"),
        (head(1), {"server_version": 190001}, "upgraded from PostgreSQL 18 to 19"),
        (head(1), {"system_identifier": 8}, "another system identifier"),
        (head(1), {"sealing": SealingMode.NONE}, "sealed in mode aes-256-gcm, this backup will be in none"),
        (head(1, health=Health.DEGRADED), {}, "wrong checksums"),
        (head(7 * 24 + 1), {}, "more than 7 days ago"),
        (head(1, INCREMENTAL, 7 * 24 + 1), {}, "more than 7 days ago"),
    ],
    ids=[
        "no prior", "promotion", "an older timeline", "checksums off", "checksums on", "upgrade", "other cluster",
        "other sealing", "degraded", "old full", "old chain",
    ],
)  # fmt: skip
def test_a_full_backup_is_forced_and_says_why(prior: Head | None, changed: dict[str, Any], said: str) -> None:
    assert said in reason(prior, **changed)


def test_a_minor_upgrade_forces_nothing_and_neither_does_age_without_a_limit() -> None:
    assert reason(head(1), server_version=180009) == ""
    assert why_full(head(24 * 400), CLUSTER, now=NOW, sealing=None, full_after=timedelta(0)) == ""


def test_a_chain_is_as_old_as_its_full_backup() -> None:
    assert base_of(head(1, INCREMENTAL, 50)) == NOW - timedelta(hours=50)
    assert base_of(head(3)) == NOW - timedelta(hours=3)


def test_a_plan_that_becomes_full_loses_what_only_the_other_kind_had() -> None:
    prior = head(5)
    label = BackupLabel(NOW, INCREMENTAL, prior.label.begun_at)
    plan = BackupPlan("shop", label, INCREMENTAL, INCREMENTAL, "", CopyMode.DIRECT, CLUSTER, 2, prior)
    full = plan.as_full("why not")
    assert (full.asked, full.kind, full.prior, str(full.label)) == (INCREMENTAL, FULL, None, "20261123T120000Z-full")
    assert full.reason == "a full backup stands in: why not"
