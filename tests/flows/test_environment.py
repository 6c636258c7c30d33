from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from cryptography.fernet import Fernet
from prefect.settings.models.root import Settings as PrefectSettings
from pydantic import AliasChoices, BaseModel

from deployments.environment import DATABASE_VARIABLE, Place, compose, kept_secret
from deployments.stack import free_port, reserved_port


def known_variables(model: type[BaseModel], prefix: str = "PREFECT_") -> Iterator[str]:
    """Every environment variable that some setting of Prefect is read from."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_variables(field.annotation, f"{prefix}{name.upper()}_")
        yield f"{prefix}{name.upper()}"
        if isinstance(field.validation_alias, AliasChoices):
            yield from (str(choice).upper() for choice in field.validation_alias.choices)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "work")
    found.prepare()
    return found


def environments(place: Place, **inherited: str):
    return compose(place, port=4321, stack_id="s", inherited={"PATH": "/bin", **inherited})


def test_prefect_knows_every_variable_that_is_set(place):
    known = set(known_variables(PrefectSettings)) | {"PREFECT_SERVER_ENCRYPTION_KEY"}
    made = environments(place)
    for environment in (made.server, made.worker, made.client):
        assert {name for name in environment if name.startswith("PREFECT_")} <= known


def test_the_users_own_prefect_profile_reaches_nothing(place):
    made = environments(place, PREFECT_API_KEY="k", PREFECT_API_URL="https://elsewhere", PREFECT_LOGGING_LEVEL="DEBUG")
    for environment in (made.server, made.worker, made.client):
        assert "PREFECT_API_KEY" not in environment
        assert "PREFECT_LOGGING_LEVEL" not in environment
    assert made.client["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


def test_the_database_of_the_server_is_the_sites_to_choose_and_only_the_server_sees_it(place):
    made = environments(place, **{DATABASE_VARIABLE: "postgresql+asyncpg://prefect@db/prefect"})
    assert made.server[DATABASE_VARIABLE] == "postgresql+asyncpg://prefect@db/prefect"
    assert DATABASE_VARIABLE not in made.client


def test_the_encryption_key_is_the_servers_alone_and_a_real_one(place):
    made = environments(place)
    assert "PREFECT_SERVER_ENCRYPTION_KEY" not in made.client
    Fernet(made.server["PREFECT_SERVER_ENCRYPTION_KEY"])


def test_a_proxy_of_the_site_does_not_get_what_is_for_this_host(place):
    made = environments(place, HTTPS_PROXY="http://proxy:3128", NO_PROXY="intranet")
    assert made.client["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_secrets_are_files_that_only_their_owner_reads(place):
    place.auth_string()
    place.encryption_key()
    for path in place.secrets.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.home.stat().st_mode) == 0o700


def test_two_that_start_at_once_agree_on_the_secret(tmp_path):
    found: list[str] = []
    threads = [
        Thread(target=lambda n=n: found.append(kept_secret(tmp_path / "secret", lambda: f"value {n}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_two_stacks_that_start_at_once_are_never_given_the_same_port():
    first, port = reserved_port(0)
    with first:
        # Nobody listens yet, which is all that a look at the port itself can tell.
        assert free_port(port) == port
        second, other = reserved_port(port)
        with second:
            assert other != port
    third, again = reserved_port(port)
    with third:
        assert again == port
