"""The command line in this process or in one of its own, and sites to use it on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seawall.cli import run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that standard output carries, and nothing beside it."""
        assert self.out.count("\n") == 1, self.out + self.err
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert value["ok"] is (self.code == 0), self.out
        return value

    @property
    def error(self) -> dict[str, Any]:
        found = self.json["error"]
        assert isinstance(found, dict)
        assert set(found) == {"code", "message", "hint", "retryable"}
        return found


@pytest.fixture
def seawall(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Runs a command in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def runner(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield runner
    for number, handler in before.items():
        signal.signal(number, handler)


def spawn(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "seawall", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts a command in a process of its own."""
    return spawn


@pytest.fixture(scope="session")
def program() -> Callable[..., Ran]:
    """Runs a command in a process of its own."""

    def runner(*arguments: str | Path, **environment: str) -> Ran:
        process = spawn(*arguments, **environment)
        out, err = process.communicate(timeout=240)
        return Ran(process.returncode, out, err)

    return runner


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SEAWALL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init` makes of an empty directory; made once."""
    directory = tmp_path_factory.mktemp("pattern")
    done = spawn(
        "init", "--directory", directory / "plain", "--sealing", "none", "--source", "shop",
        "--conninfo", "host=127.0.0.1 port=1 user=nobody connect_timeout=2", "--json",
    )  # fmt: skip
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, out + err
    return directory / "plain"


@pytest.fixture
def plain(pattern: Path, tmp_path: Path) -> Path:
    """Settings of an empty, unsealed repository with one source that nobody serves."""
    copy = shutil.copytree(pattern, tmp_path / "plain")
    config = copy / "seawall.toml"
    config.write_text(config.read_text().replace(str(pattern), str(copy)))
    return config


@pytest.fixture(scope="session")
def open_directory() -> Iterator[Path]:
    """A directory that the servers' account can enter too."""
    directory = Path(tempfile.mkdtemp(prefix="seawall-cli-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def tree_of(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, tuple[int, int]]]:
    """Every file below a directory with its size and time of change."""
    return tree_of
