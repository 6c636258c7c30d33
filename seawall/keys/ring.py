"""A ring of OpenPGP keys: wraps data keys for several recipients, unwraps them with a private key.

Key management and wrapping go through python-gnupg, with everything checked that it does not check itself: exit
status and status lines beside `ok`, callbacks that failed, the packets that came out. Streams go through
`gpg.pump` (its docstring says why). Passphrases travel in pipes only; the agent that may remember one is ours alone
and ends with `close`, or with the process.

Not guaranteed: that a plain byte of `decrypt_stream` is right before the iterator ended. GnuPG releases bytes
before it has checked them; whoever takes them compares hashes, or waits for the end.
"""

from __future__ import annotations

import builtins
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict

from seawall.errors import Damaged, KeyMissing, KeyUnusable, UsageError
from seawall.storage.base import Bytes

if TYPE_CHECKING:
    from types import TracebackType

    import gnupg

    from seawall.keys.gpg import Session
    from seawall.settings import SealingSettings

PassphraseSource: TypeAlias = Callable[[], str]

# A wrapped data key is 32 bytes, 44 as text: whatever is much larger is something else.
_UNWRAPPED_BYTES = 64 * 1024
_FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
# What may stand before the address: a name, and in parentheses a comment (RFC 4880, 5.11, and what gpg makes of it).
_NAME = re.compile(r"[^\x00-\x1f\x7f<>()@]+(?: \([^\x00-\x1f\x7f<>()@]+\))?")
_EMAIL = re.compile(r"[^\x00-\x20\x7f<>()@]+@[^\x00-\x20\x7f<>()@]+")
# gpg-agent's limit (agent.h, MAX_PASSPHRASE_LEN).
_LONGEST_PASSPHRASE = 255
# GPG_ERR_BAD_PASSPHRASE of libgpg-error, in the low 16 bits of a code.
_BAD_PASSPHRASE = 11
# RFC 4880 preferences without OCB, which GnuPG 2.3 and later would else advertise and then use.
_PREFERENCES = "AES256 AES192 AES SHA512 SHA384 SHA256 ZLIB BZIP2 ZIP Uncompressed"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of a ring.

    Args:
        fingerprint: of the primary key, 40 or 64 hex digits.
        key_ids: the long ids of primary key and subkeys; messages name these.
        can_encrypt: whether something can be sealed for it now.
        has_secret: whether the ring holds a private part that decrypts.
        problem: why nothing can be sealed for it; empty if it can.
    """

    fingerprint: str
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    can_encrypt: bool
    has_secret: bool
    key_ids: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    problem: str = ""


class _Subkey(TypedDict, total=False):
    cap: str
    keygrip: str


class _Listed(TypedDict):
    """A key as python-gnupg lists it (fields of `gpg --with-colons`, doc/DETAILS)."""

    fingerprint: str
    keyid: str
    keygrip: str
    trust: str
    cap: str
    date: str
    expires: str
    uids: list[str]
    subkeys: list[list[str]]
    subkey_info: NotRequired[dict[str, _Subkey]]


class KeyRing:
    """The keys in one GnuPG home, which is made (mode 0700) when it is first needed.

    May be used by several threads. `close` ends what was started; the ring can be used again afterwards.

    Args:
        home: the directory; of any length.
        passphrase: asked for whenever a private key is used, and not kept.
    """

    def __init__(self, home: Path, passphrase: PassphraseSource | None = None) -> None:
        self.home = home
        self._passphrase = passphrase
        self._lock = threading.RLock()
        self._opened: Session | None = None
        self._tool: gnupg.GPG | None = None
        self._proving = threading.Lock()
        self._proved: dict[tuple[str, ...], tuple[object, tuple[str, ...]]] = {}

    def __enter__(self) -> KeyRing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, if one was started, and remove temporary files."""
        with self._lock:
            session, self._opened, self._tool = self._opened, None, None
        if session is not None:
            session.close()

    # ---- keys

    def generate(
        self, name: str, email: str, *, passphrase: str, expires_in_days: int = 0, stretched: bool = True
    ) -> str:
        """Make a key pair (Ed25519 with a Curve25519 subkey for encryption) and return its fingerprint.

        Args:
            passphrase: protects the private part; empty leaves it unprotected.
            expires_in_days: 0 for never.
            stretched: every use takes 0.1 s, which whoever guesses passphrases has to pay too; a passphrase that was
                drawn at random, with 128 bits or more, needs none of that.

        Raises:
            KeyUnusable: name, address or passphrase cannot be used, or gpg failed.
        """
        request = _generation(name, email, _checked_passphrase(passphrase, "for a new key"), expires_in_days)
        # Not by python-gnupg: gpg asks for the passphrase again, to bind the subkey, if the agent has forgotten it, and
        # `gen_key` has no way to answer.
        from seawall.keys import gpg  # noqa: PLC0415 - not on the way of a command that only reads

        made: builtins.list[str] = []
        # A session of its own: how what it writes is protected is settled when an agent starts.
        session = gpg.Session(self.home, gpg.STRETCHED if stretched else gpg.UNSTRETCHED)
        with closing(session):
            session.start_agent()
            for _ in gpg.pump(
                session.command(["--gen-key"]),
                session.environment(),
                [request.encode()],
                lambda status, messages: made.append(_created(status, messages)),
                passphrase=passphrase or None,
            ):
                pass
        return made[0]

    def list(self) -> tuple[KeyInfo, ...]:
        """All keys, in the order of their fingerprints."""
        if self._stamp() is None:
            return ()
        listed = self._gnupg.list_keys()
        if listed.returncode != 0:
            raise KeyUnusable(f"the keys of {self.home} cannot be listed: {_reason(listed.stderr)}")
        return tuple(sorted((self._info(key) for key in listed), key=lambda info: info.fingerprint))

    def _info(self, key: _Listed) -> KeyInfo:
        subkeys = key.get("subkey_info", {})
        grips = [(key["cap"], key.get("keygrip", ""))] + [
            (s.get("cap", ""), s.get("keygrip", "")) for s in subkeys.values()
        ]
        problem = _problem(key)
        return KeyInfo(
            fingerprint=key["fingerprint"],
            user_id=key["uids"][0] if key["uids"] else "",
            created_at=datetime.fromtimestamp(int(key["date"]), UTC),
            expires_at=datetime.fromtimestamp(int(key["expires"]), UTC) if key["expires"] else None,
            can_encrypt=not problem,
            # Lower-case letters are what a key itself can do, upper-case ones what the whole is good for now.
            has_secret=any("e" in cap and self._session.has_private_part(grip) for cap, grip in grips),
            key_ids=(key["keyid"], *subkeys),
            fingerprints=(key["fingerprint"], *(subkey[2] for subkey in key["subkeys"])),
            problem=problem,
        )

    def import_keys(self, data: str | bytes) -> tuple[str, ...]:
        """Add public or private keys; returns the fingerprints of all keys that `data` holds.

        A revocation certificate is taken too, and names none.

        Raises:
            KeyUnusable: there is none in it, or gpg refused one.
        """
        self._session.start_agent()
        result = self._gnupg.import_keys(data)
        found = tuple(dict.fromkeys(fingerprint for fingerprint in result.fingerprints if fingerprint))
        if result.returncode != 0 or not (found or result.n_revoc):
            raise KeyUnusable(f"no key was imported: {_reason(result.stderr)}", hint="Is it an OpenPGP key file?")
        return found

    def export_public(self, fingerprint: str) -> str:
        """The public key, armored.

        Raises:
            KeyMissing: the ring has no such key.
        """
        exported = self._gnupg.export_keys(self._one(fingerprint).fingerprint)
        return _whole_export(exported, "PUBLIC", fingerprint)

    def export_secret(self, fingerprint: str) -> str:
        """The private key, armored and still under its passphrase. It belongs on paper and in a safe.

        Raises:
            KeyMissing: the ring has no such private key.
            KeyUnusable: the passphrase is wrong.
        """
        found = self._one(fingerprint)
        if not found.has_secret:
            raise KeyMissing(f"the ring holds no private key {found.fingerprint} ({found.user_id})")
        self._session.start_agent()
        passphrase = self._asked_passphrase()
        exported = self._gnupg.export_keys(
            found.fingerprint, secret=True, passphrase=passphrase, expect_passphrase=passphrase is not None
        )
        return _whole_export(exported, "PRIVATE", fingerprint)

    def _one(self, fingerprint: str) -> KeyInfo:
        wanted = _full_fingerprint(fingerprint)
        for key in self.list():
            if wanted in key.fingerprints:
                return key
        raise KeyMissing(f"the ring {self.home} has no key {wanted}")

    # ---- data keys

    def prove(self, recipients: Sequence[str]) -> None:
        """See that something can be sealed for recipients; what is sealed for them next need not look again.

        Raises:
            KeyMissing, KeyUnusable: as for `wrap`.
        """
        self._proved_recipients(recipients, allow_single=False)

    def wrap(self, secret: bytes, recipients: Sequence[str], *, allow_single: bool = False) -> str:
        """An armored OpenPGP message that each recipient's private key opens.

        Args:
            recipients: full fingerprints of at least two keys.
            allow_single: accept one recipient; whoever loses that key loses the data.

        Raises:
            KeyMissing: a recipient's public key is not in the ring.
            KeyUnusable: a recipient's key is expired, revoked or cannot encrypt; there are too few; or gpg wrote
                something that not every gpg can open.
        """
        from seawall.keys import gpg, packets  # noqa: PLC0415 - not on the way of a command that only reads

        proved = self._proved_recipients(recipients, allow_single=allow_single)
        result = self._gnupg.encrypt(
            secret, list(proved), armor=True, always_trust=True, extra_args=list(gpg.ENCRYPTION)
        )
        failed = getattr(result, "on_data_failure", None)
        if not result.ok or result.returncode != 0 or result.status != "encryption ok" or failed is not None:
            raise KeyUnusable(f"gpg did not seal: {_reason(result.stderr)}")
        text = bytes(result.data).decode("ascii")
        packets.refuse_unportable(packets.form_of(packets.dearmored(text)), len(proved))
        return text

    def unwrap(self, text: str) -> bytes:
        """What `wrap` sealed.

        Raises:
            KeyMissing: the ring has none of the private keys that open it; the message names them.
            KeyUnusable: the passphrase is wrong or missing.
            Damaged: it is not what was written.
        """
        from seawall.keys import packets  # noqa: PLC0415 - as above

        message = packets.dearmored(text)
        packets.form_of(message)
        found = bytearray()
        for piece in self.decrypt_stream([message]):
            found += piece
            if len(found) > _UNWRAPPED_BYTES:
                raise Damaged("a wrapped key opens to far more than a key")
        return bytes(found)

    # ---- streams

    def encrypt_stream(self, chunks: Iterable[Bytes], recipients: Sequence[str]) -> Iterator[bytes]:
        """A binary OpenPGP message of `chunks`, made with bounded memory while it is iterated.

        The iterator ends only when gpg reported success; if `chunks` raises, gpg is killed and the same error comes
        out. What came before is then no message, so store it only where an error leaves nothing behind.

        Raises:
            KeyMissing, KeyUnusable: as for `wrap`.
        """
        from seawall.keys import gpg, packets  # noqa: PLC0415 - as above

        proved = self._proved_recipients(recipients, allow_single=False)
        named = [part for fingerprint in proved for part in ("--recipient", fingerprint)]
        command = self._session.command([*gpg.ENCRYPTION, *named, "--encrypt"])
        head = bytearray()
        for piece in gpg.pump(command, self._session.environment(), chunks, _judge_encryption):
            if len(head) < packets.HEAD_BYTES:
                head += piece[: packets.HEAD_BYTES]
            yield piece
        # The caller has not finished its object yet: raising here still leaves nothing behind.
        packets.refuse_unportable(packets.form_of(bytes(head)), len(proved))

    def decrypt_stream(self, chunks: Iterable[Bytes]) -> Iterator[bytes]:
        """The plain bytes of an OpenPGP message, with bounded memory; trust none before the iterator ended.

        Raises:
            KeyMissing: the ring has none of the private keys that open it; the message names them.
            KeyUnusable: the passphrase is wrong or missing.
            Damaged: it is cut, changed, or no encrypted message.
        """
        from seawall.keys import gpg  # noqa: PLC0415 - as above

        passphrase = self._asked_passphrase()
        self._session.start_agent()
        command = self._session.command(["--decrypt"])
        yield from gpg.pump(command, self._session.environment(), chunks, self._judge_decryption, passphrase=passphrase)

    def _judge_decryption(self, status: int, messages: str) -> None:
        said = _status_lines(messages)
        # GOODMDC for version 1; a third word other than 0 for the authenticated modes of newer writers.
        whole = "GOODMDC" in said or said.get("DECRYPTION_INFO", ["2 9 0"])[0].split()[2:] not in ([], ["0"])
        if status == 0 and "DECRYPTION_OKAY" in said and whole:
            return
        codes = {
            int(line.split()[-1]) & 0xFFFF for line in said.get("ERROR", ()) if line.startswith("pkdecrypt_failed ")
        }
        if _BAD_PASSPHRASE in codes or ("NEED_PASSPHRASE" in said and "DECRYPTION_KEY" not in said):
            raise KeyUnusable(f"the passphrase of the key ring {self.home} is missing or wrong")
        if "NO_SECKEY" in said and "DECRYPTION_KEY" not in said and not codes:
            named = self._named(said["NO_SECKEY"])
            raise KeyMissing(f"none of the private keys that open this is in {self.home}: {named}")
        raise Damaged(f"gpg could not decrypt: {_reason(messages)}")

    def _named(self, lines: Sequence[str]) -> str:
        known = {key_id: key.user_id for key in self.list() for key_id in key.key_ids}
        ids = dict.fromkeys(line.split()[0] for line in lines)
        return ", ".join(f"{key_id} ({known[key_id]})" if key_id in known else key_id for key_id in ids)

    # ---- inside

    @property
    def _session(self) -> Session:
        from seawall.keys.gpg import Session  # noqa: PLC0415 - as above

        with self._lock:
            if self._opened is None:
                self._opened = Session(self.home)
            return self._opened

    @property
    def _gnupg(self) -> gnupg.GPG:
        import gnupg  # noqa: PLC0415 - 30 ms that only key management and wrapping pay

        with self._lock:
            if self._tool is None:
                session = self._session
                try:
                    self._tool = gnupg.GPG(
                        gnupghome=str(session.directory),
                        keyring=str(session.keyring),
                        options=session.options(),
                        env=session.environment(),
                        # The default, Latin-1, would turn a passphrase with an umlaut into another one.
                        encoding="utf-8",
                    )
                except (OSError, ValueError) as error:
                    raise KeyUnusable(f"gpg cannot be used: {error}", hint="Install GnuPG 2.2 or later.") from error
            return self._tool

    def _stamp(self) -> tuple[int, int] | None:
        """What changes with the public keys; None while there are none."""
        # The directory first: that is where a home that cannot be used is told as such.
        ring = self._session.directory and self._session.keyring
        if not ring.exists():
            return None
        stat = ring.stat()
        return stat.st_mtime_ns, stat.st_size

    def _asked_passphrase(self) -> str | None:
        # None and empty differ for python-gnupg: it would let gpg take the first line of the data for an empty one.
        return _checked_passphrase(self._passphrase(), f"of {self.home}") or None if self._passphrase else None

    def _proved_recipients(self, recipients: Sequence[str], *, allow_single: bool) -> tuple[str, ...]:
        """Primary fingerprints of keys that something can be sealed for; remembered until the ring changes."""
        wanted = tuple(_full_fingerprint(recipient) for recipient in recipients)
        # Whoever comes while another looks waits for what that one finds.
        with self._proving:
            stamp = self._stamp()
            remembered = self._proved.get(wanted)
            if remembered is None or remembered[0] != stamp:
                remembered = self._proved[wanted] = (stamp, _usable(self.list(), wanted, self.home))
        if len(remembered[1]) < (1 if allow_single else 2):
            raise KeyUnusable(
                f"{len(remembered[1])} distinct recipient is too few: one lost key must not lose every backup",
                hint="Name an operations key and an escrow key, two different ones, in [sealing].",
            )
        return remembered[1]


