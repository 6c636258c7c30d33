"""What `seawall location` says of places, without any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
