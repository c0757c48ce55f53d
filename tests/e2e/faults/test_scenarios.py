"""Every fault, one after the other, on one system under load. The log is the oracle after each."""

from __future__ import annotations

import pytest

from tests.support.faults.rigs import Rigs
from tests.support.faults.scenarios import SCENARIOS, Scenario
from tests.support.faults.scenarios.clocks import leader_clock_ahead_then_right

pytestmark = pytest.mark.timeout(600)  # a slow machine may take its time


NEEDS: dict[Scenario, list[pytest.MarkDecorator]] = {
    leader_clock_ahead_then_right: [pytest.mark.needs("faketime")]
}


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(scenario, id=scenario.__name__, marks=NEEDS.get(scenario, ())) for scenario in SCENARIOS],
)
def test_system_after_a_fault_agrees_with_the_log(rigs: Rigs, scenario: Scenario) -> None:
    with rigs.lend() as rig:
        scenario(rig)
