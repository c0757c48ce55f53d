"""A gateway killed."""

from __future__ import annotations

from tests.support.faults.rig import HARMLESS_S, Rig


def gateway_killed(rig: Rig) -> None:
    with rig.fault("gateway: kill -9", most_s=HARMLESS_S) as fault:
        fault.gateways[1].kill()
