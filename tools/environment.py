"""The virtual environment of this checkout: `.venv`, exactly what `requirements/lock.txt` says, and nothing else.

uv makes it. uv itself comes from the package index at the version and with the hashes of `requirements/uv.txt`,
into `.uv`; its cache lies there too (unless UV_CACHE_DIR says otherwise), so nothing is left outside the checkout.
A stamp, written last, remembers what the environment was made from: an interrupted set-up is simply done again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import debian
from tools.surroundings import ROOT, Refused

UV_HOME = ROOT / ".uv"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "lock.txt"
_UV_PIN = ROOT / "requirements" / "uv.txt"
_STAMP = VENV / ".seawall-setup"
_PACKAGES = ("seawall", "blocks", "tasks", "flows", "deployments", "api")


def provide(base: Path) -> None:
    """Make the environment from the interpreter `base`, unless it is already what the lock says.

    Raises:
        Refused: a step failed; its own output says why.
    """
    wanted = _fingerprint(base)
    if not (PYTHON.exists() and _STAMP.exists() and _STAMP.read_text(encoding="utf-8") == wanted):
        _make(base, wanted)
    # An account that may not write here, as that of the servers, would compile our sources again at every start.
    run(PYTHON, "-m", "compileall", "-q", *(str(ROOT / package) for package in _PACKAGES if (ROOT / package).is_dir()))


def _make(base: Path, wanted: str) -> None:
    uv = provide_uv(base)
    print(f"set-up: making .venv from {base}: the packages of requirements/lock.txt", flush=True)
    _STAMP.unlink(missing_ok=True)
    if not _made_from(base):
        run(uv, "venv", "--clear", "--no-python-downloads", "--python", str(base), str(VENV))
    run(uv, "pip", "sync", "--compile-bytecode", "--python", str(PYTHON), "--require-hashes", str(LOCK))
    run(uv, "pip", "install", "--python", str(PYTHON), "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    _STAMP.write_text(wanted, encoding="utf-8")


def write_lock(base: Path, *, upgrade: bool) -> None:
    """Resolve pyproject.toml into the lock again; versions stay as they are unless asked to `upgrade`.

    Raises:
        Refused: there is no solution, or the package index does not answer.
    """
    run(
        provide_uv(base), "pip", "compile", "pyproject.toml", "--group", "dev", "--group", "servers",
        "--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header",
        "--quiet", "--output-file", str(LOCK.relative_to(ROOT)), *(["--upgrade"] if upgrade else []),
    )  # fmt: skip


def provide_uv(base: Path) -> Path:
    """The pinned uv, fetched with pip if it is not there yet.

    Raises:
        Refused: there is no pip and none may be installed, or the package index does not answer.
    """
    version = _UV_PIN.read_text(encoding="utf-8").split()[0].removeprefix("uv==")
    home = UV_HOME / version
    uv = home / "bin" / "uv"
    if uv.exists():
        return uv
    print(f"set-up: fetching uv {version} into .uv", flush=True)
    draft = UV_HOME / f"{version}.new"
    shutil.rmtree(draft, ignore_errors=True)
    run(
        *_pip(base), "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--require-hashes", "--target", str(draft), "--requirement", str(_UV_PIN),
    )  # fmt: skip
    draft.rename(home)
    return uv


def _pip(base: Path) -> tuple[str | Path, ...]:
    """How to call a pip: the interpreter's own, else one that ensurepip puts into `.uv`, else Debian's ensurepip."""
    if _works(base, "-m", "pip", "--version"):
        return (base, "-m", "pip")
    if not _works(base, "-c", "import ensurepip"):
        debian.provide((debian.VENV,))
        base = Path("/usr/bin/python3")
    run(base, "-m", "venv", "--clear", str(UV_HOME / "pip"))
    return (UV_HOME / "pip" / "bin" / "python", "-m", "pip")


def _works(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def _made_from(base: Path) -> bool:
    """Whether the environment that is there stands on this interpreter and in this place."""
    if not PYTHON.exists():
        return False
    return _works(PYTHON, "-c", "pass") and os.path.realpath(PYTHON) == os.path.realpath(base) and _scripts_are_ours()


def _scripts_are_ours() -> bool:
    """Scripts of an environment name the directory that they were made in; a checkout may have been moved since."""
    activate = VENV / "bin" / "activate"
    return activate.exists() and str(VENV) in activate.read_text(encoding="utf-8")


def _fingerprint(base: Path) -> str:
    digest = hashlib.sha256(b"compiled")
    for path in (ROOT / "pyproject.toml", LOCK, _UV_PIN):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{digest.hexdigest()} {os.path.realpath(base)} {ROOT}\n"


def run(*command: str | Path) -> None:
    """Run a command of set-up with its output shown.

    Raises:
        Refused: it failed.
    """
    surroundings = {"UV_CACHE_DIR": str(UV_HOME / "cache"), **os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if "PIP_INDEX_URL" in surroundings:
        surroundings.setdefault("UV_DEFAULT_INDEX", surroundings["PIP_INDEX_URL"])
    done = subprocess.run(command, cwd=ROOT, env=surroundings, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.stdout.flush()
        raise Refused(f"stopped: `{' '.join(map(str, command[:4]))} …` failed; its output is above.")
