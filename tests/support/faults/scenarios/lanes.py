"""A second lane: the death of a worker costs nothing, because another one answers the same checks."""

from __future__ import annotations

from typing import Final

from tests.support.faults.rig import Rig

DEADLINE_MS: Final = 4_000
"""Less than a single lane needs, whose session timeout alone is 6 s, and more than a busy machine needs. With
the usual 250 ms, a check may fail open because no core is free. The report shows the latency (p99)."""


def worker_killed_beside_second_lane(rig: Rig) -> None:
    with rig.second_lane():
        with rig.fault("two lanes: kill -9 of a worker", deadline_ms=DEADLINE_MS, most_s=0.0) as fault:
            victim = rig.most_loaded(fault.gateways[0])
            victim.kill()
            rig.await_takeover(fault)
            for gateway in fault.gateways:
                assert gateway.metric("stoplog_lane_divergence_total") == 0
        with rig.joining(victim):
            victim.start()
