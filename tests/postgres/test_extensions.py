"""Which extensions a backup tells of, and which of them PostgreSQL's programs here have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.errors import Damaged
from seawall.postgres.binaries import Binaries
from seawall.postgres.extensions import SPECIAL, Extension, encoded, missing, of_backup
from seawall.postgres.inspect import inspect

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS)))
def test_what_a_backup_says_comes_back(found: list[tuple[str, str, str]]) -> None:
    assert of_backup({SPECIAL: encoded(tuple(found))}) == tuple(Extension(*one) for one in found)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"extensions": [{"name": "x"}]}', '{"extensions": 5}'])
def test_a_text_that_is_something_else_is_damage(text: str) -> None:
    with pytest.raises(Damaged):
        of_backup({SPECIAL: text})


def test_a_backup_that_says_nothing_names_none() -> None:
    assert of_backup({}) == ()


@pytest.mark.postgres
def test_what_a_server_has_is_there_and_what_it_has_not_is_missing(each_cluster) -> None:
    each_cluster.query("CREATE EXTENSION IF NOT EXISTS amcheck")
    found = of_backup({SPECIAL: encoded(inspect(each_cluster.source).extensions)})
    assert {("postgres", "amcheck"), ("postgres", "plpgsql")} <= {(one.database, one.name) for one in found}
    ghost = Extension("shop", "ghost", "2.1")
    assert missing((*found, ghost), each_cluster.instance.binaries) == (ghost,)


def test_programs_that_do_not_say_where_they_look_accuse_nobody(tmp_path: Path) -> None:
    assert missing((Extension("shop", "ghost", "2.1"),), Binaries(tmp_path)) == ()
