"""Kafka's own tools add a partition to ``checks``. Clients stay where they are."""

from __future__ import annotations

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from tests.support.faults.rig import HARMLESS_S, Rig
from tests.support.system import eventually


def checks_gets_another_partition(rig: Rig) -> None:
    """Add a partition, which stays for all later faults, and restart a worker.

    A check that went to the new partition would be missing in the oracle's log.
    """
    with rig.fault("topics: checks gets another partition", most_s=HARMLESS_S) as fault:
        report = (
            f"checks has {rig.cluster.add_partition()}: partitions above {rig.partitions - 1} are not used"
        )
        eventually(
            "the gateways report it",
            lambda: all(gateway.lines("WARNING", report) for gateway in fault.gateways),
            on_failure=rig.system.logs,
        )
        rig.await_answers(fault)
        worker = rig.most_loaded(fault.gateways[0])
        assert worker.stop() == 0
        with rig.joining(worker):
            worker.start()
        rig.await_takeover(fault)
        assert worker.lines("WARNING", report)
    count = PartitionCountReader(KafkaConnection(rig.cluster.bootstrap)).read()
    assert count is not None
    assert count.partitions == rig.partitions