def open_ring(settings: SealingSettings) -> KeyRing:
    """The ring that settings name. The passphrase file is read when a private key is used, not before."""
    file = settings.passphrase_file
    return KeyRing(settings.keyring, None if file is None else lambda: _passphrase_from(file))


def _passphrase_from(file: Path) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise KeyUnusable(f"{file} may be read by others", hint=f"chmod 600 {file}")
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KeyUnusable(f"{file} is not UTF-8") from error
    except OSError as error:
        raise KeyUnusable(f"{file} cannot be read: {error.strerror}") from error


def _usable(keys: Sequence[KeyInfo], wanted: Sequence[str], home: Path) -> tuple[str, ...]:
    by_fingerprint = {fingerprint: key for key in keys for fingerprint in key.fingerprints}
    missing = [fingerprint for fingerprint in wanted if fingerprint not in by_fingerprint]
    if missing:
        raise KeyMissing(
            f"the ring {home} has no public key {', '.join(missing)}",
            hint="Import the recipient's public key with `seawall keys import`.",
        )
    # Two subkeys of one key are one recipient: lost together.
    chosen = {by_fingerprint[fingerprint].fingerprint: by_fingerprint[fingerprint] for fingerprint in wanted}
    faults = [f"{key.fingerprint} ({key.user_id}) {key.problem}" for key in chosen.values() if key.problem]
    if faults:
        raise KeyUnusable(f"nothing can be sealed for {'; '.join(faults)}")
    return tuple(chosen)


