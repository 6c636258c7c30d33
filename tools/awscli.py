"""The AWS command line, for benchmarks alone: in an environment of its own, as it wants other versions than ours."""

from __future__ import annotations

from pathlib import Path

from tools import environment
from tools.surroundings import ROOT

HOME = environment.UV_HOME / "awscli"
PROGRAM = HOME / "bin" / "aws"
_PIN = ROOT / "requirements" / "awscli.txt"


def provide(base: Path) -> None:
    """Make the environment from the interpreter `base`, unless it is there.

    Raises:
        Refused: the package index does not answer.
    """
    if PROGRAM.exists():
        return
    print("set-up: fetching the AWS command line into .uv, for benchmarks", flush=True)
    uv = environment.provide_uv(base)
    environment.run(uv, "venv", "--clear", "--no-python-downloads", "--python", str(base), str(HOME))
    environment.run(uv, "pip", "sync", "--python", str(HOME / "bin" / "python"), "--require-hashes", str(_PIN))
