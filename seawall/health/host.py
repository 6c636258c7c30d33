"""Checks of this host, the repository's storage, the keys and the catalog."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from seawall import keepers, locations
from seawall.audit import AuditEnd, AuditLog
from seawall.catalog import Catalog, Logbook, anchors
from seawall.errors import (
    CatalogError,
    ClockWentBackwards,
    Damaged,
    KeyMissing,
    KeyUnusable,
    ObjectLocked,
    SettingsError,
    StorageDenied,
    StorageError,
)
from seawall.health.result import Finding, good, skipped, warning
from seawall.keys import KeyInfo, KeyRing
from seawall.model import SealingMode
from seawall.repository import Repository, identity
from seawall.repository.identity import Identity
from seawall.settings import SealingSettings, Settings, SourceSettings
from seawall.storage import open_storage
from seawall.storage.base import Storage, read

# Labels are whole seconds and leases run for minutes: seconds apart is untidy, minutes apart confuses both.
CLOCK_WARNING = timedelta(seconds=5)
CLOCK_FAILURE = timedelta(minutes=5)
KEY_EXPIRY_WARNING = timedelta(days=30)
_PROBE_BYTES = 64 * 1024


def keeper_is_alive(settings: Settings, now: datetime) -> Finding:
    """The keepers of this host and of all others of the catalog give signs of life; it is told of who does not.

    Raises:
        CatalogError: the catalog does not answer.
    """
    silence = keepers.silence_here(settings, now)
    with Logbook.open(settings.catalog.url) as catalog:
        wrong = keepers.judge_all(settings, catalog, now)
    if wrong:
        return warning(
            "; ".join(wrong.values()),
            "See its log in the work directory, and restart it: end `seawall up`, and begin it again. If a host is gone"
            " for good, tell so by `seawall catalog forget-keeper HOST`.",
        )
    if silence is None:
        return skipped("no stack runs on this host")
    return good(f"the keeper gave a sign of life {silence.total_seconds():.0f} s ago")


def settings_are_sound(settings: Settings, sources: Sequence[SourceSettings]) -> Finding:
    """The files that the settings name are there and closed to others.

    Raises:
        SettingsError: one is not.
    """
    for source in sources:
        if source.passfile is not None:
            _refuse_open(source.passfile, f"passfile of source {source.name!r}")
    if settings.sealing.passphrase_file is not None and settings.sealing.mode is not SealingMode.NONE:
        _refuse_open(settings.sealing.passphrase_file, "passphrase_file")
    named = ", ".join(source.name for source in sources) or "none"
    return good(f"sources: {named}; sealing {settings.sealing.mode.value}, {settings.sealing.compression.value}")


def _refuse_open(path: Path, what: str) -> None:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise SettingsError(f"{what} {path} cannot be used: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"{what} {path} is open to other accounts (mode {mode:04o})", hint=f"chmod 600 {path}")


def repository_opens(settings: Settings) -> tuple[Repository, Finding]:
    """The storage answers and holds a repository of a format that this version reads."""
    repository = Repository.open(open_storage(settings.repository))
    return repository, good(f"{repository.storage.url} is repository {repository.id}")


def identity_is_whole(repository: Repository) -> Finding:
    """Both objects that say which repository it is are there, and say the same."""
    known = identity.known(repository.storage)
    wrong = [f"{name}: {one.message}" for name, one in known.items() if not isinstance(one, Identity)]
    told = {one.repository_id for one in known.values() if isinstance(one, Identity)}
    if len(told) > 1:
        wrong.append(f"its two objects say different things: {', '.join(sorted(told))}")
    if wrong:
        return warning("; ".join(wrong), "`seawall repository repair --dry-run` shows how it is made whole.")
    return good(f"both {' and '.join(known)} say so")


def storage_keeps(storage: Storage, *, others_delete: bool = False) -> Finding:
    """Write a probe, read it back, see that it is not overwritten, and remove it.

    Args:
        others_delete: other credentials are there for deleting, so that these should not be able to.

    Raises:
        Damaged: what came back is not what was written.
        StorageError: a step failed.
    """
    name, data = f"probes/{secrets.token_hex(16)}", secrets.token_bytes(_PROBE_BYTES)
    storage.put(name, [data])
    try:
        if read(storage, name) != data or b"".join(storage.get(name, 1000, 24)) != data[1000:1024]:
            raise Damaged(f"the probe {name} came back with other bytes than were written")
        if [stat.name for stat in storage.list(name)] != [name]:
            raise StorageError(
                f"the probe {name} is stored but not listed", hint="The storage's listing is not prompt."
            )
        locations.refuse_overwriting(storage, name, data)
    finally:
        kept = _removed_or_kept(storage, name)
    done = f"a probe of {_PROBE_BYTES} bytes was written, read back, not overwritten"
    if kept:
        return good(f"{done}, and {kept}")
    if next(iter(storage.list(name)), None) is not None:
        raise StorageError(f"the probe {name} was deleted but is still listed", hint="Retention cannot work so.")
    if others_delete:
        return warning(
            f"{done}, and deleted: the credentials that write may delete as well",
            "Take that right from them: deleting_credentials_file names those that have it.",
        )
    return good(f"{done}, and deleted")


def _removed_or_kept(storage: Storage, name: str) -> str:
    """Delete a probe; what keeps it, and nothing where it is gone."""
    try:
        storage.delete(name)
    except ObjectLocked as error:
        return f"is locked: {error.message}"
    except StorageDenied:
        return "not deleted: these credentials cannot, as wanted where another account cleans up"
    return ""


def capabilities(storage: Storage) -> Finding:
    """What the driver can do; what data depends on is a warning when it is missing."""
    can = storage.capabilities
    if can.unsafe:
        hint = "Let only one host write into this repository."
        return warning(f"the storage does not offer {', '.join(can.unsafe)}", hint)
    return good(f"without {', '.join(can.without)}" if can.without else "everything that Seawall makes use of")


def clocks_agree(what: str, ask: Callable[[], datetime], now: Callable[[], datetime]) -> Finding:
    """Compare this host's clock with another one, half the time of asking granted.

    Args:
        what: whose clock, for the sentence.
        ask: that clock.
        now: this host's.

    Raises:
        ClockWentBackwards: they are minutes apart.
    """
    before = now()
    there = ask()
    after = now()
    return judge_clocks(what, there - (before + (after - before) / 2), (after - before) / 2)


def judge_clocks(what: str, apart: timedelta, uncertainty: timedelta) -> Finding:
    """Judge two clocks that are `apart`; pure."""
    least = max(abs(apart) - uncertainty, timedelta(0))
    sentence = (
        f"the clock of {what} is {abs(apart).total_seconds():.2f} s {'ahead' if apart > timedelta(0) else 'behind'}"
    )
    if least > CLOCK_FAILURE:
        raise ClockWentBackwards(f"{sentence}; labels, leases and retention go by clocks")
    if least > CLOCK_WARNING:
        return warning(sentence, "Let a time service set both clocks (`timedatectl`).")
    return good(sentence if least else f"the clock of {what} agrees with this host's")


# ---- keys


def recipients_usable(keys: Sequence[KeyInfo], sealing: SealingSettings, now: datetime) -> Finding:
    """Every recipient is in the ring and can be sealed for, two are distinct, none expires soon; pure.

    Raises:
        SettingsError: fewer than two are named.
        KeyMissing, KeyUnusable: one is not there, or nothing can be sealed for it.
    """
    if sealing.mode is SealingMode.NONE:
        return warning(
            "sealing is `none`: whoever reads the storage reads the data", "Set [sealing] mode and two keys."
        )
    known = {name: key for key in keys for name in (key.fingerprint, *key.fingerprints)}
    missing = [fingerprint for fingerprint in sealing.all_recipients if fingerprint not in known]
    if missing:
        raise KeyMissing(f"not in the key ring {sealing.keyring}: {', '.join(missing)}")
    chosen = {known[fingerprint].fingerprint: known[fingerprint] for fingerprint in sealing.all_recipients}
    if len(chosen) < 2:
        raise SettingsError(
            f"data keys would be wrapped for {len(chosen)} key(s)",
            hint="Name two: [sealing] operations and escrow. Whoever loses the only key loses every backup.",
        )
    unusable = [
        f"{key.fingerprint} ({key.problem or 'no encryption'})" for key in chosen.values() if not key.can_encrypt
    ]
    if unusable:
        raise KeyUnusable(f"nothing can be sealed for {', '.join(unusable)}")
    return _judge_expiry(tuple(chosen.values()), now)


def _judge_expiry(keys: Sequence[KeyInfo], now: datetime) -> Finding:
    soon = [key for key in keys if key.expires_at is not None and key.expires_at - now < KEY_EXPIRY_WARNING]
    if soon:
        named = ", ".join(f"{key.fingerprint} on {key.expires_at:%Y-%m-%d}" for key in soon)
        return warning(f"soon nothing can be sealed any more, because keys expire: {named}", "See docs/how-to/keys.md.")
    return good(f"{len(keys)} recipients, each can be sealed for")


def private_key_opens(ring: KeyRing, sealing: SealingSettings, keys: Sequence[KeyInfo]) -> Finding:
    """Wrap random bytes for the recipients and, where a private key is at hand, unwrap them again.

    Raises:
        KeyMissing, KeyUnusable: they cannot be wrapped, or the private key does not open them.
        Damaged: something else came out.
    """
    if sealing.mode is SealingMode.NONE:
        return skipped("nothing is sealed")
    secret = secrets.token_bytes(32)
    text = ring.wrap(secret, sealing.all_recipients)
    holders = [key.fingerprint for key in keys if key.has_secret]
    if not holders:
        return skipped("no private key is here: this host takes backups, but can neither verify nor restore them")
    if ring.unwrap(text) != secret:
        raise Damaged("a data key came back other than it was wrapped", hint="This is a defect of gpg or of Seawall.")
    return good(f"a data key was wrapped for all recipients and opened with {', '.join(holders)}")


# ---- catalog


def catalog_is_current(url: str) -> Finding:
    """The catalog answers and its schema is this version's.

    Raises:
        CatalogMissing, CatalogOutdated, CatalogTooNew, CatalogUnreachable, CatalogError: as named.
    """
    with Catalog.open(url) as catalog:
        differences = catalog.check()
    if differences:
        raise CatalogError(f"the catalog differs from what this version expects: {'; '.join(differences)}")
    return good("it answers and has the newest schema")


def audit_is_whole(repository: Repository, url: str, now: datetime) -> Finding:
    """The repository's audit continues what the catalog saw of it before, unbroken; its end is told, to be kept.

    Raises:
        Damaged: it is broken, or records that were there are gone.
    """
    try:
        with Catalog.open(url) as catalog:
            end = anchors.compared(catalog, repository, now=now)
    except CatalogError as error:
        end = AuditLog(repository.storage).verify()
        return warning(
            f"unbroken, {_end(end)}; whether its end was cut, only a catalog could tell: {error.message}", error.hint
        )
    return good(f"unbroken, and nothing that was seen is gone; {_end(end)}")


def _end(end: AuditEnd) -> str:
    return f"it ends with record {end.number} ({end.digest})" if end.number else "it has no record yet"


def repository_has_script(repository: Repository) -> Finding:
    """The stand-alone recovery script lies beside the data."""
    found = [stat.name for stat in repository.storage.list("recover-")]
    if not found:
        return warning("no recovery script lies in the repository", "`seawall init --config FILE` stores it.")
    return good(f"{found[-1]} restores without Seawall")
