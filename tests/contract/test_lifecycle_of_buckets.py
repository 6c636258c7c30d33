"""The rules of real buckets: read, compared, replaced without harm to others, and an alert where one would delete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from seawall import lifecycle, locations, watch
from seawall.audit import AuditLog
from seawall.catalog import Catalog
from seawall.events import Observer
from seawall.lifecycle import Action, Vendor
from seawall.lifecycle.classes import ladder
from seawall.model import BackupKind
from seawall.repository import Repository
from seawall.retention import RetentionPolicy
from seawall.settings import LocationRole, LocationSettings, RepositorySettings, Settings, parse
from seawall.storage import open_driver
from seawall.storage.base import Storage
from seawall.storage.memory import MemoryStorage
from seawall.storage.rules import ruled
from tools.storage_servers import Servers, secret_file

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
    assert after.differences == ()
    assert any(rule.larger_than for rule in after.configured) == (kind == "s3"), "Google has no filter by size"
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
    assert [one.severity for one in kept.differences] == ["critical"], "rules of others are theirs to remove"
    bucket.set_lifecycle(lifecycle.document(planned.vendor, planned.rules))
    watch.check_locations(settings, catalog, ["offsite"], now=NOW, observe=Observer())
    assert not [one for one in catalog.alerts() if one.alert_type == "lifecycle"]
    storage.close()


# What Amazon S3 answers when it is asked for the rules of RULED (S3 API reference, GetBucketLifecycleConfiguration: an
# element for each rule and each of its transitions, in an order of its own; numbers and truth as text).
NARROW = "<And><Prefix>site/sources/main/backups/</Prefix><ObjectSizeGreaterThan>8388608</ObjectSizeGreaterThan></And>"
ANSWER = f"""<?xml version="1.0" encoding="UTF-8"?>
<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Rule><ID>seawall-ad8cf399-markers</ID><Filter><Prefix>site/</Prefix></Filter><Status>Enabled</Status>
  <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration></Rule>
<Rule><ID>seawall-ad8cf399-abort-uploads</ID><Filter><Prefix>site/</Prefix></Filter><Status>Enabled</Status>
  <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
<Rule><ID>seawall-ad8cf399-main-standard-ia</ID><Filter>{NARROW}</Filter><Status>Enabled</Status>
  <Transition><Days>41</Days><StorageClass>STANDARD_IA</StorageClass></Transition></Rule>
<Rule><ID>seawall-ad8cf399-main-glacier-ir</ID><Filter>{NARROW}</Filter><Status>Enabled</Status>
  <Transition><Days>387</Days><StorageClass>GLACIER_IR</StorageClass></Transition></Rule>
<Rule><ID>seawall-ad8cf399-noncurrent</ID><Filter><Prefix>site/</Prefix></Filter><Status>Enabled</Status>
  <NoncurrentVersionExpiration><NoncurrentDays>90</NoncurrentDays></NoncurrentVersionExpiration></Rule>
</LifecycleConfiguration>
"""
USUAL = RetentionPolicy(
    timedelta(days=30), dict.fromkeys(BackupKind, timedelta(days=7)), timedelta(days=30), weekly_months=12,
    monthly_years=7,
)  # fmt: skip
RULED = lifecycle.plan(
    Vendor.S3, "site/", ladder(Vendor.S3, RepositorySettings()), [lifecycle.SourcePolicy("main", USUAL, 7)]
)


@contextmanager
def amazon(answer: str) -> Iterator[Storage]:
    """A bucket of a service that answers every request with this text."""

    class Telling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("x-amz-transition-default-minimum-object-size", "all_storage_classes_128K")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is for failures."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Telling) as server, TemporaryDirectory() as place:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        keys = secret_file(Path(place) / "keys", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        settings = RepositorySettings(
            endpoint=f"http://127.0.0.1:{server.server_port}", region="eu-central-1", attempts=1, credentials_file=keys
        )
        storage = open_driver("s3://box/site", settings)
        yield storage
        storage.close()
        server.shutdown()


def test_rules_as_amazon_tells_them_are_found_equal_to_the_plan() -> None:
    with amazon(ANSWER) as storage:
        assert lifecycle.inspect(RULED, storage).differences == ()


@pytest.mark.parametrize(
    ("told", "instead", "severity", "rule"),
    [
        ("8388608", "0", "medium", "seawall-ad8cf399-main-standard-ia"),
        ("<Days>41</Days>", "<Days>3</Days>", "medium", "seawall-ad8cf399-main-standard-ia"),
        ("GLACIER_IR", "DEEP_ARCHIVE", "high", "seawall-ad8cf399-main-glacier-ir"),
        (">90<", ">1<", "high", "seawall-ad8cf399-noncurrent"),
        ("<Status>Enabled</Status>\n  <Abort", "<Status>Disabled</Status>\n  <Abort", "low", "-abort-uploads"),
        ("<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>", "<Days>9</Days>", "critical", "-markers"),
    ],
)
def test_one_rule_that_amazon_tells_otherwise_is_found(told: str, instead: str, severity: str, rule: str) -> None:
    assert told in ANSWER
    with amazon(ANSWER.replace(told, instead)) as storage:
        found = lifecycle.inspect(RULED, storage).differences
    assert found[0].severity == severity
    assert rule in found[0].rule


def test_rules_of_an_azure_account_are_printed_and_said_to_be_out_of_reach(site: Site, catalog: Catalog) -> None:
    settings = site("azure")
    report = watch.check_locations(settings, catalog, ["offsite"], now=NOW, observe=Observer())[0]
    assert [(one.severity, one.code) for one in report.findings] == [("low", "lifecycle-unknown")]
    assert "not reached with a credential for blobs" in report.findings[0].message
    planned = lifecycle.wanted(settings, "offsite")
    assert lifecycle.document(planned.vendor, planned.rules)["rules"][0]["type"] == "Lifecycle"
