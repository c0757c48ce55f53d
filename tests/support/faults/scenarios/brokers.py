"""Brokers killed and stopped."""

from __future__ import annotations

import time

from tests.support.faults.rig import Rig
from tests.support.system import eventually


def broker_killed_and_restarted(rig: Rig) -> None:
    with rig.fault("broker: kill -9 one of three, started again after 5 s", episodes=2, most_s=40) as fault:
        node = rig.cluster.leader_of(0)
        node.kill()
        eventually("the other brokers lead", lambda: fault.load.healthy_for(1.0), on_failure=rig.system.logs)
        node.start()
        rig.cluster.wait_in_sync()


def two_brokers_stopped(rig: Rig) -> None:
    with rig.fault("brokers: two of three stopped for 8 s", episodes=2, certain=True, most_s=70) as fault:
        stopped = rig.cluster.nodes[1:]
        for node in stopped:
            node.kill()
        time.sleep(8)  # the fault itself: an outage of that length
        assert not fault.load.healthy_for(1.0)
        for node in stopped:
            node.launch()
        for node in stopped:
            node.wait_ready()
        rig.cluster.wait_in_sync()
