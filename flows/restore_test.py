"""Placeholder until the engine lands."""

from __future__ import annotations

from prefect import flow


@flow(name="restore-test")
def restore_test(source: str) -> None: ...
