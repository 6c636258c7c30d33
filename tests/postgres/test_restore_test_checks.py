"""What a restore test looks at in a running copy: wrong indexes, corrupt pages, slow queries, and its budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from seawall import restoretest
from seawall.errors import Cancelled
from seawall.events import Observer
from seawall.restoretest import Assertion

pytestmark = pytest.mark.postgres


def looked(cluster: Any, *assertions: Assertion, observe: Observer | None = None, budget: float = 600) -> Any:
    look = restoretest._Look(cluster.instance, assertions, observe or Observer(), timedelta(seconds=budget))
    look.run()
    return look


def test_a_sound_cluster_has_no_findings(make_cluster: Callable[..., Any], each_major: int) -> None:
    cluster = make_cluster(each_major)
    cluster.query("CREATE TABLE t (n int PRIMARY KEY)")
    cluster.query("INSERT INTO t SELECT generate_series(1, 1000)")
    look = looked(cluster, Assertion("postgres", "SELECT count(*) FROM t", "1000"))
    assert look.findings == []
    assert look.row_counts == {"postgres: public.t": 1000}
    assert look.checks["pages"] > 500
    assert look.checks["skipped"] == 0
    assert not cluster.instance.is_running()


def test_an_index_that_misses_rows_is_named(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(18)
    if not cluster.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"):
        pytest.skip("this PostgreSQL comes without amcheck")
    cluster.query("CREATE FUNCTION f(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n'")
    cluster.query("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    cluster.query("CREATE INDEX lying ON t (f(n))")
    cluster.query("CREATE OR REPLACE FUNCTION f(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT -n'")
    look = looked(cluster)
    assert [(finding.code, finding.subject) for finding in look.findings] == [("index", "postgres: lying")]


def test_a_corrupt_page_is_found_by_its_number(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(18)
    cluster.query("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n")
    path = cluster.value("SELECT pg_relation_filepath('t')")
    cluster.stop()
    with (cluster.data / path).open("r+b") as file:
        file.seek(3 * 8192 + 4000)
        file.write(b"rot")
    cluster.start()
    look = looked(cluster)
    assert ("heap", "postgres: public.t") in [(finding.code, finding.subject) for finding in look.findings]
    assert [f.message for f in look.findings if f.code == "page"] == ["page 3 has a wrong checksum"]


def test_what_the_budget_does_not_suffice_for_is_counted(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(18)
    cluster.query("CREATE TABLE t (n int PRIMARY KEY)")
    look = looked(cluster, Assertion("postgres", "SELECT 1", "1"), budget=0)
    assert look.row_counts == {}
    assert look.checks["skipped"] > 0
    assert look.checks["assertions"] == 1
    assert look.checks["pages"] > 500


def test_cancelling_interrupts_a_statement_that_would_take_long(make_cluster: Callable[..., Any]) -> None:
    cluster = make_cluster(18)
    observe = Observer()
    threading.Timer(1.0, observe.cancel.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        looked(cluster, Assertion("postgres", "SELECT pg_sleep(100)", ""), observe=observe)
    assert time.monotonic() - began < 60
