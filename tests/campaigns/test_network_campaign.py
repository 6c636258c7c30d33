"""A bounded part of the campaign behind a real S3 server: a spoiled connection costs nothing that is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import network
from seawall.keys import KeyRing
from tools.storage_servers import s3_server


@pytest.mark.servers
@pytest.mark.repeats
def test_connections_that_are_cut_or_hang_lose_nothing_and_are_named(ring: KeyRing, tmp_path: Path, seed: int) -> None:
    with s3_server(tmp_path) as server:
        tally = network.run(ring, server, seed, trials=len(network.CASES))
    assert tally.wrong == []
    assert {case for case, _ in tally.ends} == set(network.CASES)
    assert {"storage-unreachable", "done"} == {end for _, end in tally.ends}
