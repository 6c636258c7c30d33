"""The stand-alone recovery script, which is data here: it lies in every repository and imports nothing of Seawall."""

from __future__ import annotations

from importlib import resources


def recovery_script() -> str:
    """The text of `recover.py` as `Repository.install_recovery_script` stores it."""
    return resources.files(__name__).joinpath("recover.py").read_text(encoding="utf-8")
