"""Blocks by name, with Prefect's errors translated at this border."""

from __future__ import annotations

from typing import TypeVar

from prefect.blocks.core import Block

from seawall.errors import SettingsError

_B = TypeVar("_B", bound=Block)


def loaded(kind: type[_B], name: str) -> _B:
    """The block of that name as Prefect has it now.

    Raises:
        SettingsError: there is none of that name and kind.
    """
    try:
        block = kind.load(name)
    except ValueError as error:
        raise SettingsError(
            f"Prefect has no block {name!r} of the kind {kind.get_block_type_slug()!r}",
            hint="Create it in the Prefect UI, or leave the name empty to use the settings file.",
        ) from error
    # Outside of an event loop loading is synchronous; its signature does not say so.
    if not isinstance(block, kind):
        raise TypeError(f"block {name!r} was loaded as {type(block).__name__}")
    return block
