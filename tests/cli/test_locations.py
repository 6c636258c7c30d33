"""What `seawall location` says of places, without any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seawall.settings import load

Run = Callable[..., Any]


@pytest.fixture
def bucket(plain: Path) -> Path:
    """Settings with a location in a bucket that nobody serves."""
    text = plain.read_text().replace("[sources.shop]", '[sources.shop]\nmirrors = ["offsite"]')
    text += '\n[locations.offsite]\nurl = "gs://vault/site"\nendpoint = "http://127.0.0.1:1"\n'
    plain.write_text(text + 'cold_classes = ["NEARLINE", "COLDLINE"]\nattempts = 1\n')
    return plain


def test_lifecycle_rules_are_printed_in_the_vendors_form_and_compared_with_an_exported_file(
    seawall: Run, bucket: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "rules.json"
    exported.write_text('{"rule": [{"action": {"type": "Delete"}, "condition": {"age": 3650}}]}')
    done = seawall("location", "lifecycle", "offsite", "--against", exported, "--config", bucket)
    assert done.code == 0, done.err
    rules = json.loads(done.out)["lifecycle"]["rule"]
    assert rules[0]["action"] == {"type": "SetStorageClass", "storageClass": "NEARLINE"}
    assert rules[0]["condition"]["matchesPrefix"] == ["site/sources/shop/backups/"]
    assert "critical: all objects of the bucket are deleted after 3650 days" in done.err
    exported.write_text(done.out)
    found = seawall("location", "lifecycle", "offsite", "--against", exported, "--config", bucket, "--json").json
    assert (found["compared"], found["differences"]) == (True, [])
    assert all(rule["reason"] for rule in found["rules"])


def test_lifecycle_rules_of_a_folder_are_refused_with_the_reason(seawall: Run, bucket: Path) -> None:
    done = seawall("location", "lifecycle", "primary", "--config", bucket, "--json")
    assert (done.code, done.error["code"]) == (2, "settings")
    assert "not in a bucket" in done.error["message"]


def test_what_a_location_holds_and_costs_is_measured_by_the_check_and_shown_with_its_role(
    seawall: Run, plain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(seawall("location", "prices").out)
    text = plain.read_text().replace("[repository]", '[repository]\nprices = "example-own-disks"\nquota_bytes = 10')
    plain.write_text(text.replace("[server]", f'[server]\nprice_file = "{file}"'))
    before = seawall("location", "cost", "--config", plain, "--json").json["locations"][0]
    assert (before["estimated"], before["why"][:16]) == (False, "not measured yet")
    done = seawall("location", "check", "--measure", "--config", plain)
    assert done.code == 80, "what is critical fails the check"
    assert "primary: good; primary;" in done.out
    assert "critical: 0 bytes are free" in done.out
    shown = seawall("location", "list", "--config", plain, "--json").json["locations"][0]
    assert (shown["role"], shown["problem"], shown["free_bytes"], shown["quota_bytes"]) == ("primary", None, 0, 10)
    assert shown["used_bytes"] > 0
    assert shown["measured_at"]
    assert shown["latency_ms"] is not None
    assert shown["monthly_cost"]["currency"] == "USD"
    cost = seawall("location", "cost", "primary", "--months", "24", "--config", plain, "--json").json["locations"][0]
    assert (cost["estimated"], cost["as_of"], cost["later"]["months"]) == (True, "2025-06-01", 24)
    lines = seawall("location", "list", "--config", plain).out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "ROLE"]
    assert "USD" in lines[1]


def test_a_price_table_that_is_not_there_costs_the_estimate_and_not_the_list(seawall: Run, plain: Path) -> None:
    plain.write_text(plain.read_text().replace("[repository]", '[repository]\nprices = "none"'))
    done = seawall("location", "list", "--config", plain)
    assert done.code == 0
    assert "names no price_file" in done.err


def test_what_is_a_location_already_is_no_second_one_and_an_amount_may_have_a_unit(
    seawall: Run, plain: Path, tmp_path: Path
) -> None:
    before = plain.read_text()
    for url in (plain.parent / "repository", f"file://{plain.parent}/repository"):
        done = seawall("location", "add", "again", "--url", url, "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (2, "settings")
        assert "again and primary are the same place" in done.error["message"]
    (tmp_path / "nas").mkdir()
    add = ("location", "add", "nas", "--url", tmp_path / "nas", "--config", plain, "--json", "--set")
    done = seawall(*add, "quota_bytes=lots")
    assert (done.code, "such as 500GB" in done.error["message"]) == (2, True)
    assert plain.read_text() == before
    done = seawall(*add, "quota_bytes=500GB")
    assert done.code == 0
    assert [one["code"] for one in done.json["location"]["findings"]] == ["role"], "it is on the same disk"
    assert load(plain).location("nas").storage.quota_bytes == 500 * 10**9
