"""Reference pages that are made from the sources, so that they cannot say anything else.

    python -m tools.reference     writes docs/reference/{errors,settings,cli}.md

A test makes them again and compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from seawall import errors, limits, settings
from seawall.cli import VERBS, parser

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "reference"
_MADE = "<!-- Made from {} by `make reference`; change it there. -->\n"
_SECTIONS = {
    "repository": settings.RepositorySettings,
    "sealing": settings.SealingSettings,
    "catalog": settings.CatalogSettings,
    "server": settings.ServerSettings,
    "retention": settings.RetentionSettings,
    "sources.NAME": settings.SourceSettings,
    "locations.NAME": settings.LocationSettings,
    "[….limits]": limits.LimitWindow,
}
# A location takes the settings of [repository] itself; the others are sections of their own.
_UNSHOWN = {"storage", "retention", "locations"}
_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def errors_page() -> str:
    """The tree of errors, and for each its code, the command line's exit code, and what to do."""
    tree = (errors.__doc__ or "").split("\n\n", 2)[2]
    rows = [
        f"| `{kind.code}` | {kind.exit_code} | {'yes' if kind.retryable else 'no'} | {kind.default_hint or '—'} |"
        for kind in error_classes()
    ]
    return "\n".join(
        [
            "# Errors",
            _MADE.format("`seawall/errors.py`"),
            "Every error that Seawall raises on purpose has a code that never changes, a message with the facts, and a",
            "hint; `--json` prints them as `code`, `message`, `hint` and `retryable`.",
            "\n```",
            inspect.cleandoc("\n" + tree),
            "```\n",
            "| code | exit code | can a later attempt help | what to do, unless the error says something nearer |",
            "|---|---|---|---|",
            *rows,
            "\nExit codes that are no error of this list, and those of `archive-push` and `archive-get`, are in",
            "[exit codes](exit-codes.md).\n",
        ]
    )


def error_classes() -> Iterator[type[errors.SeawallError]]:
    """Every class of the tree, in the order of the file."""
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.SeawallError):
            yield value


def settings_page() -> str:
    """Every setting, by section."""
    parts = ["# Settings", _MADE.format("`seawall/settings.py`"), inspect.cleandoc(settings.__doc__ or ""), ""]
    for section, kind in _SECTIONS.items():
        parts += [f"## `[{section}]`\n", _summary(kind), "\n| setting | default | meaning |", "|---|---|---|"]
        parts += [f"| `{name.rstrip('_')}` | {default} | {meaning} |" for name, default, meaning in described(kind)]
        parts.append("")
    return "\n".join(parts)


def described(kind: type) -> Iterator[tuple[str, str, str]]:
    """Each field of a settings class with its default and what its docstring's `Args:` says."""
    meanings = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(inspect.cleandoc(kind.__doc__ or ""))}
    for field in dataclasses.fields(kind):
        if field.name in _UNSHOWN:
            continue
        yield field.name, _default(field.default), meanings.get(field.name, "")


def _default(value: object) -> str:
    if value is dataclasses.MISSING:
        return "required"
    seconds = getattr(value, "total_seconds", None)
    shown = str(int(seconds())) if seconds else ", ".join(value) if isinstance(value, tuple) else str(value)
    return f"`{shown}`" if shown and value is not None else "—"


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\nArgs:")[0]


def cli_page() -> str:
    """Every verb of the command line with its options."""
    parts = [
        "# Command line",
        _MADE.format("`seawall/cli/`"),
        "Every verb takes the options of the last section too. [Exit codes](exit-codes.md) say what happened.\n",
    ]
    top = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for verb, sub in top.choices.items():
        parts += [f"## `seawall {verb}`\n", f"{_sentence(VERBS[verb][1])}\n", *_options(f"seawall {verb}", sub)]
    return "\n".join([*parts, *_common(top.choices["list"])])


def _options(command: str, sub: argparse.ArgumentParser) -> Iterator[str]:
    """A table of what a command takes, then the same for each of its own commands."""
    deeper = [action for action in sub._actions if isinstance(action, argparse._SubParsersAction)]
    rows = [_row(action) for group in sub._action_groups if group.title != _ALWAYS for action in group._group_actions
            if action not in deeper and "--help" not in action.option_strings]  # fmt: skip
    if rows:
        yield from ["| argument | meaning |", "|---|---|", *rows, ""]
    for action in deeper:
        lines = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, below in action.choices.items():
            yield from [f"### `{command} {name}`\n", f"{_sentence(lines.get(name, ''))}\n"]
            yield from _options(f"{command} {name}", below)


_ALWAYS = "always"


def _common(sub: argparse.ArgumentParser) -> Iterator[str]:
    group = next(group for group in sub._action_groups if group.title == _ALWAYS)
    yield from ["## Always\n", "| argument | meaning |", "|---|---|", *map(_row, group._group_actions), ""]


def _row(action: argparse.Action) -> str:
    named = ", ".join(action.option_strings)
    choices = "|".join(map(str, action.choices)) if action.choices else ""
    metavar = action.metavar if isinstance(action.metavar, str) else choices or action.dest
    takes_value = not action.option_strings or action.nargs != 0
    shown = " ".join(part for part in (named, metavar if takes_value else "") if part)
    meaning = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return f"| `{shown.replace('|', chr(92) + '|')}` | {meaning or '—'} |"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def exit_codes_page() -> str:
    """Every exit code with the errors that have it."""
    by_code: dict[int, list[str]] = {}
    for kind in error_classes():
        by_code.setdefault(kind.exit_code, []).append(f"`{kind.code}`")
    rows = {0: "done", 141: "the reader of our output went away, as `head` does"}
    rows |= {code: ", ".join(names) for code, names in by_code.items()}
    return "\n".join(
        [
            "# Exit codes",
            _MADE.format("`seawall/errors.py` and `tools/reference.py`"),
            "| code | meaning: the errors that end with it, explained in [errors](errors.md) |",
            "|---|---|",
            *[f"| {code} | {meaning} |" for code, meaning in sorted(rows.items())],
            _WAL_EXIT_CODES,
        ]
    )


_WAL_EXIT_CODES = """
A verb that looks at several things (`check`, `verify --all`, `wal status`) ends with the code of what failed.

## `archive-push` and `archive-get`

PostgreSQL runs these, and gives their exit codes meanings of its own.

| command | code | meaning | what PostgreSQL does |
|---|---|---|---|
| `archive-push` | 0 | durable | may recycle the segment |
| | 2 | wrong usage | keeps it, counts a failure, tries again |
| | 3 | no agent answers, and nothing was spooled | the same |
| | 4 | the file or the spool cannot be used | the same |
| | 20 to 125 | the agent's error, as above | the same |
| | above 125 | never | its archiver would end uncounted |
| `archive-get` | 0 | the file is in place | replays it |
| | 1 | proved absent | takes it for the end of WAL on this timeline |
| | 126 | everything else | stops with an error; recovery can be started again |

So an outage of the storage is never taken for the end of WAL.
"""

PAGES = {
    "errors.md": errors_page,
    "exit-codes.md": exit_codes_page,
    "settings.md": settings_page,
    "cli.md": cli_page,
}


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (DIRECTORY / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
