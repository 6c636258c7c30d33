"""The conversation with an SFTP server, without SSH around it: what servers do that OpenSSH's does not, and damage."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import SettingsError, StorageError
from seawall.settings import RepositorySettings
from seawall.storage import open_driver
from seawall.storage.sftp import SftpStorage
from seawall.storage.sftp_packets import (
    Fields,
    Kind,
    Nonsense,
    NoSuchFile,
    NotPermitted,
    Open,
    Refused,
    Unsupported,
    refusal,
    string,
    text,
)
from seawall.storage.sftp_session import Lost, Session
from seawall.storage.ssh import Destination, Ending, command, ending
from tools import debian

NEW = Open.READ | Open.WRITE | Open.CREATE | Open.EXCLUSIVE
HOST_KEY = "No ED25519 host key is known for [127.0.0.1]:22 and you have requested strict checking.\r\n"


class Program:
    """A line to an sftp-server in a process of its own."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen([debian.SFTP_SERVER.program], stdin=theirs, stdout=theirs)
        theirs.close()

    def end(self) -> Ending:
        self.process.wait(10)
        return Ending("it is gone")


class Told:
    """A line to a server that a test plays: `play` gets each request's kind, number and content, and answers."""

    def __init__(self, play: Callable[[int, int, bytes], bytes], greeting: bytes) -> None:
        self.socket, self._theirs = socket.socketpair()
        self._play = play
        self._theirs.sendall(greeting)
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> Ending:
        return Ending("it is gone")

    def _serve(self) -> None:
        # A client that does not believe what it hears hangs up, also in the middle of what is said.
        with suppress(OSError), self._theirs, self._theirs.makefile("rb") as requests:
            while head := requests.read(9):
                length, kind, number = struct.unpack(">IBI", head)
                content = requests.read(length - 5)
                if kind != Kind.INIT:
                    self._theirs.sendall(self._play(kind, number, content))


def packet(kind: int, number: int, content: bytes = b"") -> bytes:
    return struct.pack(">IBI", 5 + len(content), kind, number) + content


GREETING = packet(Kind.VERSION, 3)


@contextmanager
def conversation(line: Program | Told, patience: float = 10) -> Iterator[Session]:
    session = Session(line, patience)
    yield session
    session.close()


def silent(_kind: int, _number: int, _content: bytes) -> bytes:
    return b""


needs_client = pytest.mark.skipif(not debian.SSH.present, reason=f"{debian.SSH.name} is not there")
needs_server = pytest.mark.skipif(not debian.SFTP_SERVER.present, reason=f"{debian.SFTP_SERVER.name} is not there")


@needs_server
def test_what_several_threads_write_into_a_file_at_once_is_read_back_as_it_was(tmp_path: Path) -> None:
    parts = [bytes([number]) * 700_001 for number in range(6)]
    path = str(tmp_path / "a file")
    with conversation(Program()) as session:
        handle = session.open(path, NEW)
        with ThreadPoolExecutor(4) as pool:
            for done in [
                pool.submit(session.write, handle, at * 700_001, memoryview(part)) for at, part in enumerate(parts)
            ]:
                done.result()
        session.sync(handle)
        assert session.about(handle).size_bytes == session.stat(path).size_bytes == 6 * 700_001
        assert b"".join(session.read(handle, 5, 6 * 700_001 - 3)) == b"".join(parts)[5:-3]
        assert list(session.read(handle, 7, 7)) == []
        assert session.free_bytes(str(tmp_path)) > 0
    assert Path(path).read_bytes() == b"".join(parts)


@needs_server
def test_refusals_of_a_real_server_say_what_they_are(tmp_path: Path) -> None:
    here = str(tmp_path)
    with conversation(Program()) as session:
        session.give_up(session.open(f"{here}/one", NEW))
        session.link(f"{here}/one", f"{here}/two")
        with pytest.raises(Refused):
            session.open(f"{here}/one", NEW)
        with pytest.raises(Refused):
            session.link(f"{here}/one", f"{here}/two")
        for call in (session.stat, session.remove, session.folder, session.remove_folder):
            with pytest.raises(NoSuchFile):
                call(f"{here}/none")
        session.make_folder(f"{here}/folder", 0o750)
        assert session.is_folder(f"{here}/folder") and not session.is_folder(f"{here}/one")
        found = dict(session.folder(here))
        assert sorted(found) == ["folder", "one", "two"]
        assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
        assert found["folder"].is_folder and found["one"].is_file


@needs_server
def test_handles_that_were_given_up_are_closed_before_the_next_request(tmp_path: Path) -> None:
    line = Program()
    with conversation(line) as session:
        handle = session.open(str(tmp_path / "one"), NEW)
        opened = Path(f"/proc/{line.process.pid}/fd")
        assert any(fd.readlink() == tmp_path / "one" for fd in opened.iterdir())
        session.give_up(handle)
        session.exists(str(tmp_path))
        assert not any(fd.readlink() == tmp_path / "one" for fd in opened.iterdir())