def _full_fingerprint(text: str) -> str:
    found = "".join(text.split()).upper()
    if _FINGERPRINT.fullmatch(found) is None:
        raise KeyUnusable(
            f"{text!r} is no full fingerprint",
            hint="Short key ids can be forged; `seawall keys list` shows fingerprints of 40 digits.",
        )
    return found


def _problem(key: _Listed) -> str:
    """Why nothing can be sealed for a key, by the second and twelfth field of gpg's list (doc/DETAILS)."""
    words = {"r": "is revoked", "e": "is expired", "i": "is invalid", "d": "is disabled"}
    if key["trust"] in words:
        return words[key["trust"]]
    if "D" in key["cap"]:
        return words["d"]
    # gpg may list a validity that it worked out before the key's last second passed.
    if key["expires"] and int(key["expires"]) <= time.time():
        return words["e"]
    return "" if "E" in key["cap"] else "cannot encrypt, or its subkey for that is expired or revoked"


def _checked_passphrase(passphrase: str, what: str) -> str:
    if any(ord(c) < 32 for c in passphrase) or len(passphrase.encode()) > _LONGEST_PASSPHRASE:
        raise KeyUnusable(f"the passphrase {what} has a control character or more than {_LONGEST_PASSPHRASE} bytes")
    return passphrase


