from __future__ import annotations

import pytest

pytestmark = pytest.mark.prefect


def test_a_run_ends_completed_with_its_result_in_the_catalog(prefect_stack):
    job = prefect_stack.job()
    parameters = prefect_stack.parameters(job, seconds=2.5)
    run = prefect_stack.ended(prefect_stack.start(parameters))
    assert run.state.type.value == "COMPLETED", run.state.message
    execution = prefect_stack.execution(job)
    assert execution.flow_run_id == run.id
    assert execution.details["answer"] == 42
    assert execution.details["progress"]["plain_bytes"] > 0
