"""Let backups go by policy: mark, and remove what was marked at least a day ago."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE

from seawall import locations, retention
from seawall.audit import carry
from seawall.catalog import anchors
from seawall.catalog.doubts import doubted
from seawall.catalog.facts import Facts, retention_facts
from seawall.catalog.recording import ExecutionRecord, Result, record_collected
from seawall.errors import Cancelled, Partial, RetentionRefused, SeawallError
from seawall.events import Noticed
from seawall.nearest import SILENT
from seawall.repository import Repository
from seawall.retention import Cleaned
from seawall.settings import PRIMARY, Settings
from tasks.execution import Surroundings, execute
from tasks.opening import can_help, known_to, note_primary_down, opened


@task(
    name="retention-cleanup",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=60,
    retry_condition_fn=can_help,
)
def clean(settings: Settings, source: str, job_id: UUID, *, dry_run: bool) -> Facts:
    """Apply a source's retention in every location; one that is down keeps no other from being cleaned.

    While the primary is gone, the copies are cleaned alone and more carefully (`retention.clean_copy_alone`); that is
    told under `partial`.

    Args:
        job_id: the job that this is a run of; a look that changes nothing is none.

    Returns:
        What is kept and let go, each with its reasons, and what was removed for good.

    Raises:
        SeawallError: why the primary was not cleaned; why it cannot be opened, where no copy can be cleaned either.
    """

    def verb(around: Surroundings) -> Result:
        cleaning = _Cleaning(settings, source, around, dry_run)
        with ExitStack() as stack:
            try:
                repository = stack.enter_context(opened(settings, deleting=True))
            except SILENT as error:
                return cleaning.of_copies_alone(error)
            return cleaning.of_all(repository)

    record = None if dry_run else ExecutionRecord(job_id)
    return execute(record, verb, settings=settings, title="retention-cleanup", subject=source)


@dataclass(frozen=True, slots=True)
class _Cleaning:
    """One source's retention at work."""

    settings: Settings
    source: str
    around: Surroundings
    dry_run: bool

    def of_all(self, repository: Repository) -> Result:
        """The primary first, then its copies."""
        around, source, now = self.around, self.source, self.around.now
        policy, observe = retention.policy_for(self.settings, source), around.observe
        if not self.dry_run:
            # Of the time when this was a copy itself, and the primary of then was gone.
            carry(repository.storage, repository.storage, now=now)
        area = repository.source(source)
        unsound = doubted(around.catalog, area, repository.id, PRIMARY)
        plan = retention.plan_for(
            area,
            policy,
            now=now,
            awaited=lambda heads: retention.awaited(self.settings, source, heads, now=now, observe=observe),
            unsound=unsound,
        )
        marked = 0 if self.dry_run else retention.expire(repository, plan, actor=around.actor, now=now)
        collected = retention.collect(
            repository, source, actor=around.actor, now=now, observe=observe, dry_run=self.dry_run, policy=policy,
            unsound=unsound,
        )  # fmt: skip
        if not self.dry_run:
            record_collected(around.catalog, repository, source, collected.sets, actor=around.actor, now=around.now)
        copies = self._copies(partial(retention.clean_copy, self.settings, repository))
        if not self.dry_run:
            anchors.watched(around.catalog, repository, observe, now=now)
        return Result({**retention_facts(plan, collected, marked), "locations": copies})

    def of_copies_alone(self, gone: SeawallError) -> Result:
        """The copies, where the primary does not answer.

        Raises:
            SeawallError: why it does not, where there are none that could be cleaned.
        """
        note_primary_down(self.around.catalog, gone, self.around.now)
        knows = known_to(self.around.catalog)
        others = locations.others(self.settings, self.around.observe, knows=knows)
        if others is None:
            raise gone
        with closing(others):
            refuse_unknown(Repository.open(others), knows)
            copies = self._copies(partial(retention.clean_copy_alone, self.settings, others))
        if not any("keep" in facts for facts in copies.values()):
            raise gone
        text = f"the primary location does not answer and was not cleaned, only copies of {self.source}: {gone.message}"
        hint = "The next cleanup does it, and carries what was recorded in the copies into the audit."
        return Result({PRIMARY: gone.as_dict(), "locations": copies}, lacking=Partial(text, hint=hint))

    def _copies(self, clean: Callable[..., Cleaned]) -> dict[str, Facts]:
        """Clean the copies in every other location; one that is down is told, and keeps no other from being cleaned."""
        found: dict[str, Facts] = {}
        around, doubts = self.around, partial(doubted, self.around.catalog)
        for name in self.settings.source(self.source).mirrors:
            try:
                done = clean(
                    self.source, name, actor=around.actor, now=around.now, observe=around.observe,
                    dry_run=self.dry_run, doubts=doubts,
                )  # fmt: skip
                found[name] = retention_facts(done.plan, done.collected, done.marked)
            except Cancelled:
                raise
            except SeawallError as error:
                found[name] = error.as_dict()
                text = f"{self.source} is not cleaned in {name}: {error.message}"
                around.observe.hear(Noticed("medium", "location-not-cleaned", text))
        return found


def refuse_unknown(repository: Repository, knows: Callable[[str], bool]) -> None:
    """Let go of nothing in a repository that may be another one: only the catalog is left to tell.

    Raises:
        RetentionRefused: the catalog never looked at it.
    """
    if not knows(repository.id):
        raise RetentionRefused(
            f"nothing is cleaned in {repository.storage.url} while the primary location is gone: the catalog never saw "
            f"the audit of the repository {repository.id}",
            hint="`seawall verify` with the primary location makes it known.",
        )
