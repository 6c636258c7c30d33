"""Jobs: defined once, kept as the administrator left them."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from seawall.catalog import Catalog, JobType
from seawall.errors import RecordMissing, UsageError


def ensure(catalog: Catalog, at: datetime, **changes: object):
    arguments: dict[str, object] = {
        "schedule_cron": "0 2 * * *",
        "time_zone": "Europe/Berlin",
        "retention_days": 30,
        "backup_targets": {"source": "shop"},
        "destination_config": {"storage_location": "vault"},
        "notification_config": {},
        "now": at,
    }
    return catalog.ensure_job("shop nightly", JobType.FULL, **{**arguments, **changes})


def test_a_job_comes_back_as_it_was_defined(catalog: Catalog, now: datetime) -> None:
    job = catalog.job(ensure(catalog, now))
    assert (job.name, job.job_type, job.schedule_cron, job.time_zone) == (
        "shop nightly",
        JobType.FULL,
        "0 2 * * *",
        "Europe/Berlin",
    )
    assert job.backup_targets == {"source": "shop"}
    assert job.created_at == now == job.updated_at
    assert job.created_at.utcoffset() == timedelta(0)
    assert catalog.job_named("shop nightly") == job


def test_redeploying_changes_the_definition_but_not_whether_it_is_active(catalog: Catalog, now: datetime) -> None:
    job_id = ensure(catalog, now)
    catalog.set_job_active(job_id, False, now=now)
    later = now + timedelta(days=1)
    assert ensure(catalog, later, schedule_cron="0 3 * * *", is_active=True) == job_id
    job = catalog.job(job_id)
    assert job.schedule_cron == "0 3 * * *"
    assert not job.is_active
    assert job.updated_at == later
    assert catalog.jobs(active_only=True) == ()


def test_redeploying_the_same_definition_changes_nothing(catalog: Catalog, now: datetime) -> None:
    before = catalog.job(ensure(catalog, now))
    ensure(catalog, now + timedelta(days=1))
    assert catalog.jobs() == (before,)


def test_a_job_keeps_its_type(catalog: Catalog, now: datetime) -> None:
    ensure(catalog, now)
    with pytest.raises(UsageError, match="full"):
        catalog.ensure_job("shop nightly", JobType.LOGICAL, backup_targets={}, destination_config={}, now=now)


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule_cron": "nightly"},
        {"schedule_cron": "0 2 * * " + "1," * 100 + "2"},
        {"time_zone": "Europe/Atlantis"},
        {"time_zone": "../../etc/passwd"},
        {"retention_days": 0},
        {"now": datetime(2026, 11, 23)},  # noqa: DTZ001 - naive on purpose
        {"destination_config": {"password": "hunter2"}},
        {"backup_targets": {"conninfo": "host=db password=hunter2"}},
        {"notification_config": {"channels": [{"url": "mailto://ops:hunter2@example.org"}]}},
    ],
)
def test_a_malformed_or_secret_value_is_refused_and_nothing_stored(
    catalog: Catalog, now: datetime, bad: dict[str, object]
) -> None:
    with pytest.raises(UsageError) as caught:
        ensure(catalog, now, **bad)
    assert "hunter2" not in str(caught.value)
    assert catalog.jobs() == ()


@pytest.mark.parametrize("name", ["", "n" * 201])
def test_a_name_of_the_wrong_length_is_refused(catalog: Catalog, now: datetime, name: str) -> None:
    with pytest.raises(UsageError, match="200"):
        catalog.ensure_job(name, JobType.FULL, backup_targets={}, destination_config={}, now=now)


def test_a_reference_to_a_secret_is_no_secret(catalog: Catalog, now: datetime) -> None:
    ensure(catalog, now, destination_config={"credentials_block": "s3/offsite", "secret": {"block": "x"}, "token": ""})
    assert catalog.jobs()[0].destination_config["secret"] == {"block": "x"}


def test_an_unknown_job_is_said_to_be_missing(catalog: Catalog, now: datetime) -> None:
    for use in (
        lambda: catalog.job(uuid4()),
        lambda: catalog.job_named("nobody"),
        lambda: catalog.set_job_active(uuid4(), True, now=now),
        lambda: catalog.begin_execution(uuid4(), now=now, lease=timedelta(minutes=1)),
    ):
        with pytest.raises(RecordMissing):
            use()
