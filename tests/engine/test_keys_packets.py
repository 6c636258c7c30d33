"""Which OpenPGP messages count as readable everywhere; with messages and keys that this gpg would not make itself."""

from __future__ import annotations

import base64
import hashlib
import shutil
import struct
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from seawall.errors import Damaged, KeyUnusable
from seawall.keys import KeyRing
from seawall.keys.packets import dearmored, form_of, refuse_unportable


def packet(tag: int, body: bytes) -> bytes:
    """RFC 4880, section 4.2.2: a new-format packet with a length of four bytes."""
    return bytes([0xC0 | tag, 255]) + struct.pack(">I", len(body)) + body


def session_key(version: int = 3, key_id: int = 0xAABBCCDD00112233) -> bytes:
    return packet(1, bytes([version]) + struct.pack(">Q", key_id) + b"\x12" + bytes(40))


PROTECTED = packet(18, b"\x01" + bytes(50))


def test_session_keys_and_protected_data_are_what_every_gpg_reads() -> None:
    form = form_of(session_key() + session_key(key_id=0) + PROTECTED)
    assert form.key_ids == ("AABBCCDD00112233", "0000000000000000")
    assert form.is_portable
    refuse_unportable(form, 2)


@pytest.mark.parametrize(
    "message",
    [
        session_key() + session_key() + packet(20, b"\x01\x09\x02\x10" + bytes(50)),
        session_key() + session_key() + packet(18, b"\x02\x09\x02\x10" + bytes(80)),
        session_key() + session_key() + packet(9, bytes(50)),
        session_key() + session_key(6) + PROTECTED,
        session_key() + packet(3, b"\x04" + bytes(12)) + PROTECTED,
        packet(11, b"b\x00" + bytes(10)),
        PROTECTED,
    ],
    ids=["ocb", "rfc9580", "unprotected", "v6 key", "password", "literal", "nobody"],
)
def test_any_other_form_is_refused(message: bytes) -> None:
    with pytest.raises(KeyUnusable):
        refuse_unportable(form_of(message), 2)


def test_a_message_for_too_few_is_refused() -> None:
    with pytest.raises(KeyUnusable, match="1 of 2"):
        refuse_unportable(form_of(session_key() + PROTECTED), 2)


@given(head=st.binary(max_size=300))
@example(head=b"\xff\xff\xff\xff\xff\xff")
@example(head=b"\x84")
@example(head=b"\xc1\xe0\x00")
def test_random_bytes_are_a_form_or_damage(head: bytes) -> None:
    try:
        form = form_of(head)
    except Damaged:
        return
    assert form.data_tag != 1


@given(data=st.binary(min_size=1, max_size=500), ending=st.sampled_from(["\n", "\r\n"]), comment=st.booleans())
def test_armor_comes_off(data: bytes, ending: str, comment: bool) -> None:
    body = base64.b64encode(data).decode()
    lines = ["-----BEGIN PGP MESSAGE-----", *(["Comment: x"] if comment else []), ""]
    lines += [body[at : at + 64] for at in range(0, len(body), 64)]
    lines += ["=abcd", "-----END PGP MESSAGE-----", ""]
    assert dearmored("mail\n" + ending.join(lines)) == data


@given(text=st.text(max_size=200))
def test_random_text_is_no_armor(text: str) -> None:
    with pytest.raises(Damaged):
        dearmored(text)


# ---- a key of a newer GnuPG, made by hand


def mpi(data: bytes) -> bytes:
    data = data.lstrip(b"\0")
    return struct.pack(">H", int.from_bytes(data).bit_length()) + data


def subpacket(kind: int, body: bytes) -> bytes:
    return bytes([len(body) + 1, kind]) + body


def signature(signer: Ed25519PrivateKey, kind: int, hashed: bytes, subject: bytes, key_id: bytes) -> bytes:
    """A version 4 signature packet: RFC 4880, section 5.2.3 and 5.2.4; EdDSA as in draft-koch-eddsa-for-openpgp."""
    head = bytes([4, kind, 22, 8]) + struct.pack(">H", len(hashed)) + hashed
    digest = hashlib.sha256(subject + head + b"\x04\xff" + struct.pack(">I", len(head))).digest()
    made = signer.sign(digest)
    unhashed = subpacket(16, key_id)
    rest = struct.pack(">H", len(unhashed)) + unhashed + digest[:2] + mpi(made[:32]) + mpi(made[32:])
    return packet(2, head + rest)


