"""The recovery kit tells all that a stranger needs, and no secret."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from seawall.keys import KeyRing, recovery_kit

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="GnuPG is not installed")
PASSPHRASE = "correct horse battery"


def kit(ring: KeyRing, recipients: list[str], **more: object) -> str:
    return recovery_kit(
        repository_url="file:///srv/backup",
        repository_id="0e8f3a52-1111-4222-8333-944444444444",
        format_version=1,
        ring=ring,
        recipients=recipients,
        made_at=datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
        **more,  # type: ignore[arg-type]
    )


def test_a_kit_names_place_keys_and_steps_and_no_secret(tmp_path: Path) -> None:
    with KeyRing(tmp_path / "r", lambda: PASSPHRASE) as ring:
        operations = ring.generate("Ops", "ops@x.test", passphrase=PASSPHRASE, expires_in_days=30)
        escrow = ring.generate("Escrow", "escrow@x.test", passphrase=PASSPHRASE)
        text = kit(ring, [operations, escrow], sources=["shop", "ledger"])
        secret = ring.export_secret(operations).splitlines()[2:]
    flat = text.replace(" ", "")
    assert operations in flat
    assert escrow in flat
    for wanted in (
        "file:///srv/backup",
        "0e8f3a52-1111-4222-8333-944444444444",
        "2026-11-23 12:00 UTC",
        "Ops <ops@x.test>, expires",
        "Escrow <escrow@x.test>",
        "shop, ledger",
        "recover-*.py",
        "gpg --decrypt",
        "it still opens afterwards",
    ):
        assert wanted in text
    assert PASSPHRASE not in text
    assert not any(line in text for line in secret if len(line) > 20)
    assert "passphrase_file" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_kit_for_strangers_does_not_tell_where_the_escrow_key_is(tmp_path: Path) -> None:
    with KeyRing(tmp_path / "r") as ring:
        keys = [ring.generate(name, f"{name}@x.test", passphrase="") for name in ("first", "second")]
        assert "kept offline" in kit(ring, keys)
        assert "kept offline" not in kit(ring, keys, include_escrow_hint=False)


def test_a_kit_tells_when_a_key_is_missing_or_none_is_needed(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "r")
    assert "is missing in the ring" in kit(ring, ["A" * 40])
    assert "not sealed" in kit(ring, [])
    ring.close()
