"""The recovery kit: a page that tells a stranger where backups lie, which keys open them, and how.

It holds no secret and can be printed, but it belongs beside the escrow key all the same: it names what is worth
attacking.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seawall.keys.ring import KeyInfo, KeyRing

_STEPS = """\
HOW TO RESTORE WITH SEAWALL
  1. Install Seawall and PostgreSQL of the backup's major version on a machine that you trust.
  2. Name this repository in seawall.toml, and import one of the private keys above:
         seawall keys import KEYFILE
  3. See what there is, then restore:
         seawall list
         seawall restore --help

HOW TO RESTORE WITHOUT SEAWALL
  Needed: this page, the storage, one private key above and its passphrase, GnuPG 2.2 or later,
  Python 3.9 or later, and PostgreSQL of the backup's major version.
  1. Copy the repository, or mount it. It begins at the address above and holds seawall.json,
     which must state the repository id above. If it does not, this is another repository: stop.
  2. Beside it lies recover-<12 hex digits>.py. The sum must begin with the digits in its name:
         sha256sum recover-*.py
  3. Import the private key. Any "wrapped" text of sources/*/keys/*/*.json, saved to a file, must
     open with it:
         gpg --import KEYFILE
         gpg --decrypt FILE
  4. Read what the script asks for, then restore into a new directory:
         python3 recover-*.py --help
  5. Look at what it reports before you start PostgreSQL there.
  docs/repository-format.md of Seawall describes every byte, so that a new reader can be written.

KEEP THIS KIT TRUE
  Print a new one after every change of keys or of the storage. Once a quarter, follow it on a clean
  machine with the escrow key: a kit that was never used is a hope."""


def recovery_kit(
    *,
    repository_url: str,
    repository_id: str,
    format_version: int,
    ring: KeyRing,
    recipients: Sequence[str],
    made_at: datetime,
    sources: Sequence[str] = (),
    include_escrow_hint: bool = True,
) -> str:
    """The page as text, 100 columns at most, without any secret.

    Args:
        repository_url: without a password, as `Storage.url` has it.
        recipients: full fingerprints, operations first, escrow second, as the settings have them.
        sources: what is protected, by name.
        include_escrow_hint: tell that the second key is the escrow key and that its private part is kept offline;
            leave it out of copies that go where that is nobody's business.
    """
    keys = {key.fingerprint: key for key in ring.list()}
    lines = [
        "SEAWALL RECOVERY KIT",
        f"made {made_at:%Y-%m-%d %H:%M %Z}",
        "",
        f"Repository      {repository_url}",
        f"Repository id   {repository_id}",
        f"Format          {format_version}",
        *([f"Protects        {', '.join(sources)}"] if sources else []),
        "",
        "KEYS: the private part of any ONE of these opens every backup that was sealed for it",
    ]
    for position, fingerprint in enumerate(recipients):
        lines += _key(fingerprint, keys.get(fingerprint), position if include_escrow_hint else -1)
    if not recipients:
        lines.append("  none: backups of this repository are not sealed")
    return "\n".join([*lines, "", _STEPS, ""])


def _key(fingerprint: str, key: KeyInfo | None, position: int) -> list[str]:
    grouped = " ".join(fingerprint[at : at + 4] for at in range(0, len(fingerprint), 4))
    role = {0: "operations", 1: "escrow: its private part is kept offline, on paper and in a safe"}
    expires = f", expires {key.expires_at:%Y-%m-%d} (it still opens afterwards)" if key and key.expires_at else ""
    about = f"{key.user_id}{expires}" if key else "its public key is missing in the ring that made this page"
    return [f"  {grouped}", f"      {about}", *([f"      {role[position]}"] if position in role else [])]
