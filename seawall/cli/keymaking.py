"""Making the first two keys: operations stays on this host, escrow leaves it.

The escrow key is made in a ring of its own, so its private part never enters the ring that stays. Each step leaves
what the next run recognises, so an interrupted `init` goes on where it stopped and makes no second pair.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from seawall.errors import KeyMissing, KeyUnusable, SettingsError
from seawall.keys import KeyInfo, KeyRing, open_ring
from seawall.settings import SealingSettings

OPERATIONS, ESCROW = "Seawall operations", "Seawall escrow"


def refuse_unusable(sealing: SealingSettings) -> None:
    """The recipients that were named are in the ring, and something can be sealed for each.

    Raises:
        KeyMissing, KeyUnusable: one is not, or nothing can.
    """
    with open_ring(sealing) as ring:
        known = {key.fingerprint: key for key in ring.list()}
    for fingerprint in sealing.all_recipients:
        if fingerprint not in known:
            raise KeyMissing(
                f"key {fingerprint} is not in the key ring {sealing.keyring}",
                hint="Give full fingerprints, and name the GnuPG home that has the keys with --keyring.",
            )
        if not known[fingerprint].can_encrypt:
            raise KeyUnusable(f"nothing can be sealed for key {fingerprint}: {known[fingerprint].problem}")


def make_pair(sealing: SealingSettings, directory: Path) -> tuple[str, str]:
    """Make the operations key in the ring and the escrow key in `directory`/escrow; their fingerprints.

    Raises:
        KeyUnusable: gpg made none.
        SettingsError: the settings name no file for the passphrase.
    """
    if sealing.passphrase_file is None:
        raise SettingsError("no passphrase_file is set")
    chosen = sealing.passphrase_file.exists()
    if not chosen:
        _write_secret(sealing.passphrase_file, secrets.token_urlsafe(24))
    with open_ring(sealing) as ring:
        operations = _made_before(ring, OPERATIONS, secret=True)
        if operations is None:
            passphrase = sealing.passphrase_file.read_text(encoding="utf-8").strip()
            operations = ring.generate(
                OPERATIONS, "operations@seawall.invalid", passphrase=passphrase, stretched=chosen
            )
        return operations, _escrow(ring, directory / "escrow")


def _made_before(ring: KeyRing, name: str, *, secret: bool) -> str | None:
    """The newest usable key of that name."""
    found: list[KeyInfo] = [
        key
        for key in ring.list()
        if key.user_id.startswith(f"{name} <") and key.can_encrypt and key.has_secret is secret
    ]
    return max(found, key=lambda key: key.created_at).fingerprint if found else None


def _escrow(ring: KeyRing, folder: Path) -> str:
    if not folder.exists():
        _make_escrow(folder)
    public = folder / "escrow-public.asc"
    if not public.exists():
        raise KeyUnusable(f"{folder} is there, but was not made by `seawall init`", hint="Move it away.")
    fingerprint, *more = ring.import_keys(public.read_bytes())
    if more:
        raise KeyUnusable(f"{public} holds more than one key", hint="Move it away.")
    return fingerprint


def _make_escrow(folder: Path) -> None:
    """Under another name until it is whole."""
    draft = folder.with_name(".escrow.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    passphrase = secrets.token_urlsafe(24)
    with KeyRing(draft / "ring", lambda: passphrase) as away:
        fingerprint = away.generate(ESCROW, "escrow@seawall.invalid", passphrase=passphrase)
        (draft / "escrow-public.asc").write_text(away.export_public(fingerprint), encoding="ascii")
        _write_secret(draft / "escrow-secret.asc", away.export_secret(fingerprint))
        _write_secret(draft / "escrow.passphrase", passphrase)
    shutil.rmtree(draft / "ring")
    draft.rename(folder)


def _write_secret(path: Path, text: str | bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
