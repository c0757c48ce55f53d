"""Clocks that are an hour off. Decisions use only the clock of the partition leader."""

from __future__ import annotations

import time

from tests.support.faults.cluster import Node, shifted
from tests.support.faults.rig import HARMLESS_S, Rig, logged_at
from tests.support.system import Process, eventually

HOUR_S = 3_600


def is_off(process: Process) -> bool:
    """Return whether the wall clock of *process* is more than half an hour off."""
    return abs(logged_at(process.lines("INFO")[-1]) - time.time()) > HOUR_S / 2


def gateway_clock_ahead(rig: Rig) -> None:
    with rig.fault("clock: a gateway an hour ahead", clocks_s=[HOUR_S, 0], most_s=HARMLESS_S) as fault:
        assert is_off(fault.gateways[0])
        assert not is_off(fault.gateways[1])
        rig.await_answers(fault)


def worker_clock_ahead_then_behind(rig: Rig) -> None:
    worker = rig.system.workers[0]
    for name, offset_s in (("ahead", HOUR_S + 60), ("behind", -HOUR_S)):
        worker = rig.restart_with_partitions(worker, env=shifted(offset_s))
        with rig.fault(f"clock: a worker an hour {name}") as fault:
            assert is_off(worker)
            assert rig.owned_by(fault.gateways[0], worker)
            rig.await_answers(fault)
    rig.restart(worker)


def leads_by_election(rig: Rig, node: Node) -> bool:
    """Elect the preferred leaders; return whether *node* leads. Its restart may end an earlier election."""
    rig.cluster.elect_preferred()
    return rig.cluster.leader_of(0) is node


def leader_clock_ahead_then_right(rig: Rig) -> None:
    rig.cluster.elect_preferred()
    node = rig.cluster.leader_of(0)
    for name, offset_s in (("an hour ahead", HOUR_S), ("right again", 0)):
        with rig.fault(
            f"clock: a partition leader restarted, {name}", episodes=4, most_s=40, jumps=True
        ) as fault:
            node.kill()
            node.ahead_s = offset_s
            node.start()
            rig.cluster.wait_in_sync()
            eventually("the node leads again", lambda: leads_by_election(rig, node))
            eventually(
                "the store answers all partitions",
                lambda: fault.load.healthy_for(1.0),
                on_failure=rig.system.logs,
            )

    jumps = [
        line
        for worker in rig.system.workers
        for line in worker.lines("WARNING", "the clock of its leader jumped")
    ]
    assert any("jumped ahead" in line for line in jumps)
    assert any("jumped back" in line for line in jumps)
