"""Monthly: restore into a scratch instance and prove that it is what was backed up."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel, Field

from blocks.site import BlockNames, settings_for
from seawall.model import BackupLabel
from seawall.restoretest import Assertion
from tasks import admission
from tasks import restore_test as restore_test_task
from tasks.execution import AlreadyRunning


class Expectation(BaseModel):
    """A query whose first value, as text, must be `expected`."""

    database: str
    query: str = Field(description="runs as the superuser of the scratch instance, which is thrown away")
    expected: str


@flow(name="restore-test", retries=0)
def restore_test(
    source: str,
    *,
    label: str | None = None,
    expectations: list[Expectation] | None = None,
    seed: int | None = None,
    job_id: UUID | None = None,
    settings_file: str | None = None,
    blocks: BlockNames | None = None,
) -> dict[str, Any] | State[Any]:
    """Restore a backup to a random later position into a scratch instance, check it, and measure the RTO.

    Args:
        source: its name.
        label: which backup; any moment of the recoverability window if omitted.
        expectations: queries that must answer what is expected.
        seed: repeats an earlier test; random if omitted, and always recorded.
        job_id: the job that this run belongs to, if it belongs to one.
        settings_file: on the worker's host.
        blocks: what is loaded from Prefect instead.
    """
    settings = settings_for(source, settings_file, blocks)
    if refused := admission.refusal(settings, job_id):
        return refused
    asserted = [Assertion(one.database, one.query, one.expected) for one in expectations or []]
    number = secrets.randbelow(1 << 32) if seed is None else seed
    chosen, target = (BackupLabel.parse(label), None) if label else restore_test_task.drawn(settings, source, number)
    try:
        return dict(restore_test_task.test(settings, source, chosen, asserted, number, target=target, job_id=job_id))
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
