"""The wrapper of every verb, outside of Prefect: what it does must not need a server."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from seawall.catalog import Catalog, JobType, RunStatus
from seawall.catalog.recording import ExecutionRecord, Result
from seawall.errors import Cancelled, LeaseLost, ServerUnreachable
from seawall.events import Advanced, Began, Noticed
from seawall.settings import CatalogSettings, Settings
from tasks import execution
from tasks.execution import AlreadyRunning, execute

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(catalog=CatalogSettings(f"sqlite:///{tmp_path}/catalog.db"))


@pytest.fixture
def catalog(settings: Settings):
    with Catalog.open(settings.catalog.url, create=True) as opened:
        yield opened


@pytest.fixture
def job(catalog: Catalog) -> UUID:
    return catalog.ensure_job(
        "main-full", JobType.FULL, backup_targets={"source": "main"}, destination_config={}, now=NOW
    )


def run(settings: Settings, job: UUID, verb):
    return execute(ExecutionRecord(job), verb, settings=settings, title="backup", subject="main")


def only(catalog: Catalog, job: UUID):
    (found,) = catalog.executions(job)
    return found


def test_what_a_verb_achieved_is_in_the_catalog_with_its_progress(settings, catalog, job):
    def verb(around):
        assert only(catalog, job).status is RunStatus.RUNNING
        around.observe.hear(Began("copy", 100))
        around.observe.hear(Advanced("copy", 100, 40))
        return Result({"label": "x"})

    assert run(settings, job, verb) == {"label": "x"}
    found = only(catalog, job)
    assert found.status is RunStatus.COMPLETED
    assert found.details["label"] == "x"
    assert found.details["progress"]["stored_bytes"] == 40


def test_a_failure_is_recorded_with_its_code_raised_and_alerted_until_the_next_success(settings, catalog, job):
    def fail(_around):
        raise ServerUnreachable("no answer")

    with pytest.raises(ServerUnreachable):
        run(settings, job, fail)
    found = only(catalog, job)
    assert found.status is RunStatus.FAILED
    assert "server-unreachable" in found.error_message
    assert [alert.alert_type for alert in catalog.alerts()] == ["backup-failed"]
    run(settings, job, lambda _around: Result())
    assert catalog.alerts() == ()


def test_a_defect_is_recorded_as_one_and_raised_as_it_was(settings, catalog, job):
    def fail(_around):
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run(settings, job, fail)
    assert "defect" in only(catalog, job).error_message


def test_a_critical_notice_becomes_an_alert_although_the_verb_succeeds(settings, catalog, job):
    def verb(around):
        around.observe.hear(Noticed("critical", "bad-pages", "3 corrupt pages"))
        around.observe.hear(Noticed("low", "kind-changed", "a full stands in"))
        return Result()

    run(settings, job, verb)
    assert [(alert.alert_type, alert.subject) for alert in catalog.alerts()] == [("bad-pages", "main")]
    assert len(only(catalog, job).details["notices"]) == 2


def test_the_same_job_is_refused_while_it_runs(settings, catalog, job):
    catalog.begin_execution(job, now=datetime.now(UTC), lease=timedelta(minutes=5))
    with pytest.raises(AlreadyRunning):
        run(settings, job, lambda _around: pytest.fail("it ran"))


def test_a_verb_that_lost_its_lease_is_stopped_and_says_so(settings, catalog, job, monkeypatch):
    monkeypatch.setattr(execution, "RENEWAL_SECONDS", 0.05)

    def verb(around):
        catalog.reconcile(datetime.now(UTC) + timedelta(hours=1))
        assert around.observe.cancel.wait(10)
        around.observe.checkpoint()

    with pytest.raises(LeaseLost):
        run(settings, job, verb)
    assert only(catalog, job).status is RunStatus.FAILED


def test_the_lease_is_renewed_while_the_verb_works(settings, catalog, job, monkeypatch):
    monkeypatch.setattr(execution, "RENEWAL_SECONDS", 0.05)

    def verb(_around):
        first = only(catalog, job).lease_expires_at
        for _ in range(200):
            if only(catalog, job).lease_expires_at > first:
                return Result()
            threading.Event().wait(0.05)
        pytest.fail("the lease was not renewed")

    run(settings, job, verb)


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """What Prefect does when a worker is stopped: SIGTERM becomes an exception in the main thread."""

    def on_signal(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGTERM, on_signal)
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is on_signal
    signal.signal(signal.SIGTERM, before)


def test_an_interrupted_verb_unwinds_and_its_row_says_that_it_did_not_finish(settings, catalog, job, interrupt):
    unwound = []

    def verb(around):
        try:
            interrupt()
            assert around.observe.cancel.wait(10)
            threading.Event().wait(2)
            around.observe.checkpoint()
        finally:
            unwound.append(True)

    with pytest.raises(InterruptedError):
        run(settings, job, verb)
    assert unwound
    found = only(catalog, job)
    assert found.status is RunStatus.FAILED
    assert "interrupted" in found.error_message


def test_a_second_signal_does_not_disturb_the_unwinding(settings, catalog, job, interrupt):
    """Prefect sends a signal for each way in which it hears of a cancellation, so there are often two."""
    unwound = []

    def verb(around):
        interrupt()
        assert around.observe.cancel.wait(10)
        interrupt()
        threading.Event().wait(2)
        unwound.append(True)
        around.observe.checkpoint()

    with pytest.raises(InterruptedError):
        run(settings, job, verb)
    assert unwound
    assert only(catalog, job).status is RunStatus.FAILED


def test_a_deaf_verb_is_recorded_as_stopped_all_the_same(settings, catalog, job, interrupt, monkeypatch):
    monkeypatch.setattr(execution, "UNWIND_SECONDS", 0.2)
    release = threading.Event()

    def verb(_around):
        interrupt()
        release.wait(30)
        return Result()

    try:
        with pytest.raises(InterruptedError):
            run(settings, job, verb)
        assert only(catalog, job).status is RunStatus.FAILED
    finally:
        release.set()


def test_a_verb_that_stops_by_itself_is_cancelled_not_failed(settings, catalog, job, monkeypatch):
    monkeypatch.setattr(execution, "STOP_REASON_SECONDS", 0.05)

    def verb(_around):
        raise Cancelled("stopped on request")

    with pytest.raises(Cancelled):
        run(settings, job, verb)
    assert only(catalog, job).status is RunStatus.CANCELLED
    assert catalog.alerts() == ()


def test_what_a_verb_starts_does_not_inherit_the_key_to_the_prefect_api(settings, catalog, job, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "seawall:secret")
    seen = run(settings, job, lambda _around: Result({"inherited": "PREFECT_API_AUTH_STRING" in os.environ}))
    assert seen == {"inherited": False}


def test_what_the_engine_logs_in_any_thread_reaches_the_runs_log(settings, catalog, job, monkeypatch, caplog):
    log = logging.getLogger("somewhere.else")
    monkeypatch.setattr("tasks.run.run_log", lambda: log)

    def verb(_around):
        thread = threading.Thread(target=logging.getLogger("seawall.backup").warning, args=("from a thread",))
        thread.start()
        thread.join()
        return Result()

    with caplog.at_level(logging.INFO, "somewhere.else"):
        run(settings, job, verb)
    assert "from a thread" in [record.message for record in caplog.records if record.name == "somewhere.else"]


def test_a_signal_before_the_verb_begins_is_recorded_too(settings, catalog, job, monkeypatch):
    start = threading.Thread.start

    def interrupted_start(thread):
        if thread.name == "backup":
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        run(settings, job, lambda _around: pytest.fail("it ran"))
    assert only(catalog, job).status is RunStatus.FAILED
