"""A flow whose verb does what a test asks of it, through the same wrapper as every real verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from blocks.site import settings_for
from seawall.catalog.recording import ExecutionRecord, Result
from seawall.errors import ServerUnreachable
from seawall.events import Advanced, Began, Noticed
from tasks import admission
from tasks.execution import AlreadyRunning, Surroundings, execute

STRANGERS: list[str] = []
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def watch_connections() -> None:
    """Note every address that is looked up or connected to, from now on, that is not loopback."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            target = arguments[0]
        elif event == "socket.connect":
            target = arguments[1][0] if isinstance(arguments[1], tuple) else "local socket"
        else:
            return
        if str(target) not in ("127.0.0.1", "localhost", "::1", "None", "local socket", ""):
            STRANGERS.append(f"{event} {target}")

    sys.addaudithook(hook)


watch_connections()


def note(path: str, **facts: object) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": time.time(), "pid": os.getpid(), **facts}) + "\n")


@task(name="probe", cache_policy=NO_CACHE, persist_result=False)
def work(settings_file: str, job_id: UUID, notes: str, seconds: float, behaviour: str) -> dict[str, Any]:
    def verb(around: Surroundings) -> Result:
        # In a session of its own, as the engine starts its programs.
        program = [sys.executable, "-c", STUBBORN] if behaviour == "deaf" else ["sleep", "600"]
        child = subprocess.Popen(program, start_new_session=True)
        note(notes, event="begun", child=child.pid, record=str(around.record_id))
        try:
            around.observe.hear(Began("copy", 1000))
            if behaviour == "fail":
                around.observe.hear(Noticed("critical", "bad-pages", "3 corrupt pages"))
                raise ServerUnreachable("the cluster does not answer")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if behaviour != "deaf":
                    around.observe.checkpoint()
                around.observe.hear(Advanced("copy", 10, 5))
                time.sleep(0.05)
        finally:
            child.kill()
            child.wait()
            note(notes, event="unwound")
        cloud = [name for name in sys.modules if name.split(".")[0] in ("prefect_aws", "prefect_azure", "prefect_gcp")]
        note(notes, event="done", strangers=STRANGERS, cloud=cloud, environment=sorted(os.environ), argv=sys.argv)
        return Result({"answer": 42})

    settings = settings_for("", settings_file)
    return dict(execute(ExecutionRecord(job_id), verb, settings=settings, title="probe", subject="main"))


@flow(name="probe", retries=0)
def probe(
    settings_file: str, job_id: UUID, notes: str, seconds: float = 0.0, behaviour: str = "sleep"
) -> dict[str, Any] | State[Any]:
    note(notes, event="flow", parameters=[seconds, behaviour])
    if refused := admission.refusal(settings_for("", settings_file), job_id):
        note(notes, event="refused", why=refused.message)
        return refused
    try:
        return work(settings_file, job_id, notes, seconds, behaviour)
    except AlreadyRunning as error:
        return admission.nothing_to_do(error.message)
