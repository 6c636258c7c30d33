"""The key ring with a real gpg: what is sealed opens for each recipient, and half a message never passes as whole."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from seawall.errors import Damaged, KeyMissing, KeyUnusable, SeawallError, UsageError
from seawall.keys import KeyRing, open_ring
from seawall.keys.gpg import Session
from seawall.settings import SealingSettings

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="GnuPG is not installed")

PASSPHRASE = "gehäim mit Länge"
SECRET = b"c2Vhd2FsbA==" * 4


@dataclass
class Rings:
    both: KeyRing
    operations: KeyRing
    escrow: KeyRing
    public: KeyRing
    operations_key: str
    escrow_key: str

    @property
    def recipients(self) -> tuple[str, str]:
        return self.operations_key, self.escrow_key


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rings]:
    """Each key in a ring of its own, both in one, and a ring of public keys only, as the taking host has it."""
    base = tmp_path_factory.mktemp("rings")
    made = {name: KeyRing(base / name, lambda: PASSPHRASE) for name in ("both", "operations", "escrow", "public")}
    with contextlib.ExitStack() as stack:
        for ring in made.values():
            stack.enter_context(ring)
        operations = made["operations"].generate("Shop operations", "ops@shop.test", passphrase=PASSPHRASE)
        escrow = made["escrow"].generate("Shop escrow Ü", "escrow@shop.test", passphrase=PASSPHRASE, expires_in_days=9)
        for name, key in (("operations", operations), ("escrow", escrow)):
            made["public"].import_keys(made[name].export_public(key))
            made["both"].import_keys(made[name].export_secret(key))
        yield Rings(**made, operations_key=operations, escrow_key=escrow)


def gpg(home: Path, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["gpg", "--homedir", str(home), "--batch", "--no-tty", "--status-fd", "2", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False)


# ---- keys


def test_a_list_tells_what_each_key_is_good_for(rings: Rings) -> None:
    by_print = {key.fingerprint: key for key in rings.public.list()}
    assert set(by_print) == set(rings.recipients)
    escrow = by_print[rings.escrow_key]
    assert escrow.user_id == "Shop escrow Ü <escrow@shop.test>"
    assert escrow.expires_at is not None
    assert (escrow.expires_at - escrow.created_at).days == 9
    assert by_print[rings.operations_key].expires_at is None
    assert all(key.can_encrypt and not key.problem and not key.has_secret for key in by_print.values())
    assert {key.has_secret for key in rings.both.list()} == {True}
    assert KeyRing(rings.both.home.parent / "nobody").list() == ()


def test_an_exported_secret_is_still_under_its_passphrase(rings: Rings, tmp_path: Path) -> None:
    exported = rings.operations.export_secret(rings.operations_key)
    with KeyRing(tmp_path / "r", lambda: "another") as ring:
        ring.import_keys(exported)
        with pytest.raises(KeyUnusable, match="passphrase"):
            ring.unwrap(rings.public.wrap(SECRET, rings.recipients))


def test_a_secret_that_is_not_there_is_not_exported(rings: Rings) -> None:
    with pytest.raises(KeyMissing, match="no private key"):
        rings.public.export_secret(rings.escrow_key)
    with pytest.raises(KeyMissing, match="no key"):
        rings.public.export_public("0" * 40)


def test_importing_what_is_no_key_is_refused(tmp_path: Path) -> None:
    with KeyRing(tmp_path) as ring:
        for data in ("", "nonsense", b"\x00\xff" * 50):
            with pytest.raises(KeyUnusable):
                ring.import_keys(data)


@pytest.mark.parametrize(
    ("name", "email", "passphrase"),
    [
        ("A\n%no-protection", "a@x.test", "p"),
        ("Name", "a@x.test\nKey-Type: DSA", "p"),
        ("Name", "a@x.test", "p\n%no-protection"),
        ("Name", "a@x.test", " p"),
        ("", "a@x.test", "p"),
        ("Name", "no address", "p"),
        ("Name", "nobody", "p"),
        ("Name <b@x.test>", "a@x.test", "p"),
        ("Name (one) (two)", "a@x.test", "p"),
    ],
)
def test_a_request_for_a_key_cannot_smuggle_lines(tmp_path: Path, name: str, email: str, passphrase: str) -> None:
    with KeyRing(tmp_path) as ring, pytest.raises((KeyUnusable, UsageError)):
        ring.generate(name, email, passphrase=passphrase)


def test_a_name_may_say_in_parentheses_what_the_key_is_for(tmp_path: Path) -> None:
    with KeyRing(tmp_path / "r") as ring:
        ring.generate("Shop backups (operations)", "ops@shop.test", passphrase="")
        assert [found.user_id for found in ring.list()] == ["Shop backups (operations) <ops@shop.test>"]


def test_a_key_without_passphrase_needs_none(tmp_path: Path, rings: Rings) -> None:
    with KeyRing(tmp_path / "r") as ring:
        key = ring.generate("Bare", "bare@x.test", passphrase="")
        ring.import_keys(rings.public.export_public(rings.escrow_key))
        assert ring.unwrap(ring.wrap(SECRET, [key, rings.escrow_key])) == SECRET


# ---- wrapping


def test_either_recipient_opens_what_a_host_with_public_keys_sealed(rings: Rings) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    assert wrapped.startswith("-----BEGIN PGP MESSAGE-----")
    assert SECRET.decode() not in wrapped
    assert rings.operations.unwrap(wrapped) == SECRET
    assert rings.escrow.unwrap(wrapped) == SECRET


def test_plain_gpg_opens_what_was_wrapped(rings: Rings) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    arguments = ["--pinentry-mode", "loopback", "--passphrase-fd", "0", "--decrypt"]
    found = gpg(rings.operations.home, *arguments, data=PASSPHRASE.encode() + b"\n" + wrapped.encode())
    subprocess.run(["gpgconf", "--homedir", str(rings.operations.home), "--kill", "gpg-agent"], check=True)
    assert found.stdout == SECRET


def test_what_was_wrapped_has_the_packets_that_every_gpg_reads(rings: Rings) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    listed = gpg(rings.public.home, "--no-autostart", "--list-packets", "--list-only", data=wrapped.encode()).stdout
    assert listed.count(b":pubkey enc packet: version 3") == 2
    assert b"tag=18" in listed
    assert b"mdc_method: 2" in listed
    assert b"tag=20" not in listed
    assert b"compressed" not in listed


def test_fewer_than_two_recipients_are_too_few(rings: Rings) -> None:
    subkey = next(key for key in rings.public.list() if key.fingerprint == rings.escrow_key).fingerprints[1]
    for recipients in ([], [rings.escrow_key], [rings.escrow_key] * 2, [rings.escrow_key, subkey]):
        with pytest.raises(KeyUnusable, match="too few"):
            rings.public.wrap(SECRET, recipients)
    alone = rings.public.wrap(SECRET, [rings.escrow_key], allow_single=True)
    assert rings.escrow.unwrap(alone) == SECRET
    with pytest.raises(KeyUnusable, match="too few"):
        rings.public.wrap(SECRET, [], allow_single=True)


def test_fingerprints_may_be_written_in_groups_and_in_small_letters(rings: Rings) -> None:
    grouped = " ".join(rings.escrow_key[at : at + 4] for at in range(0, 40, 4))
    assert rings.escrow.unwrap(rings.public.wrap(SECRET, [rings.operations_key.lower(), grouped])) == SECRET


@pytest.mark.parametrize("recipient", ["", "ops@shop.test", "DEADBEEF", "--output=/tmp/x", "0" * 39, "0" * 16])
def test_only_full_fingerprints_name_a_recipient(rings: Rings, recipient: str) -> None:
    with pytest.raises(KeyUnusable, match="no full fingerprint"):
        rings.public.wrap(SECRET, [rings.escrow_key, recipient])


def test_a_recipient_that_is_not_in_the_ring_is_named(rings: Rings) -> None:
    with pytest.raises(KeyMissing, match="A" * 40):
        rings.public.wrap(SECRET, [rings.escrow_key, "A" * 40])


def revoked(ring: KeyRing, fingerprint: str) -> None:
    certificate = (ring.home / "openpgp-revocs.d" / f"{fingerprint}.rev").read_text()
    ring.import_keys(certificate.replace(":-----BEGIN", "-----BEGIN"))


def test_expired_revoked_and_signing_keys_are_refused_by_name(tmp_path: Path, rings: Rings) -> None:
    with KeyRing(tmp_path / "r") as ring:
        ring.import_keys(rings.public.export_public(rings.operations_key))
        past = gpg_key(ring, "Expired", "Expire-Date: seconds=1", "Subkey-Type: ECDH\nSubkey-Curve: cv25519")
        signing = gpg_key(ring, "Signing", "Expire-Date: 0", "")
        gone = ring.generate("Revoked", "gone@x.test", passphrase="")
        good = ring.generate("Good", "good@x.test", passphrase="")
        revoked(ring, gone)
        time.sleep(1.5)
        problems = {key.fingerprint: key.problem for key in ring.list()}
        assert problems[good] == ""
        for key, word in ((past, "expired"), (signing, "cannot encrypt"), (gone, "revoked")):
            assert word in problems[key]
            with pytest.raises(KeyUnusable, match=f"{key}.*{word}"):
                ring.wrap(SECRET, [good, key])
            with pytest.raises(KeyUnusable, match=f"{key}.*{word}"):
                list(ring.encrypt_stream([b"x"], [good, key]))
        assert ring.wrap(SECRET, [good, rings.operations_key])


def gpg_key(ring: KeyRing, name: str, expiry: str, subkey: str) -> str:
    """A key of a kind that Seawall itself does not make."""
    before = {key.fingerprint for key in ring.list()}
    lines = ["Key-Type: EDDSA", "Key-Curve: ed25519", subkey, f"Name-Real: {name}", expiry, "%no-protection", "%commit"]
    home = ring.home
    made = gpg(home, "--gen-key", data="\n".join(line for line in lines if line).encode())
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)
    assert made.returncode == 0, made.stderr
    return next(key.fingerprint for key in ring.list() if key.fingerprint not in before)


def test_a_ring_that_changes_is_looked_at_again(tmp_path: Path, rings: Rings) -> None:
    with KeyRing(tmp_path / "r") as ring:
        ring.import_keys(rings.public.export_public(rings.escrow_key))
        key = ring.generate("Soon revoked", "soon@x.test", passphrase="")
        assert ring.wrap(SECRET, [key, rings.escrow_key])
        revoked(ring, key)
        with pytest.raises(KeyUnusable, match="revoked"):
            ring.wrap(SECRET, [key, rings.escrow_key])


# ---- unwrapping


def test_whoever_lacks_the_key_is_told_which_keys_open_it(rings: Rings, tmp_path: Path) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    subkeys = [key.key_ids[1] for key in rings.public.list()]
    for ring in (rings.public, KeyRing(tmp_path / "empty")):
        with ring, pytest.raises(KeyMissing) as caught:
            ring.unwrap(wrapped)
        assert all(key_id in caught.value.message for key_id in subkeys)
    with pytest.raises(KeyMissing, match="Shop operations"):
        rings.public.unwrap(wrapped)


@pytest.mark.parametrize("passphrase", [None, "", "wrong", "gehaeim"])
def test_a_wrong_or_missing_passphrase_is_named_as_such(rings: Rings, passphrase: str | None) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    source = None if passphrase is None else lambda: passphrase
    with KeyRing(rings.both.home, source) as ring, pytest.raises(KeyUnusable, match="passphrase"):
        ring.unwrap(wrapped)


def test_damage_to_a_wrapped_key_is_never_a_key(rings: Rings) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    lines = wrapped.splitlines()
    body = next(n for n, line in enumerate(lines) if not line) + 1
    damaged = [
        "",
        "no armor",
        wrapped[:200],
        wrapped.replace("BEGIN PGP MESSAGE", "BEGIN PGP NOTHING"),
        "\n".join([*lines[:body], *lines[body + 1 :]]),
        "\n".join([*lines[:-4], lines[-4][::-1], *lines[-3:]]),
        rings.public.export_public(rings.escrow_key),
    ]
    for text in damaged:
        with pytest.raises(SeawallError):
            rings.operations.unwrap(text)


def test_a_message_that_is_not_encrypted_is_no_wrapped_key(rings: Rings) -> None:
    stored = gpg(rings.public.home, "--no-autostart", "--armor", "--store", data=SECRET).stdout.decode()
    with pytest.raises(Damaged):
        rings.operations.unwrap(stored)


def test_a_wrapped_key_of_megabytes_is_refused(rings: Rings) -> None:
    huge = rings.public.wrap(bytes(1_000_000), rings.recipients)
    with pytest.raises(Damaged, match="far more"):
        rings.operations.unwrap(huge)


# ---- streams


def test_a_stream_comes_back_as_it_went_in(rings: Rings) -> None:
    pieces = [os.urandom(300_000), b"", memoryview(bytearray(b"view")), os.urandom(5_000_000)]
    sealed = list(rings.public.encrypt_stream(iter(pieces), rings.recipients))
    assert max(map(len, sealed)) <= 1024 * 1024
    assert b"".join(rings.escrow.decrypt_stream(iter(sealed))) == b"".join(pieces)
    assert b"".join(rings.escrow.decrypt_stream(rings.public.encrypt_stream([], rings.recipients))) == b""


def test_a_view_is_written_before_the_next_is_asked_for(rings: Rings) -> None:
    buffer = bytearray(700_000)

    def reused() -> Iterator[memoryview]:
        for number in range(9):
            buffer[:] = bytes([number]) * len(buffer)
            yield memoryview(buffer)

    sealed = b"".join(rings.public.encrypt_stream(reused(), rings.recipients))
    expected = b"".join(bytes([number]) * len(buffer) for number in range(9))
    assert b"".join(rings.operations.decrypt_stream([sealed])) == expected


def test_memory_stays_bounded_however_long_the_stream_is(rings: Rings) -> None:
    asked = [0]

    def endless() -> Iterator[bytes]:
        while True:
            asked[0] += 1
            yield bytes(1_000_000)

    stream = rings.public.encrypt_stream(endless(), rings.recipients)
    for _ in range(3):
        next(stream)
    time.sleep(0.2)
    assert asked[0] < 12
    stream.close()


def test_a_source_that_fails_leaves_no_message_that_opens(rings: Rings) -> None:
    def failing() -> Iterator[bytes]:
        yield os.urandom(3_000_000)
        raise OSError(5, "Input/output error")

    got = bytearray()
    with pytest.raises(OSError, match="Input/output"):
        for piece in rings.public.encrypt_stream(failing(), rings.recipients):
            got += piece
    with pytest.raises(SeawallError):
        b"".join(rings.operations.decrypt_stream([bytes(got)]))


def test_a_consumer_that_stops_ends_gpg(rings: Rings) -> None:
    stream = rings.public.encrypt_stream(iter(lambda: os.urandom(100_000), b""), rings.recipients)
    next(stream)
    stream.close()
    assert not children("gpg")


def test_every_cut_and_flip_of_a_message_is_found_by_its_end(rings: Rings) -> None:
    sealed = b"".join(rings.public.encrypt_stream([bytes(200_000)], rings.recipients))
    for length in (0, 1, 50, 100, 190, 250, 5000, len(sealed) // 2, len(sealed) - 20, len(sealed) - 1):
        with pytest.raises(SeawallError):
            b"".join(rings.operations.decrypt_stream([sealed[:length]]))
    for at in (300, 5000, len(sealed) // 2, len(sealed) - 5):
        flipped = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(Damaged):
            b"".join(rings.operations.decrypt_stream([flipped]))
    for more in (b"x", b"\xcb\x0bb\x00\x00\x00\x00\x00hello", sealed):
        with pytest.raises(Damaged):
            b"".join(rings.operations.decrypt_stream([sealed, more]))


def test_a_failing_source_of_a_decryption_is_not_taken_for_its_end(rings: Rings) -> None:
    sealed = b"".join(rings.public.encrypt_stream([os.urandom(3_000_000)], rings.recipients))

    def failing() -> Iterator[bytes]:
        yield sealed[:2_000_000]
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        b"".join(rings.operations.decrypt_stream(failing()))


def test_a_message_of_three_is_opened_by_any_of_three(rings: Rings, tmp_path: Path) -> None:
    with KeyRing(tmp_path / "r") as third:
        key = third.generate("Third", "third@x.test", passphrase="")
        for one in rings.recipients:
            third.import_keys(rings.public.export_public(one))
        wrapped = third.wrap(SECRET, [*rings.recipients, key])
        assert [ring.unwrap(wrapped) for ring in (third, rings.operations, rings.escrow)] == [SECRET] * 3


# ---- homes, agents, secrets


def test_a_home_is_private_and_may_lie_deep(tmp_path: Path, rings: Rings) -> None:
    home = tmp_path.joinpath(*(["a-directory-with-a-long-name"] * 6), "ring")
    with KeyRing(home) as ring:
        key = ring.generate("Deep", "deep@x.test", passphrase="")
        ring.import_keys(rings.public.export_public(rings.escrow_key))
        assert ring.unwrap(ring.wrap(SECRET, [key, rings.escrow_key])) == SECRET
    assert len(str(home)) > 150
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "private-keys-v1.d").stat().st_mode & 0o777 == 0o700


def test_a_home_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    home = tmp_path / "r"
    home.mkdir(mode=0o755)
    with KeyRing(home) as ring:
        ring.generate("A", "a@x.test", passphrase="")
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_made_is_a_key_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with KeyRing(tmp_path / "file" / "ring") as ring, pytest.raises(KeyUnusable, match="cannot be used"):
        ring.list()


def children(name: str, parent: int | None = None) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rsplit(") ", 1)
            if fields[0].endswith(f"({name}") and fields[1].split()[0] != "Z":
                if parent is None and int(fields[1].split()[1]) != os.getpid():
                    continue
                found.add(int(entry.name))
    return found


def agents(directory: str) -> set[int]:
    """Processes of agents that work in a session directory."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"gpg-agent") and directory.encode() in command:
                found.add(int(entry.name))
    return found


