"""A bounded part of the fault campaign: a storage call that goes wrong costs nothing, and the error names the cause."""

from __future__ import annotations

import pytest

from campaigns import faults
from seawall.keys import KeyRing
from seawall.model import SealingMode


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "share"), [(SealingMode.NONE, 0.15), (SealingMode.AES_256_GCM, 0.08)])
def test_a_call_that_goes_wrong_is_told_by_its_cause_and_costs_nothing(
    mode: SealingMode, share: float, ring: KeyRing, seed: int
) -> None:
    tally = faults.run(ring, seed, [mode], share)
    assert tally.wrong == []
    assert sum(tally.trials.values()) > 60
    assert {"storage-unreachable", "lease-lost", "done"} <= {end for _, end in tally.ends}
