"""A worker that is cut off from all brokers, while worker and brokers keep running.

Proxies cut the network. Each broker has a second listener, advertised at a proxy's port, and the worker knows
only that port. This needs no root and no namespaces, and affects only the test's own connections.
"""

from __future__ import annotations

import time

from tests.support.faults.report import Targets
from tests.support.faults.rig import Rig


def worker_cut_off_from_brokers(rig: Rig) -> None:
    worker = rig.restart_with_partitions(rig.system.workers[-1], kafka=rig.cluster.over_proxies)
    with rig.fault(
        "network: a worker cut off from all brokers for 12 s",
        targets=Targets(kept_s=0.5),
        certain=True,
        episodes=2,
    ) as fault:
        fault.moved = rig.owned_by(fault.gateways[0], worker)
        assert fault.moved
        for node in rig.cluster.nodes:
            node.proxy.cut()
        time.sleep(12)  # the fault itself: twice the session timeout
        with rig.joining(worker):
            for node in rig.cluster.nodes:
                node.proxy.heal()
    assert worker.status is None
    assert worker.lines("WARNING", "the group lease ran out")
    rig.restart(worker)
