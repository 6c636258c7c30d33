"""Writing a repository's identity again, where one of its objects is missing or damaged; planned, then audited.

Whatever tells the identity is asked in this order: the other object in the repository, other locations that hold a
copy, the administrator, to whom it is said what the catalog remembers of the backups that lie there. Two that disagree
stop the repair: nothing is written by guess, and nothing on the catalog's word alone. A damaged object goes only
after the audit says so, and where a lock keeps it, the sound one is written under `repairs/`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from seawall.audit import AuditLog
from seawall.errors import (
    Damaged,
    NotARepository,
    ObjectMissing,
    RepositoryError,
    StorageDenied,
    StorageError,
    UsageError,
)
from seawall.repository import identity
from seawall.repository.identity import Identity
from seawall.repository.layout import REPAIRS
from seawall.storage.base import Storage
from seawall.storage.immutability import lock_as, lockable


@dataclass(frozen=True, slots=True)
class Step:
    """One object to write; what lies there is replaced if it is damaged or of another repository."""

    name: str
    replaces: bool
    why: str


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What is written, and who told it; without steps all is well."""

    identity: Identity
    told_by: str
    steps: tuple[Step, ...]


def plan(
    storage: Storage,
    others: Mapping[str, Identity] | None = None,
    *,
    repository_id: str = "",
    remembered: Callable[[], Mapping[str, int]] = dict,
    now: datetime,
) -> RepairPlan:
    """Decide what a repair would write; reads only.

    Args:
        others: what other locations say, by their names; asked where nothing here tells.
        repository_id: what the administrator says it is.
        remembered: asked where nobody else tells: the ids that a catalog knows for backups which lie here, each with
            how many these are. They are said, and not taken.
        now: counts as the time of its making where nobody knows that.

    Raises:
        NotARepository: neither an identity nor any backup lies there.
        Damaged: two objects, or two locations, say different things.
        UsageError: nobody tells, or what the administrator says is no id of a repository.
    """
    known = identity.known(storage)
    if not _is_one(storage, known):
        raise NotARepository(f"{storage.url} holds no Seawall repository")
    told = {name: one for name, one in known.items() if isinstance(one, Identity)}
    chosen, told_by = _chosen(told, others or {}, repository_id, remembered, now)
    steps = (_step(name, one, chosen) for name, one in known.items())
    return RepairPlan(chosen, told_by, tuple(step for step in steps if step))


def _is_one(storage: Storage, known: Mapping[str, object]) -> bool:
    return any(not isinstance(one, ObjectMissing) for one in known.values()) or bool(storage.children("sources/"))


def _chosen(
    told: Mapping[str, Identity],
    others: Mapping[str, Identity],
    repository_id: str,
    remembered: Callable[[], Mapping[str, int]],
    now: datetime,
) -> tuple[Identity, str]:
    everybody = {**told, **{f"location {name}": one for name, one in others.items()}}
    if repository_id:
        wanted = _checked(repository_id)
        agreeing = (one for one in everybody.values() if one.repository_id == wanted)
        return next(agreeing, Identity(wanted, now)), "the administrator"
    for asked in (told, {name: one for name, one in everybody.items() if name not in told}):
        if len({one.repository_id for one in asked.values()}) > 1:
            said = ", ".join(f"{name} says {one.repository_id}" for name, one in asked.items())
            raise Damaged(f"it is not certain which repository this is: {said}", hint="Say which with --id.")
        if asked:
            name, one = next(iter(asked.items()))
            return one, name
    raise _nobody_tells(remembered())


def _nobody_tells(remembered: Mapping[str, int]) -> UsageError:
    said = "nothing here and no other location says which repository this is"
    if not remembered:
        return UsageError(said, hint="Name its id with --id; a recovery kit or older output of `seawall init` has it.")
    ordered = sorted(remembered.items(), key=lambda one: -one[1])
    known = ", ".join(f"{count} of the backups here as of {repository_id}" for repository_id, count in ordered)
    return UsageError(
        f"{said}; the catalog knows {known}",
        hint=f"If that is right, confirm it: `seawall repository repair --id {ordered[0][0]}`.",
    )


def _checked(repository_id: str) -> str:
    try:
        return str(uuid.UUID(repository_id))
    except ValueError as error:
        raise UsageError(f"{repository_id!r} is no id of a repository", hint="It is a UUID.") from error


def _step(name: str, found: Identity | RepositoryError | StorageError, chosen: Identity) -> Step | None:
    if isinstance(found, Identity):
        if found.repository_id == chosen.repository_id:
            return None
        return Step(name, True, f"{name} says {found.repository_id}")
    return Step(name, not isinstance(found, ObjectMissing), found.message)


def run(chosen: RepairPlan, storage: Storage, *, actor: str, now: datetime) -> tuple[str, ...]:
    """Write what a plan names; the names under which it lies now.

    Raises:
        ObjectExists: somebody else wrote there meanwhile; plan again.
        Damaged: what was written does not come back; or the audit is broken, and nothing was written.
    """
    audit, written = AuditLog(storage), []
    for step in chosen.steps:
        details = {"repository": chosen.identity.repository_id, "told_by": chosen.told_by, "why": step.why}
        # The record precedes the deed.
        audit.append(actor, "repair-identity", step.name, details, now=now)
        written.append(_write(step, chosen.identity, storage))
    return tuple(written)


def _write(step: Step, wanted: Identity, storage: Storage) -> str:
    stored_as = step.name
    try:
        if step.replaces:
            storage.delete(step.name)
    except StorageDenied:
        stored_as = f"{REPAIRS}{step.name}"
    storage.put(stored_as, [identity.encoded(step.name, wanted)])
    locks = lockable(storage)
    if stored_as != step.name and locks is not None and locks.can_lock():
        # What stands for a locked object could be taken away again.
        lock_as(locks, step.name, stored_as)
    if identity.one(storage, step.name, stored_as=stored_as) != wanted:
        raise Damaged(f"{stored_as} came back with other content than was written")
    return stored_as
