"""The client that PostgreSQL runs: what it imports, what it costs, its exit codes, its spool."""

from __future__ import annotations

import os
import py_compile
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall import wal
from seawall.archive import client
from seawall.archive.agent import PUSHED, Agent
from seawall.archive.commands import CLIENT, START, archive_command, restore_command
from seawall.repository import SourceArea

NAME = "000000010000000000000003"
SEGMENT = 1 << 20


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", START, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


# ---- names


@given(
    st.text(alphabet="0123456789ABCDEFabcg.", max_size=45)
    | st.from_regex(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup|\.junk)?|[0-9A-F]{8}(\.history)?", fullmatch=True)
)
def test_it_knows_the_same_names_as_the_engine(name: str) -> None:
    assert client.is_archive_name(name) == wal.is_archive_name(name)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_what_is_encoded_comes_back(fields: list[str]) -> None:
    assert client.decode(client.encode("verb", *fields)) == ["verb", *fields]


def test_a_stranger_on_the_wire_is_not_understood() -> None:
    assert client.decode(b"HTTP/1.1 200 OK\0ok") == []


# ---- cost

_MODULES = (
    "import os, sys; os._exit = sys.exit; sys.argv = sys.argv[1:]\n"
    "try: exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'),"
    " {'__name__': '__main__', '__file__': sys.argv[0]})\n"
    "finally: print(*sys.modules)"
)


@pytest.mark.parametrize("program", [START, CLIENT])
def test_it_imports_nothing_but_what_the_interpreter_starts_with(
    ready: Callable[..., Path], tmp_path: Path, program: Path
) -> None:
    arguments = ["push", "--socket", str(tmp_path / "none"), str(ready(NAME))]
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import os, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MODULES, program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == client.NO_AGENT
    assert set(done.stdout.split()) - set(bare.stdout.split()) <= {"_socket", "time"}


@pytest.mark.parametrize("bytecode", ["of the client", "none", "damaged", "torn"])
def test_it_starts_from_bytecode_and_goes_without(tmp_path: Path, bytecode: str) -> None:
    start, source, other = (tmp_path / name for name in ("start.py", "client.py", "other.py"))
    shutil.copy(START, start)
    source.write_text("import sys; print('source', __name__, *sys.argv[1:])")
    other.write_text("import sys; print('bytecode', __name__, *sys.argv[1:])")
    if bytecode != "none":
        # Of another source, and never compared with it, so that what runs can be told apart.
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        made = py_compile.compile(str(other), cache_from_source(str(source)), invalidation_mode=unchecked)
        assert made is not None
        if bytecode == "damaged":
            Path(made).write_bytes(b"not bytecode at all")
        if bytecode == "torn":
            os.truncate(made, 16 + 20)
    done = subprocess.run([sys.executable, "-I", "-S", start, "%p"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bytecode" if bytecode == "of the client" else "source", "__main__", "%p"]


def test_the_command_line_hands_over_to_it_without_loading_the_rest(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['seawall', 'archive-get', '--socket', '/nowhere', '--wait', '0', 'x', 'y']\n"
        "from seawall.__main__ import main; main(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"argparse", "logging", "dataclasses", "seawall.repository", "psycopg", "sqlmodel", "prefect", "rich"}
    assert not heavy & set(done.stdout.split())


def test_the_agent_loads_neither_database_nor_catalog() -> None:
    code = "import sys, seawall.archive.agent, seawall.repository; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"psycopg", "sqlmodel", "sqlalchemy", "pydantic", "boto3", "azure", "google", "apprise", "prefect"}
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}


def test_it_starts_within_a_tenth_of_a_cpu_second(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        run("get", "--socket", tmp_path / "none", "--wait", "0", NAME, tmp_path / "x")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent / 5 < 0.1


# ---- exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("push",),
        ("push", "--socket"),
        ("push", "--socket", "/s", "--colour", "red", NAME),
        ("push", "--socket", "/s"),
    ],
)
def test_wrong_use_of_push_is_counted_by_the_server(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == (client.USAGE if arguments else client.REFUSED)
    assert "usage" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("get",), ("get", "--socket", "/s", NAME), ("get", "--socket", "/s", "--wait", "soon", NAME, "x"), ("fetch",)],
)
def test_wrong_use_of_get_is_never_taken_for_the_end_of_wal(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == client.REFUSED


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "postgresql.conf", "00000001000000000000000", f"{NAME}.tmp", "Ä" * 24]
)
def test_names_that_are_none_of_wal_are_refused(name: str, tmp_path: Path) -> None:
    assert run("push", "--socket", tmp_path / "s", tmp_path / name).returncode == client.USAGE
    assert run("get", "--socket", tmp_path / "s", name, tmp_path / "out").returncode == client.REFUSED