def gone(directory: str, within: float = 60) -> bool:
    end = time.monotonic() + within
    while agents(directory) and time.monotonic() < end:
        time.sleep(0.05)
    return not agents(directory)


def test_no_agent_and_no_directory_outlive_a_ring(rings: Rings) -> None:
    ring = KeyRing(rings.both.home, lambda: PASSPHRASE)
    ring.unwrap(rings.public.wrap(SECRET, rings.recipients))
    directory = str(ring._session.directory)
    assert agents(directory)
    ring.close()
    assert not Path(directory).exists()
    assert gone(directory)
    # Closed is not finished: the next use starts anew.
    assert ring.unwrap(rings.public.wrap(SECRET, rings.recipients)) == SECRET
    ring.close()


def test_one_ring_that_closes_does_not_disturb_another_on_the_same_home(rings: Rings) -> None:
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    with KeyRing(rings.both.home, lambda: PASSPHRASE) as first:
        for _ in range(3):
            with KeyRing(rings.both.home, lambda: PASSPHRASE) as second:
                assert first.unwrap(wrapped) == second.unwrap(wrapped) == SECRET


def test_public_keys_need_no_agent(rings: Rings, tmp_path: Path) -> None:
    shutil.copytree(rings.public.home, tmp_path / "r")
    with KeyRing(tmp_path / "r") as ring:
        ring.wrap(SECRET, rings.recipients)
        list(ring.encrypt_stream([b"x"], rings.recipients))
        assert not agents(str(ring._session.directory))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_an_agent_ends_with_its_process_however_that_ends(rings: Rings, tmp_path: Path, how: str) -> None:
    (tmp_path / "wrapped").write_text(rings.public.wrap(SECRET, rings.recipients))
    script = (
        "import sys; from pathlib import Path; from seawall.keys import KeyRing\n"
        f"ring = KeyRing(Path({str(rings.both.home)!r}), lambda: {PASSPHRASE!r})\n"
        f"ring.unwrap(Path({str(tmp_path / 'wrapped')!r}).read_text())\n"
        "print(ring._session.directory, flush=True); sys.stdin.readline()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        directory = process.stdout.readline().strip()
        assert agents(directory)
        if how == "kill":
            process.send_signal(signal.SIGKILL)
        else:
            process.communicate("\n")
    assert gone(directory)
    shutil.rmtree(directory, ignore_errors=True)


def test_a_passphrase_is_never_an_argument_nor_in_a_log(
    rings: Rings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []
    real = subprocess.Popen

    class Watched(real):  # type: ignore[type-arg,misc,valid-type]
        def __init__(self, command: list[str], *args: object, **kwargs: object) -> None:
            commands.append(" ".join(map(str, command)) + repr(kwargs.get("env", "")))
            super().__init__(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    monkeypatch.setattr("gnupg.Popen", Watched)
    caplog.set_level(logging.DEBUG)
    with KeyRing(rings.both.home, lambda: PASSPHRASE) as ring:
        wrapped = ring.wrap(SECRET, rings.recipients)
        ring.unwrap(wrapped)
        ring.export_secret(rings.escrow_key)
        ring.generate("Other", "other@x.test", passphrase=PASSPHRASE)
    assert len(commands) > 4
    seen = "\n".join(commands) + caplog.text
    assert PASSPHRASE not in seen
    assert SECRET.decode() not in seen


@pytest.mark.parametrize(("stretched", "count"), [(True, 65011712), (False, 65536)])
def test_only_a_key_whose_passphrase_can_be_guessed_makes_every_use_slow(
    tmp_path: Path, stretched: bool, count: int
) -> None:
    with KeyRing(tmp_path / "ring", lambda: PASSPHRASE) as ring:
        key = ring.generate("Shop", "shop@x.test", passphrase=PASSPHRASE, stretched=stretched)
        assert ring.unwrap(ring.wrap(SECRET, [key], allow_single=True)) == SECRET
    files = list((tmp_path / "ring" / "private-keys-v1.d").glob("*.key"))
    assert len(files) == 2
    for file in files:
        # How often the passphrase is hashed stands there in digits (GnuPG, agent/keyformat.txt).
        assert str(count).encode() in file.read_bytes()


def test_settings_lead_to_a_ring_whose_passphrase_lies_in_a_private_file(rings: Rings, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n", encoding="utf-8")
    file.chmod(0o600)
    wrapped = rings.public.wrap(SECRET, rings.recipients)
    settings = SealingSettings(keyring=rings.both.home, passphrase_file=file)
    with open_ring(settings) as ring:
        assert ring.unwrap(wrapped) == SECRET
        file.chmod(0o640)
        with pytest.raises(KeyUnusable, match="read by others"):
            ring.unwrap(wrapped)
        file.unlink()
        with pytest.raises(KeyUnusable, match="cannot be read"):
            ring.unwrap(wrapped)


def test_a_passphrase_of_two_lines_is_refused(rings: Rings) -> None:
    with KeyRing(rings.both.home, lambda: "two\nlines") as ring, pytest.raises(KeyUnusable, match="control character"):
        ring.unwrap(rings.public.wrap(SECRET, rings.recipients))


def test_a_gpg_conf_in_the_home_changes_nothing(rings: Rings, tmp_path: Path) -> None:
    shutil.copytree(rings.public.home, tmp_path / "r")
    (tmp_path / "r" / "gpg.conf").write_text("default-recipient-self\ncomment spoiled\nhidden-encrypt-to 0xDEADBEEF\n")
    with KeyRing(tmp_path / "r") as ring:
        assert rings.escrow.unwrap(ring.wrap(SECRET, rings.recipients)) == SECRET


def test_a_missing_gpg_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with KeyRing(tmp_path / "r") as ring:
        with pytest.raises(KeyUnusable) as caught:
            list(ring.decrypt_stream([b"x"]))
        assert "Install GnuPG" in caught.value.hint


def test_a_session_refuses_nothing_but_long_temporary_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    session = Session(tmp_path / "r")
    assert len(str(session.directory)) < 80
    session.close()
