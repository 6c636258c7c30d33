"""Blocks by name, with Prefect's errors translated at this border."""

from __future__ import annotations

from typing import TypeVar

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from pydantic import ValidationError

from seawall.errors import SettingsError

_B = TypeVar("_B", bound=Block)


def loaded(kind: type[_B], name: str) -> _B:
    """The block of that name as Prefect has it now.

    Raises:
        SettingsError: there is none of that name and kind, or it makes no sense on this host.
    """
    try:
        block = kind.load(name)
    except (httpx.HTTPError, PrefectException):
        raise
    except ValueError as error:
        if isinstance(error, ValidationError):
            raise _senseless(kind, name, _why(error)) from None
        raise SettingsError(
            f"Prefect has no block {name!r} of the kind {_slug(kind)!r}",
            hint="Create it in the Prefect UI, or leave the name empty to use the settings file.",
        ) from error
    except RuntimeError as error:
        raise _senseless(kind, name, _why(error.__cause__ or error.__context__)) from None
    except Exception as error:  # a block of a vendor's runs that vendor's code when it is loaded
        raise _senseless(kind, name, str(error)) from error
    # Outside of an event loop loading is synchronous; its signature does not say so.
    if not isinstance(block, kind):
        raise TypeError(f"block {name!r} was loaded as {type(block).__name__}")
    return block


def _slug(kind: type[Block]) -> str:
    return kind.get_block_type_slug()


def _senseless(kind: type[Block], name: str, why: str) -> SettingsError:
    return SettingsError(
        f"Prefect's block {name!r} of the kind {_slug(kind)!r} makes no sense on this host: {why}",
        hint="Correct it in the Prefect UI; what it names by a path must be there on the worker's host.",
    )


def _why(error: BaseException | None) -> str:
    """What is wrong with a block, without what it holds: that may be a secret."""
    if not isinstance(error, ValidationError):
        return "Prefect cannot read it"
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in found)
