"""Placeholder until the engine lands."""

from __future__ import annotations

from prefect import flow


@flow(name="restore")
def restore(source: str) -> None: ...
