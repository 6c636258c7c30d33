"""The command line: one module for each verb, imported only when it is asked for.

Every verb takes `--json`; then standard output carries exactly one JSON object, whatever happens. Progress and
messages go to standard error. Exit codes are those of `seawall.errors` (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from seawall import __version__
from seawall.cli.console import Console
from seawall.cli.context import Context
from seawall.errors import Cancelled, SeawallError, UsageError

_log = logging.getLogger(__name__)

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
    "location": ("location", "add, check, list and remove places that hold copies"),
    "mirror": ("mirror", "bring the copies of backups in other locations up to date"),
    "expire": ("expire", "let backups go by policy, in two audited steps"),
    "hold": ("hold", "keep a backup whatever the policy says, or stop doing so"),
    "keys": ("keys", "create, list, rotate keys; export a recovery kit"),
    "catalog": ("catalog", "create, check or rebuild the catalog"),
    "repository": ("repository", "write a repository's identity again where it is missing or damaged"),
    "audit": ("audit", "show and prove the audit of a repository"),
    "up": ("up", "start Prefect server, worker and WAL receivers, and stay"),
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors of ours, so that `--json` covers them too."""

    def error(self, message: str) -> None:  # type: ignore[override] # the base never returns either
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


class _Verb(_Parser):
    """The parser of a verb or of one of its commands, which says itself what it does not know.

    argparse leaves that to the outermost parser, whose help has none of the options that were meant.
    """

    def parse_known_args(  # type: ignore[override] # the base has overloads for namespaces of other kinds
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            raise UsageError(f"unrecognized arguments: {' '.join(rest)}", hint=self._meant(rest))
        return known, rest

    def _meant(self, rest: Sequence[str]) -> str:
        like = [option for word in rest if word.startswith("--") for option in self._like(word.partition("=")[0])]
        return (f"Did you mean {' or '.join(like)}? " if like else "") + f"See `{self.prog} --help`."

    def _like(self, word: str) -> list[str]:
        # Here, because only mistakes need it and every command would pay for it.
        import difflib

        options = [option for option in self._option_string_actions if option.startswith("--")]
        return [o for o in options if word[2:] in o] or difflib.get_close_matches(word, options, n=2, cutoff=0.8)


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; only `verb`'s own arguments are filled in (all if it is None)."""
    top = _Parser(prog="seawall", description="Backup and disaster recovery for PostgreSQL.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"seawall {__version__}")
    _common(top)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Verb)
    for name, (_, line) in VERBS.items():
        sub = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False)
        if verb in (None, name):
            _module(name).arguments(sub, name)
            _common_below(sub)
    return top


def _common(of: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Options that may stand anywhere. Without defaults: those of an inner parser would undo what an outer one read."""
    group = of.add_argument_group("always")
    for name, keywords in _COMMON.items():
        group.add_argument(name, **(keywords | ({"help": argparse.SUPPRESS} if hidden else {})))


_COMMON: dict[str, dict[str, Any]] = {
    "--config": {
        "type": Path,
        "metavar": "FILE",
        "default": argparse.SUPPRESS,
        "help": "settings file (default: SEAWALL_CONFIG, else /etc/seawall/seawall.toml)",
    },
    "--json": {"action": "store_true", "default": argparse.SUPPRESS, "help": "print one JSON object and nothing else"},
    "--quiet": {"action": "store_true", "default": argparse.SUPPRESS, "help": "no progress"},
}


def _common_below(sub: argparse.ArgumentParser) -> None:
    """The same for a verb, and unseen for the commands that it has."""
    _common(sub)
    for action in sub._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _common(command, hidden=True)


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"seawall.cli.{VERBS[verb][0]}")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name.
    """
    console = Console(json="--json" in arguments, quiet="--quiet" in arguments)
    try:
        _write_anything()
        code = _run(arguments, console)
        # Here and not at the interpreter's end, where nobody could catch what the reader's absence raises.
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    return code


def _run(arguments: Sequence[str], console: Console) -> int:
    try:
        options = parser(_verb(arguments)).parse_args(arguments)
        context = Context(console=console, config=getattr(options, "config", None))
        _stop_on_signals(context)
        return int(_module(options.verb).run(options, context) or 0)
    except SeawallError as error:
        return _failed(console, error)
    except KeyboardInterrupt:
        return _failed(console, Cancelled("stopped on request"))
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(console, SeawallError(f"{where}{error.strerror or error}", hint="The system refused this."))
    except Exception as error:  # noqa: BLE001 - a defect too must yield one JSON object and an exit code
        _log.exception("a defect in Seawall")
        return _failed(console, SeawallError(f"{type(error).__name__}: {error}", hint="This is a defect; report it."))


def _failed(console: Console, error: SeawallError) -> int:
    console.failed(error)
    return error.exit_code


def _verb(arguments: Sequence[str]) -> str:
    """The first argument that is neither an option nor the value of one; a settings file may be named like a verb."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return ""


def _write_anything() -> None:
    """A name in a message may have characters that the terminal's encoding lacks; the message still counts."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _reader_gone() -> int:
    """The reader of our output went away, as `head` does. Nobody is left to tell, also not at the interpreter's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 141


def _stop_on_signals(context: Context) -> None:
    """The first Ctrl-C or SIGTERM asks the engine to stop cleanly; the second ends the process."""

    def stop(number: int, _frame: FrameType | None) -> None:
        context.observer.cancel.set()
        context.console.note("stopping; once more to stop at once")
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