def _generation(name: str, email: str, passphrase: str, expires_in_days: int) -> str:
    """A request for `gpg --gen-key` (doc/DETAILS, "Unattended key generation")."""
    if _NAME.fullmatch(name) is None or name != name.strip():
        raise UsageError(f"{name!r} cannot be a key's name", hint="For example: Shop backups (operations)")
    if _EMAIL.fullmatch(email) is None:
        raise UsageError(
            f"{email!r} is not an address", hint="For example: backups@example.org; nothing is sent there."
        )
    if expires_in_days < 0:
        raise UsageError("a new key expires in the future", hint="Give a number of days, or 0 for never.")
    if passphrase != passphrase.strip():
        raise KeyUnusable("a new key's passphrase neither begins nor ends with a space")
    lines = (
        "Key-Type: EDDSA",
        "Key-Curve: ed25519",
        "Key-Usage: sign",
        "Subkey-Type: ECDH",
        "Subkey-Curve: cv25519",
        "Subkey-Usage: encrypt",
        f"Name-Real: {name}",
        f"Name-Email: {email}",
        f"Expire-Date: {f'{expires_in_days}d' if expires_in_days else 0}",
        f"Preferences: {_PREFERENCES}",
        f"Passphrase: {passphrase}" if passphrase else "%no-protection",
        "%commit",
    )
    return "\n".join(lines) + "\n"


