"""Limits that are changed at one gateway while the other one answers by leases."""

from __future__ import annotations

from typing import Final

from tests.support.faults.rig import HARMLESS_S, Fault, Rig
from tests.support.system import Gateway

ROUNDS: Final = 5
DEADLINE_MS: Final = 4_000
"""No check may fail open because no core is free."""
CLIENT: Final = "changed"
HIGH: Final = ("100000/minute", "100000/hour")
LOW: Final = ("100000/minute", "5/hour")
"""Limits of the same windows: while another window is kept, no lease is granted."""
BURST: Final = 20
"""Checks in one list: enough for a lease of the following ones."""


def limits_changed_at_other_gateway(rig: Rig) -> None:
    """Each change applies to the next check after its answer: lowered, raised, and reset."""
    with rig.fault(
        "limits: lowered, raised, reset at the other gateway", deadline_ms=DEADLINE_MS, most_s=HARMLESS_S
    ) as fault:
        here, there = fault.gateways
        for _ in range(ROUNDS):
            there.set_limits(CLIENT, *HIGH)
            burst(fault, here)
            there.set_limits(CLIENT, *LOW)
            assert not allowed(fault, here)
            there.set_limits(CLIENT, *HIGH)
            assert allowed(fault, here)
            burst(fault, here)
            there.set_limits(CLIENT, *LOW)
            assert not allowed(fault, here)
            assert there.http.post(f"/v1/clients/{CLIENT}/reset").json()["applied"]
            assert allowed(fault, here)
    assert rig.answers.leased[CLIENT] > ROUNDS * BURST


def burst(fault: Fault, gateway: Gateway) -> None:
    """Send lists of checks, the later ones of which leases can answer."""
    for _ in range(3):
        fault.send_list(gateway, [CLIENT] * BURST)


def allowed(fault: Fault, gateway: Gateway) -> bool:
    """Send one check; return whether it is allowed. It must not fail open."""
    fault.send_list(gateway, [CLIENT])
    last = fault.load.aside[-1]
    assert last.answer is not None
    assert not last.answer["degraded"]
    return bool(last.answer["allowed"])
