"""The command line: one module for each verb, imported only when it is asked for.

Every verb takes `--json`; then standard output carries exactly one JSON object, whatever happens. Progress and
messages go to standard error. Exit codes are those of `seawall.errors` (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

from seawall import __version__
from seawall.cli.console import Console
from seawall.cli.context import Context
from seawall.errors import SeawallError, UsageError

# Verb → module and the line that `seawall --help` shows. Modules are found by this table of names only.
VERBS: dict[str, tuple[str, str]] = {
    "init": ("setup", "make settings, keys and a repository"),
    "check": ("check", "prove archiving, permissions, space, clock and keys, and explain each failure"),
    "backup": ("backup", "take a backup of a source"),
    "wal": ("wal", "receive, ship and prove write-ahead log"),
    "list": ("listing", "list the backups of all sources"),
    "info": ("listing", "show a source or one backup, and what can be restored"),
    "verify": ("verify", "read a backup back and prove it"),
    "restore": ("restore", "restore a cluster, to a point in time if asked"),
    "restore-test": ("restoretest", "restore into a scratch instance, check it, and remove it"),
    "expire": ("expire", "let backups go by policy, in two audited steps"),
    "hold": ("hold", "keep a backup whatever the policy says, or stop doing so"),
    "keys": ("keys", "create, list, rotate keys; export a recovery kit"),
    "catalog": ("catalog", "create, check or rebuild the catalog"),
    "audit": ("audit", "show and prove the audit of a repository"),
    "up": ("up", "start Prefect server, worker and WAL receivers, and stay"),
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors of ours, so that `--json` covers them too."""

    def error(self, message: str) -> None:  # type: ignore[override] # the base never returns either
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; only `verb`'s own arguments are filled in (all if it is None)."""
    top = _Parser(prog="seawall", description="Backup and disaster recovery for PostgreSQL.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"seawall {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name, (_, line) in VERBS.items():
        sub = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False)
        if verb in (None, name):
            _module(name).arguments(sub, name)
            _common(sub)
    return top


def _common(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("always")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: SEAWALL_CONFIG)")
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    group.add_argument("--quiet", action="store_true", help="no progress")


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"seawall.cli.{VERBS[verb][0]}")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name.
    """
    console = Console(json="--json" in arguments, quiet="--quiet" in arguments)
    try:
        verb = next((a for a in arguments if a in VERBS), "")
        options = parser(verb).parse_args(arguments)
        context = Context(console=console, config=options.config)
        _stop_on_signals(context)
        return int(_module(options.verb).run(options, context) or 0)
    except SeawallError as error:
        console.failed(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is nobody left to tell.
        sys.stderr.close()
        return 141


def _stop_on_signals(context: Context) -> None:
    """The first Ctrl-C or SIGTERM asks the engine to stop cleanly; the second ends the process."""

    def stop(number: int, _frame: FrameType | None) -> None:
        context.observer.cancel.set()
        context.console.note("stopping; once more to stop at once")
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