def _whole_export(text: str, kind: str, fingerprint: str) -> str:
    # python-gnupg returns what came, and an empty text for a failure.
    if not text.startswith(f"-----BEGIN PGP {kind} KEY BLOCK-----") or "-----END PGP" not in text:
        raise KeyUnusable(f"gpg did not export key {fingerprint}", hint="Is the passphrase right?")
    return text


def _judge_encryption(status: int, messages: str) -> None:
    said = _status_lines(messages)
    if status != 0 or "END_ENCRYPTION" not in said or "INV_RECP" in said:
        raise KeyUnusable(f"gpg did not seal: {_reason(messages)}")


def _created(status: int, messages: str) -> str:
    said = _status_lines(messages)
    if status != 0 or "KEY_CREATED" not in said:
        raise KeyUnusable(f"gpg made no key: {_reason(messages)}")
    return said["KEY_CREATED"][0].split()[1]


def _status_lines(messages: str) -> Mapping[str, list[str]]:
    """Status keywords and what follows each (doc/DETAILS, "Format of the --status-fd output")."""
    said: dict[str, list[str]] = {}
    for line in messages.splitlines():
        if line.startswith("[GNUPG:] "):
            keyword, _, rest = line.removeprefix("[GNUPG:] ").partition(" ")
            said.setdefault(keyword, []).append(rest)
    return said


def _reason(messages: str) -> str:
    """The last thing gpg said to people."""
    spoken = [line for line in messages.splitlines() if line.strip() and not line.startswith("[GNUPG:]")]
    return spoken[-1].removeprefix("gpg: ").strip() if spoken else "it did not say why"
