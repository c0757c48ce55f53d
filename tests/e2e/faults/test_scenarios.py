"""Every fault, one after the other, on one system under load. The log is the oracle after each."""

from __future__ import annotations

import pytest

from tests.support.faults.rig import Rig
from tests.support.faults.scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.timeout(600)  # a slow machine is given time: a run fails on what is wrong


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_system_after_a_fault_agrees_with_the_log(rig: Rig, scenario: Scenario) -> None:
    scenario(rig)
