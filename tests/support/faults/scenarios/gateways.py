"""Gateways that are killed, frozen, or given connections and lists that could hold up others."""

from __future__ import annotations

import signal
import time
from itertools import cycle, islice
from typing import Final

from tests.support.faults.check_sender import CLIENTS
from tests.support.faults.rig import HARMLESS_S, Rig
from tests.support.half_open import half_open
from tests.support.system import eventually

FROZEN_S: Final = 8.0
CUT_OFF_S: Final = 8.0
HALF_OPEN: Final = 300
"""Half-open connections at one gateway."""
LIST: Final = list(islice(cycle(CLIENTS), 10_000))
"""The clients of the longest list that a gateway accepts."""


def gateway_killed(rig: Rig) -> None:
    with rig.fault("gateway: kill -9", most_s=HARMLESS_S) as fault:
        fault.gateways[1].kill()


def gateway_frozen_and_woken(rig: Rig) -> None:
    with rig.fault(f"gateway: SIGSTOP for {FROZEN_S:g} s, SIGCONT", episodes=2) as fault:
        frozen = fault.gateways[0]
        frozen.signal(signal.SIGSTOP)
        time.sleep(FROZEN_S)  # the fault itself: requests wait in the sockets for that long
        frozen.signal(signal.SIGCONT)
    waited_s = max(one.ended_at - one.sent_at for one in fault.load.sent if one.gateway == frozen.url)
    assert waited_s > FROZEN_S / 2, "the gateway was not frozen"
    assert not fault.load.lost, "requests that waited were reset"


def gateway_cut_off_from_brokers(rig: Rig) -> None:
    with rig.fault(
        f"network: a gateway cut off from all brokers for {CUT_OFF_S:g} s",
        episodes=2,
        proxied=True,
    ) as fault:
        for node in rig.cluster.nodes:
            node.proxy.cut()
        time.sleep(CUT_OFF_S)  # the fault itself
        assert fault.gateways[-1].report()["mode"] == "degraded"
        for node in rig.cluster.nodes:
            node.proxy.heal()


def gateway_with_half_open_connections(rig: Rig) -> None:
    with rig.fault(f"gateway: {HALF_OPEN} half-open connections", most_s=HARMLESS_S) as fault:
        flooded = fault.gateways[0]

        def accepted() -> bool:
            # On a slow machine, the first ones may already have been closed by their timeout.
            closed = flooded.metric("stoplog_http_connections_closed_total")
            return flooded.metric("stoplog_http_connections") + closed > HALF_OPEN

        with half_open(("127.0.0.1", flooded.port), HALF_OPEN):
            eventually("the connections are accepted", accepted, on_failure=rig.system.logs)
            rig.await_answers(fault)
    assert not fault.load.lost


def gateway_with_long_lists(rig: Rig) -> None:
    with rig.fault(f"gateway: lists of {len(LIST):,} checks", most_s=HARMLESS_S) as fault:
        for gateway in fault.gateways:
            fault.send_list(gateway, LIST)
    assert not fault.load.lost