def test_without_agent_push_fails_and_get_does_not_know(ready: Callable[..., Path], tmp_path: Path) -> None:
    pushed = run("push", "--socket", tmp_path / "none", ready(NAME))
    assert pushed.returncode == client.NO_AGENT
    assert "seawall wal agent" in pushed.stderr
    got = run("get", "--socket", tmp_path / "none", "--wait", "0", NAME, tmp_path / "out")
    assert got.returncode == client.REFUSED
    assert not (tmp_path / "out").exists()


def test_an_unreadable_segment_is_a_failure_of_this_host(tmp_path: Path) -> None:
    assert run("push", "--socket", tmp_path / "none", tmp_path / NAME).returncode == client.LOCAL_FAILURE


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"seawall1", b"seawall1\0error\0many\0x\0y", b"seawall1\0ok\0"])
def test_an_agent_that_breaks_off_or_babbles_is_none(answer: bytes, socket_path: Path, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen()

    def babble() -> None:
        connection, _address = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=babble)
    thread.start()
    got = run("get", "--socket", socket_path, NAME, tmp_path / "out")
    thread.join()
    listener.close()
    assert got.returncode == client.REFUSED
    assert not (tmp_path / "out").exists()


def test_an_agent_that_says_nothing_is_given_up(socket_path: Path, ready: Callable[..., Path]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        done = run("push", "--socket", socket_path, "--timeout", "0.3", ready(NAME))
    assert done.returncode == client.NO_AGENT


def test_get_waits_for_an_agent_that_is_being_restarted(
    agent_for: Callable[..., Agent], socket_path: Path, tmp_path: Path, area: SourceArea
) -> None:
    agent = agent_for()
    timer = threading.Timer(0.5, agent.start)
    timer.start()
    got = run("get", "--socket", socket_path, "--wait", "10", NAME, tmp_path / "out")
    timer.join()
    agent.stop()
    assert got.returncode == client.ABSENT


def test_absence_can_be_given_a_number_of_its_own(
    agent_for: Callable[..., Agent], socket_path: Path, tmp_path: Path
) -> None:
    with agent_for():
        got = run("get", "--socket", socket_path, "--absent", "44", NAME, tmp_path / "out")
    assert got.returncode == 44


def test_a_file_that_cannot_be_written_is_not_the_end_of_wal(
    agent_for: Callable[..., Agent], socket_path: Path, tmp_path: Path, ready: Callable[..., Path]
) -> None:
    with agent_for():
        assert run("push", "--socket", socket_path, ready(NAME)).returncode == 0
        got = run("get", "--socket", socket_path, NAME, tmp_path / "no" / "such" / "place")
    assert got.returncode == client.REFUSED


def test_a_socket_deep_in_a_tree_is_reached(
    agent_for: Callable[..., Agent], tmp_path: Path, ready: Callable[..., Path], area: SourceArea
) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    agent = agent_for()
    agent._server.path = deep / "agent.sock"
    with agent:
        assert run("push", "--socket", deep / "agent.sock", ready(NAME)).returncode == 0
    assert area.wal.stored(NAME)


# ---- the spool


def spooling(path: Path, spool: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("push", "--socket", spool / "none", "--spool", spool, *options, path)


def test_a_segment_waits_in_the_spool_whole_and_alone(ready: Callable[..., Path], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    path = ready(NAME)
    assert spooling(path, spool).returncode == 0
    assert [p.name for p in spool.iterdir()] == [NAME]
    assert (spool / NAME).read_bytes() == path.read_bytes()


def test_the_same_segment_again_is_success_and_another_one_a_conflict(
    ready: Callable[..., Path], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    path = ready(NAME)
    assert spooling(path, spool).returncode == 0
    assert spooling(path, spool).returncode == 0
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + b"?")
    assert spooling(path, spool).returncode == client.CONFLICT
    assert (spool / NAME).read_bytes() == kept


def test_a_spool_at_its_limit_takes_no_more(ready: Callable[..., Path], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    limit = ("--spool-limit", str(SEGMENT + SEGMENT // 2))
    assert spooling(ready(NAME), spool, *limit).returncode == 0
    refused = spooling(ready("000000010000000000000004"), spool, *limit)
    assert refused.returncode == client.NO_AGENT
    assert [p.name for p in spool.iterdir()] == [NAME]


def test_a_missing_spool_fails(ready: Callable[..., Path], tmp_path: Path) -> None:
    assert spooling(ready(NAME), tmp_path / "nowhere").returncode == client.LOCAL_FAILURE


def test_what_waits_in_the_spool_is_shipped_by_the_next_agent_and_removed(
    agent_for: Callable[..., Agent],
    ready: Callable[..., Path],
    tmp_path: Path,
    area: SourceArea,
    eventually: Callable[..., None],
) -> None:
    spool = tmp_path / "spool" / PUSHED
    spool.mkdir(parents=True)
    names = [f"0000000100000000000000{n:02X}" for n in range(3, 9)]
    for name in names:
        assert spooling(ready(name), spool).returncode == 0
    with agent_for() as agent:
        eventually(lambda: not agent.spooled())
    assert area.wal.names() == frozenset(names)


# ---- the lines for postgresql.conf


def test_the_command_lines_survive_shell_and_percent(tmp_path: Path) -> None:
    place = tmp_path / "it's 100% here"
    place.mkdir()
    fake = place / "client.py"
    fake.write_text("import sys; print(sys.argv[1:]); sys.exit(int(sys.argv[-1]))")
    for expected, given_code in {0: "0", 3: "3", 125: "126"}.items():
        line = archive_command(place / "socket", python=Path(sys.executable), client=fake).replace("%p", given_code)
        done = subprocess.run(line.replace("%%", "%"), shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - as PostgreSQL does
        assert (done.returncode, str(place / "socket") in done.stdout.replace("\\'", "'").replace('"', "")) == (
            expected,
            True,
        )
    for expected, given_code in {0: "0", 1: "44", 126: "1"}.items():
        line = restore_command(place / "socket", python=Path(sys.executable), client=fake)
        line = line.replace("%f", "name").replace("%p", given_code).replace("%%", "%")
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)  # noqa: S602 - as PostgreSQL does
        assert done.returncode == expected


def test_an_interpreter_that_is_gone_is_counted_for_push_and_fatal_for_get(tmp_path: Path) -> None:
    gone = Path("/nowhere/python")
    for line, expected in (
        (archive_command(tmp_path, python=gone), 125),
        (restore_command(tmp_path, python=gone), 126),
    ):
        assert subprocess.run(line, shell=True, capture_output=True, check=False).returncode == expected  # noqa: S602 - as PostgreSQL does


def test_a_client_file_that_is_gone_is_never_the_end_of_wal(tmp_path: Path) -> None:
    line = restore_command(tmp_path / "s", python=Path(sys.executable), client=tmp_path / "gone.py")
    assert subprocess.run(line, shell=True, capture_output=True, check=False).returncode == 126  # noqa: S602 - as PostgreSQL does


def test_only_the_first_of_many_descriptors_is_kept(descriptors: None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
        socket.send_fds(theirs, [b"x"], files)
        theirs.shutdown(socket.SHUT_WR)
        message, kept = client.receive(ours)
        assert message == b"x"
        assert kept is not None
        for descriptor in (*files, kept):
            os.close(descriptor)
