"""A gateway killed."""

from __future__ import annotations

from tests.e2e.faults.rig import Rig


def test_killed(rig: Rig) -> None:
    with rig.fault("gateway: kill -9") as fault:
        fault.gateways[1].kill()
