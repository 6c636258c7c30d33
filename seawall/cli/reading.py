"""Where verbs that only read do so: the primary location, or the others as one where that is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seawall.errors import Partial, SeawallError
from seawall.events import Noticed
from seawall.settings import PRIMARY

if TYPE_CHECKING:
    from seawall.cli.context import Context
    from seawall.repository import Repository


@dataclass(frozen=True, slots=True)
class Reading:
    """The repository as it can be read now.

    Args:
        locations: where it is read.
        gone: why it is not read in the primary; None where it is.
    """

    repository: Repository
    locations: tuple[str, ...] = (PRIMARY,)
    gone: SeawallError | None = None

    @property
    def failure(self) -> Partial | None:
        """The error that a result is given with if it is the other locations' alone."""
        if self.gone is None:
            return None
        return Partial(
            f"the primary location does not answer, read was {' and '.join(self.locations)}: {self.gone.message}",
            hint="What only the primary has is not known. If it is lost, see docs/how-to/locations.md.",
        )

    @property
    def value(self) -> dict[str, Any]:
        """What JSON output says of it."""
        lost = {} if self.gone is None else {PRIMARY: self.gone.message}
        return {"read_from": list(self.locations), "unreachable": lost}


def reading(context: Context) -> Reading:
    """The primary, or where it does not answer or holds no repository, those other locations that do.

    Raises:
        SeawallError: why the primary cannot be opened, where no other location can stand in.
    """
    from seawall.nearest import SILENT

    try:
        return Reading(context.repository)
    except SILENT as error:
        found = without_primary(context, error)
        if found is None:
            raise
        text = f"the primary location does not answer ({error.message}); reading {' and '.join(found.locations)}"
        context.observer.hear(Noticed("high", "primary-silent", text))
        return found


def without_primary(context: Context, gone: SeawallError | None = None) -> Reading | None:
    """The other locations that hold a copy, as one; None where there is none that answers."""
    from seawall import locations
    from seawall.repository import Repository

    found = locations.others(context.settings, context.observer, context.ring)
    if found is None:
        return None
    return Reading(Repository.open(found), found.names, gone)


def answer(
    context: Context,
    value: Mapping[str, Any],
    lines: Sequence[str],
    failure: SeawallError | None = None,
) -> int:
    """Print what was read and where; the exit code, which says too if the primary is gone.

    Args:
        failure: what is wrong with what was read; it goes before.
    """
    found = context.reading
    failure, told = failure or found.failure, {**value, **found.value}
    if failure is None:
        context.console.result(told, lines)
        return 0
    context.console.failed(failure, told, lines)
    return failure.exit_code