def test_a_server_that_gives_fewer_bytes_than_were_asked_for_is_asked_again() -> None:
    content = bytes(range(256)) * 400

    def play(kind: int, number: int, asked: bytes) -> bytes:
        assert kind == Kind.READ
        fields = Fields(asked)
        fields.string()
        begin, length = fields.large(), fields.number()
        assert length <= 32 * 1024, "the most that every server takes, where one does not say more"
        return packet(Kind.DATA, number, string(content[begin : begin + min(length, 1000)]))

    with conversation(Told(play, GREETING)) as session:
        assert b"".join(session.read(b"h", 3, len(content) - 7)) == content[3:-7]


@pytest.mark.parametrize("given", [b"", b"123456789"])
def test_a_server_that_gives_nothing_or_more_than_was_asked_for_is_not_believed(given: bytes) -> None:
    line = Told(lambda _kind, number, _content: packet(Kind.DATA, number, string(given)), GREETING)
    with conversation(line) as session, pytest.raises(Nonsense, match="where 8 were asked for"):
        next(session.read(b"h", 0, 8))


class Spoken:
    """A connection that has one session for good."""

    host = address = "played"

    def __init__(self, session: Session) -> None:
        self._session = session

    def session(self) -> Session:
        return self._session

    def close(self) -> None:
        """Whoever plays the server ends it."""


@pytest.mark.parametrize("mode", [0o100640, 0])
def test_a_list_that_does_not_say_what_its_names_are_is_completed_or_refused_and_never_empty(mode: int) -> None:
    named = iter([struct.pack(">I", 1) + string(b"a") + string(b"") + struct.pack(">I", 0)])

    def play(kind: int, number: int, _content: bytes) -> bytes:
        if kind == Kind.OPENDIR:
            return packet(Kind.HANDLE, number, string(b"h"))
        if kind == Kind.READDIR and (names := next(named, None)):
            return packet(Kind.NAME, number, names)
        if kind == Kind.LSTAT:
            # Size and permissions (draft, section 5), where it tells them at all.
            said = struct.pack(">IQI", 0x1 | 0x4, 7, mode) if mode else struct.pack(">IQ", 0x1, 7)
            return packet(Kind.ATTRS, number, said)
        return packet(Kind.STATUS, number, struct.pack(">I", 1 if kind == Kind.READDIR else 0))

    with conversation(Told(play, GREETING)) as session:
        storage = SftpStorage(Spoken(session), "/root")  # type: ignore[arg-type]
        if mode:
            assert [(stat.name, stat.size_bytes) for stat in storage.list()] == [("a", 7)]
        else:
            with pytest.raises(StorageError, match="does not say what"):
                list(storage.list())


def test_a_server_without_extensions_is_not_asked_for_them() -> None:
    with conversation(Told(silent, GREETING)) as session:
        for call in (lambda: session.sync(b"h"), lambda: session.link("a", "b"), lambda: session.free_bytes("/")):
            with pytest.raises(Unsupported):
                call()
        assert not session.lost


