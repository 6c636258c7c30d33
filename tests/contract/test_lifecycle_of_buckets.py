"""The rules of real buckets: read, compared, replaced without harm to others, and an alert where one would delete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from seawall import lifecycle, locations, watch
from seawall.audit import AuditLog
from seawall.catalog import Catalog
from seawall.events import Observer
from seawall.lifecycle import Action
from seawall.repository import Repository
from seawall.settings import LocationRole, LocationSettings, Settings, parse
from seawall.storage.memory import MemoryStorage
from seawall.storage.rules import ruled
from tools.storage_servers import Servers

pytestmark = pytest.mark.servers
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DELETES: dict[str, dict[str, Any]] = {
    "s3": {"Rules": [{"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 365}}]},
    "gs": {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 365}}]}},
}
Site = Callable[[str], Settings]


@pytest.fixture
def site(servers: Servers) -> Site:
    """Settings of a site whose offsite location is a new, begun copy in a bucket of that kind."""

    def made(kind: str) -> Settings:
        classes = {"s3": ("STANDARD_IA", "GLACIER_IR"), "gs": ("NEARLINE",), "azure": ("Cool",)}[kind]
        storage = replace(servers[kind].settings(), cold_classes=classes)
        found = parse({"repository": {"url": "memory:"}, "sources": {"shop": {}}})
        shop = replace(found.sources["shop"], mirrors=("offsite",))
        offsite = LocationSettings("offsite", LocationRole.OFFSITE, storage)
        found = replace(found, sources={"shop": shop}, locations={"offsite": offsite})
        opened = locations.opened(found, "offsite", Observer())
        Repository.create(opened, now=NOW)
        opened.close()
        return found

    return made


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_bucket_gets_its_rules_keeps_those_of_others_and_one_that_deletes_is_critical(
    kind: str, site: Site, catalog: Catalog
) -> None:
    settings = site(kind)
    planned = lifecycle.wanted(settings, "offsite")
    assert any(rule.action is Action.MOVE for rule in planned.rules)
    audit = AuditLog(MemoryStorage(clock=lambda: NOW))
    storage = locations.opened(settings, "offsite", Observer())
    before = lifecycle.inspect(planned, storage)
    assert {one.severity for one in before.differences} == {"low"}
    assert len(before.differences) == len(planned.rules)
    after = lifecycle.apply(planned, storage, audit, "offsite", actor="me", now=NOW)
    # moto keeps rules without their filter by size, so those that have one are rightly found to be others.
    lost = {rule.id for rule in planned.rules if rule.larger_than}
    assert {one.rule for one in after.differences} == lost
    assert {one.severity for one in after.differences} <= {"medium", "low"}
    assert bool(lost) == (kind == "s3")
    assert [record.action for record in audit.records()] == ["lifecycle"]
    # Somebody tidies up.
    bucket = ruled(storage)
    assert bucket is not None
    bucket.set_lifecycle(DELETES[kind])
    report = watch.check_locations(settings, catalog, ["offsite"], now=NOW, observe=Observer())[0]
    assert (report.good, report.findings[0].severity) == (True, "critical")
    alert = next(one for one in catalog.alerts() if one.alert_type == "lifecycle")
    assert (alert.subject, alert.severity.value) == ("offsite", "critical")
    kept = lifecycle.apply(planned, storage, audit, "offsite", actor="me", now=NOW)
    assert kept.differences[0].severity == "critical", "rules of others are theirs to remove"
    assert {one.rule for one in kept.differences[1:]} == lost
    bucket.set_lifecycle(lifecycle.document(planned.vendor, planned.rules))
    watch.check_locations(settings, catalog, ["offsite"], now=NOW, observe=Observer())
    assert not [one for one in catalog.alerts() if one.alert_type == "lifecycle"]
    storage.close()


def test_rules_of_an_azure_account_are_printed_and_said_to_be_out_of_reach(site: Site, catalog: Catalog) -> None:
    settings = site("azure")
    report = watch.check_locations(settings, catalog, ["offsite"], now=NOW, observe=Observer())[0]
    assert [(one.severity, one.code) for one in report.findings] == [("low", "lifecycle-unknown")]
    assert "not reached with a credential for blobs" in report.findings[0].message
    planned = lifecycle.wanted(settings, "offsite")
    assert lifecycle.document(planned.vendor, planned.rules)["rules"][0]["type"] == "Lifecycle"
