"""`seawall up`: start Prefect server, worker and WAL receivers, and stay.

The engine does not import Prefect: the stack is a program of its own, which takes this one's place.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from seawall.cli.context import Context
from seawall.errors import UsageError
from seawall.settings import DEFAULT_FILE


def arguments(parser: argparse.ArgumentParser, _verb: str) -> None:
    parser.add_argument("--port", type=int, default=0, help="of the Prefect server on loopback (default: any free one)")


def run(options: argparse.Namespace, context: Context) -> None:
    # Read here, so that a wrong setting is told before anything starts.
    settings = context.settings
    config = (context.config or Path(os.environ.get("SEAWALL_CONFIG", DEFAULT_FILE))).absolute()
    if importlib.util.find_spec("deployments") is None:
        raise UsageError(
            "the package `deployments` is not installed", hint="`seawall up` needs the whole distribution."
        )
    context.console.note(f"starting for {len(settings.sources)} sources; Ctrl-C ends everything")
    arguments = [sys.executable, "-m", "deployments.stack", "--config", str(config)]
    if options.port:
        arguments += ["--port", str(options.port)]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - an argument list, no shell