def test_an_answer_that_never_comes_ends_the_session_and_all_that_wait_for_it() -> None:
    with conversation(Told(silent, GREETING), patience=0.05) as session:
        with pytest.raises(Lost, match="no answer within"):
            session.stat("/a")
        assert session.lost
        with pytest.raises(Lost, match="no answer within"):
            next(session.read(b"h", 0, 8))


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"Welcome to this server!\r\n", id="a text of the login"),
        pytest.param(packet(Kind.VERSION, 2), id="another version"),
        pytest.param(packet(Kind.DATA, 7, string(b"x")), id="an answer that nobody asked for"),
        pytest.param(packet(Kind.VERSION, 3)[:-2], id="half a greeting"),
    ],
)
def test_what_does_not_greet_as_a_server_does_is_none(greeting: bytes) -> None:
    with pytest.raises((Lost, Nonsense)):
        Session(Told(lambda *_asked: b"", greeting), 0.2)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda number: packet(Kind.STATUS, number, bytes(4)), id="success without what was asked for"),
        pytest.param(lambda number: packet(Kind.NAME, number, bytes(4)), id="an answer to something else"),
        pytest.param(lambda number: packet(Kind.ATTRS, number, b"\0\0\0\1\0\0"), id="attributes cut short"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_and_not_believed(answer: Callable[[int], bytes]) -> None:
    line = Told(lambda _kind, number, _content: answer(number), GREETING)
    with conversation(line) as session, pytest.raises(Nonsense):
        session.stat("/a")


@pytest.mark.parametrize("length", [0, 4, 1 << 31])
def test_a_packet_of_an_impossible_length_ends_the_session(length: int) -> None:
    line = Told(lambda _kind, number, _content: struct.pack(">IBI", length, Kind.ATTRS, number), GREETING)
    with conversation(line) as session, pytest.raises(Lost, match="does not speak SFTP"):
        session.stat("/a")


@given(content=st.binary(max_size=60))
def test_damaged_answers_are_nonsense_or_values_and_nothing_else(content: bytes) -> None:
    for parse in (Fields.attributes, Fields.string, lambda fields: list(fields.names())):
        try:
            parse(Fields(content))
        except Nonsense:
            continue


@given(code=st.integers(0, 40), said=st.text(max_size=20))
def test_a_status_is_success_or_a_refusal_with_the_servers_words(code: int, said: str) -> None:
    found = refusal(struct.pack(">I", code) + text(said) + text("en"))
    if code == 0:
        assert found is None
        return
    assert isinstance(found, Refused)
    assert str(found) == (said or f"status {code}")
    assert isinstance(found, NoSuchFile) == (code == 2)
    assert isinstance(found, NotPermitted) == (code == 3)


# ---- OpenSSH's client


def test_the_client_reads_no_configuration_asks_nobody_and_believes_one_file() -> None:
    to = Destination("-oProxyCommand=x", 2222, "-me", Path("/a key/100%"), Path("/known hosts"))
    told = command(to)
    assert told[:3] == ["ssh", "-F", "none"]
    assert told[-4:] == ["-s", "--", "-oProxyCommand=x", "sftp"]
    assert told[told.index("-l") + 1] == "-me"
    options = {told[at + 1] for at, part in enumerate(told) if part == "-o"}
    assert {
        "BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "GlobalKnownHostsFile=/dev/null",
        "PasswordAuthentication=no", "IdentitiesOnly=yes", "IdentityAgent=none", "ForwardAgent=no",
        'UserKnownHostsFile="/known hosts"', 'IdentityFile="/a key/100%%"',
    } <= options  # fmt: skip


@needs_client
def test_options_that_openssh_does_not_know_would_be_told_by_it() -> None:
    """`-G` prints what the client understood, and connects to nothing."""
    to = Destination("host.example.com", 2222, "me", Path("/a key/100%"), Path("/known hosts"))
    first, *rest = command(to)
    found = subprocess.run([first, "-G", *rest], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"user me", "port 2222", "batchmode yes", "stricthostkeychecking true", "proxycommand none"} & set(found)
    assert "globalknownhostsfile /dev/null" in found
    assert "userknownhostsfile /known hosts" in found
    assert any(line.startswith("ciphers aes128-gcm@openssh.com,") for line in found)


@pytest.mark.parametrize("name", ['/a"b', "/a\\b", "/a\nb", "/${HOME}"])
def test_a_files_name_that_openssh_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be told"):
        command(Destination("host", 22, None, None, Path(name)))


def test_a_host_without_openssh_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, known = tmp_path / "key", tmp_path / "known_hosts"
    key.touch(mode=0o600)
    known.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    for settings in (
        RepositorySettings(known_hosts_file=known, credentials_file=key),
        RepositorySettings(known_hosts_file=known),
    ):
        with pytest.raises(SettingsError, match="not installed") as caught:
            open_driver("sftp://host/p", settings).stat("a")
        assert "openssh-client" in caught.value.hint


def test_a_host_key_that_changed_is_told_without_the_advice_to_believe_it() -> None:
    said = (
        "@@@@@@@@@\r\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n@@@@@@@@@\r\n"
        "Someone could be eavesdropping on you right now (man-in-the-middle attack)!\r\n"
        "It is also possible that a host key has just been changed.\r\n"
        "Add correct host key in /etc/seawall/known_hosts to get rid of this message.\r\n"
        "Host key for [127.0.0.1]:22 has changed and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n"
    )
    found = ending(said)
    assert found.denied
    assert found.words.startswith("Host key for [127.0.0.1]:22 has changed")
    assert "Add correct" not in found.words
    assert "find out why" in (found.hint or "")


@pytest.mark.parametrize(
    ("said", "denied", "words"),
    [
        ("", False, "the connection was lost"),
        ("ssh: connect to host h port 22: Connection refused\r\n", False, "Connection refused"),
        ("Connection closed by 10.0.0.1 port 22\r\n", False, "closed by"),
        ("me@host: Permission denied (publickey).\r\n", True, "Permission denied"),
        (f"{HOST_KEY}Host key verification failed.\r\n", True, "No ED25519 host key"),
        ("Unable to negotiate with h port 22: no matching cipher found.\r\n", True, "no matching cipher"),
        ("@@@@@@\r\nREMOTE HOST IDENTIFICATION HAS CHANGED!\r\nHost key verification failed.\r\n", True, "Host key"),
    ],
)
def test_the_clients_last_words_tell_a_denial_from_a_lost_line(said: str, denied: bool, words: str) -> None:
    found = ending(said)
    assert (found.denied, words in found.words) == (denied, True)
    assert (found.hint is not None) == denied