def public_body(created: int, algorithm: int, oid: str, point: bytes, tail: bytes = b"") -> bytes:
    curve = bytes.fromhex(oid)
    return b"\x04" + struct.pack(">IB", created, algorithm) + bytes([len(curve)]) + curve + mpi(b"\x40" + point) + tail


def framed(body: bytes) -> bytes:
    return b"\x99" + struct.pack(">H", len(body)) + body


def ocb_key(user: bytes) -> tuple[str, bytes]:
    """Fingerprint and public key as GnuPG 2.4 makes it: feature flags 0x07, preferred AEAD mode OCB."""
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    signer, created = Ed25519PrivateKey.generate(), int(time.time()) - 100
    primary = public_body(created, 22, "2b06010401da470f01", signer.public_key().public_bytes(*raw))
    encrypts = X25519PrivateKey.generate().public_key().public_bytes(*raw)
    sub = public_body(created, 18, "2b060104019755010501", encrypts, b"\x03\x01\x08\x07")
    fingerprint = hashlib.sha1(framed(primary)).digest()  # noqa: S324 - that is what a version 4 fingerprint is
    stamp = subpacket(2, struct.pack(">I", created)) + subpacket(33, b"\x04" + fingerprint)
    wants = subpacket(11, b"\x09\x08\x07") + subpacket(34, b"\x02") + subpacket(30, b"\x07")
    certified = framed(primary) + b"\xb4" + struct.pack(">I", len(user)) + user
    key_id = fingerprint[-8:]
    certification = signature(signer, 0x13, stamp + subpacket(27, b"\x03") + wants, certified, key_id)
    binding = signature(signer, 0x18, stamp + subpacket(27, b"\x0c"), framed(primary) + framed(sub), key_id)
    whole = packet(6, primary) + packet(13, user) + certification + packet(14, sub) + binding
    return fingerprint.hex().upper(), whole


@pytest.mark.skipif(shutil.which("gpg") is None, reason="GnuPG is not installed")
def test_keys_that_advertise_ocb_get_a_readable_message_or_none(tmp_path: Path) -> None:
    """GnuPG 2.2 writes the readable form; 2.4 would not, where every key advertises OCB, and is then refused."""
    with KeyRing(tmp_path / "r") as ring:
        keys = [ocb_key(b"Newer One <one@x.test>"), ocb_key(b"Newer Two <two@x.test>")]
        recipients = [ring.import_keys(data)[0] for _, data in keys]
        assert recipients == [fingerprint for fingerprint, _ in keys]
        assert [key.problem for key in ring.list()] == ["", ""]
        try:
            wrapped = ring.wrap(b"secret", recipients)
        except KeyUnusable as error:
            assert "OCB" in error.hint
            return
        assert form_of(dearmored(wrapped)).is_portable
        stream = b"".join(ring.encrypt_stream([b"x" * 100_000], recipients))
        assert form_of(stream).is_portable


@pytest.mark.skipif(shutil.which("gpg") is None, reason="GnuPG is not installed")
def test_a_gpg_that_writes_ocb_is_caught_before_the_object_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in writes what GnuPG 2.4 would; everything else is done by the real one."""
    real = shutil.which("gpg")
    message = session_key() + session_key() + packet(20, b"\x01\x09\x02\x10" + bytes(100))
    (tmp_path / "ocb").write_bytes(message)
    (tmp_path / "gpg").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--encrypt*) cat >/dev/null; cat {tmp_path}/ocb; echo "[GNUPG:] END_ENCRYPTION" >&2\n'
        "exit 0;; esac\n"
        f'exec {real} "$@"\n'
    )
    (tmp_path / "gpg").chmod(0o755)
    with KeyRing(tmp_path / "r") as ring:
        recipients = [ring.generate(f"Key {n}", f"{n}@x.test", passphrase="") for n in "ab"]
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(KeyUnusable, match="not every gpg can open"):
            for _ in ring.encrypt_stream([b"x"], recipients):
                pass
