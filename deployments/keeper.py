"""`python -m deployments.keeper`: deploys, keeps Prefect in the catalog's image, sweeps, and drains at the end.

The one process of the stack that speaks to both the Prefect API and the catalog. On SIGTERM it pauses the work
pool, cancels what runs, waits until that has unwound, and resumes the pool, so that the next start finds it as it was.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from blocks.notification import channel_of
from deployments import deploy
from deployments.environment import POOL, STACK_VARIABLE, Place
from deployments.notices import Notifier
from deployments.readiness import connect, is_answering
from deployments.sweeper import Sweeper, swept
from seawall import keepers
from seawall.catalog import Catalog
from seawall.errors import CatalogError, SeawallError
from seawall.settings import Settings, load

logger = logging.getLogger(__name__)

SWEEP_VARIABLE = "SEAWALL_SWEEP_SECONDS"
PENDING_VARIABLE = "SEAWALL_PENDING_SECONDS"
SCHEDULES_EVERY = 300.0
OTHERS_EVERY = 60.0
DRAIN_SECONDS = 45.0
_UNENDED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class Keeper:
    """Keeps one stack."""

    def __init__(self, client: SyncPrefectClient, catalog: Catalog, settings: Settings, settings_file: str) -> None:
        self._client = client
        self._catalog = catalog
        self._settings = settings
        self._settings_file = settings_file
        self._place = Place(settings.server.work_directory)
        pending = float(os.environ.get(PENDING_VARIABLE, "300"))
        self._sweeper = Sweeper(
            client,
            catalog,
            pool=POOL,
            pending_limit=timedelta(seconds=pending),
            scratch=settings.server.work_directory,
        )
        self._host = socket.gethostname()
        self._notifier = Notifier(catalog, lambda: channel_of(settings.server.notification_channel))

    def begin(self) -> None:
        """Deploy, then say that everything is there."""
        deploy.deploy(self._client, working_directory=str(self._place.home))
        deploy.ensure_jobs(self._catalog, self._settings, now=datetime.now(UTC))
        self.reconcile()
        swept(self._sweeper, datetime.now(UTC))
        self._place.deployed.write_text(os.environ.get(STACK_VARIABLE, ""), encoding="ascii")

    def reconcile(self) -> None:
        changed = deploy.reconcile_schedules(self._catalog, self._client, settings_file=self._settings_file)
        if changed:
            logger.info("schedules brought to the catalog's image: %s", ", ".join(changed))

    def keep(self, stop: threading.Event, every: float) -> None:
        """Sweep every so many seconds, and compare the schedules now and then, until told to stop."""
        compared_at = judged_at = time.monotonic()
        self.beat()
        # It is back: what was said of its silence is over. Others may just be starting, as after a power cut.
        self._catalog.resolve_alerts(keepers.SILENT, subject=self._host, now=datetime.now(UTC))
        while not stop.wait(every):
            if not self.beat():
                # Nobody could be heard of; when the catalog is back, others need time to say so.
                judged_at = time.monotonic()
            if time.monotonic() - judged_at > OTHERS_EVERY:
                judged_at = time.monotonic()
                _unless_catalog_silent(self.judge_others)
            _unless_unreachable(lambda: swept(self._sweeper, datetime.now(UTC)))
            _unless_unreachable(self.notify)
            if time.monotonic() - compared_at > SCHEDULES_EVERY:
                compared_at = time.monotonic()
                _unless_unreachable(self.reconcile)

    def beat(self) -> bool:
        """Leave a sign of life, which others miss (`seawall.keepers`); whether the catalog took it."""
        self._settings.keeper_beat.touch()
        return _unless_catalog_silent(lambda: self._catalog.beat(self._host))

    def judge_others(self) -> None:
        """Miss the keepers of other hosts."""
        for wrong in keepers.judge_all(self._settings, self._catalog, datetime.now(UTC), watched=True).values():
            logger.warning("%s", wrong)

    def leave(self) -> None:
        """Say that nobody shall wait for signs of life any more; whoever broke down does not come here."""
        self._settings.keeper_beat.unlink(missing_ok=True)
        _unless_catalog_silent(lambda: keepers.end(self._catalog, self._host, datetime.now(UTC)))

    def notify(self) -> None:
        """Tell people of alerts; a catalog that does not answer is asked again next time."""
        _unless_catalog_silent(lambda: self._notifier.notify(datetime.now(UTC)))

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Cancel what runs, so that it unwinds and records its end, and wait for that."""
        if not is_answering(str(PREFECT_API_URL.value())):
            return
        was_paused = self._client.read_work_pool(POOL).is_paused
        self._client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
        try:
            deadline = time.monotonic() + seconds
            while (left := self._unended()) and time.monotonic() < deadline:
                for run in left:
                    if run.state is not None and not run.state.is_cancelling():
                        logger.info("cancelling flow run %s: the stack is being stopped", run.id)
                        self._client.set_flow_run_state(run.id, Cancelling(message="the stack is being stopped"))
                time.sleep(0.5)
        finally:
            # The next start must find the pool as it was; until the worker ends in a moment, it may take a run,
            # and will end that itself.
            self._client.update_work_pool(POOL, WorkPoolUpdate(is_paused=was_paused))

    def _unended(self) -> list[FlowRun]:
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNENDED))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )


def _unless_unreachable(look: Callable[[], object]) -> None:
    try:
        look()
    except (httpx.HTTPError, PrefectException):
        logger.exception("the Prefect server did not do what it was asked; trying again later")


def _unless_catalog_silent(look: Callable[[], object]) -> bool:
    try:
        look()
    except CatalogError:
        logger.exception("the catalog did not do what it was asked; trying again later")
        return False
    return True


def main() -> int:
    # Prefect has set logging up when it was imported, for its own loggers only.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _keep(Path(os.environ["SEAWALL_CONFIG"]), stop)
    except SeawallError as error:
        logger.error("%s\n%s", error.message, error.hint)  # noqa: TRY400 - an expected error needs no traceback
        return error.exit_code
    return 0


def _keep(settings_file: Path, stop: threading.Event) -> None:
    settings = load(settings_file)
    with connect() as client, Catalog.open(settings.catalog.url, create=True) as catalog:
        catalog.upgrade()
        keeper = Keeper(client, catalog, settings, str(settings_file))
        keeper.begin()
        keeper.keep(stop, float(os.environ.get(SWEEP_VARIABLE, "15")))
        _unless_unreachable(keeper.drain)
        keeper.leave()


if __name__ == "__main__":
    sys.exit(main())
