from __future__ import annotations

import pytest

from stoplog.client.cluster_status import NO_WORKER, OK, Node, Status, merge_status, store_state
from stoplog.client.transport.broker_view import BrokerView
from stoplog.wire.heartbeats import PartitionState
from stoplog.wire.partition_count import PartitionCount

NORMAL = Status("normal", 5_000, None, [], 0, 0, OK, None, 4, [])
EARLY = Status("degraded", 7_000, "early", [0, 2], 10, 1, OK, None, 4, [], 1, 1)
LATE = Status("degraded", 9_000, "late", [1, 2], 20, 2, NO_WORKER, "no worker", 4, [], 1, 1)


def worker(**states: str) -> Node:
    partitions = {int(p[1:]): PartitionState(state) for p, state in states.items()}
    return Node("w", "worker", "1", "host", 0, partitions)


@pytest.mark.parametrize(
    ("view", "nodes", "state", "text"),
    [
        (None, [], "connecting", "not answered"),
        (BrokerView(error="k:1 is silent"), [worker(p0="running", p1="running")], "unreachable", "k:1"),
        (BrokerView(0), [], "topics_wrong", "stoplog topics create"),
        (BrokerView(3), [], "topics_wrong", "no worker has recorded"),
        (BrokerView(1, PartitionCount(2)), [], "topics_wrong", "deleted and created again"),
        (BrokerView(4, PartitionCount(4)), [], "topics_wrong", "changing over"),
        (BrokerView(4, PartitionCount(2)), [worker(p0="running")], "no_worker", "partition 1"),
        (BrokerView(2), [worker(p0="running")], "no_worker", "partition 1"),
        (BrokerView(2), [worker(p0="running", p1="standby")], "no_worker", "partition 1"),
        (BrokerView(2), [worker(p0="running", p1="restoring")], "recovering", "partition 1"),
        (
            BrokerView(2, PartitionCount(2), (1,)),
            [worker(p0="running", p1="running")],
            "under_replicated",
            "partition 1",
        ),
    ],
)
def test_store_state_is_the_worst_that_holds_with_its_cause(
    view: BrokerView | None, nodes: list[Node], state: str, text: str
) -> None:
    found, why = store_state(view, PartitionCount(2), nodes)
    assert found == state
    assert text in (why or "")


def test_store_state_with_one_lane_running_is_ok() -> None:
    lanes = [worker(p0="running", p1="running"), worker(p0="restoring", p1="running"), worker(p1="restoring")]
    assert store_state(BrokerView(2), PartitionCount(2), lanes) == ("ok", None)


def test_store_state_with_partitions_added_to_the_topic_is_ok() -> None:
    assert store_state(
        BrokerView(4, PartitionCount(2)), PartitionCount(2), [worker(p0="running", p1="running")]
    ) == ("ok", None)


def test_store_state_with_a_partition_moved_to_its_standby_is_ok() -> None:
    moved = [worker(p0="running", p1="standby"), worker(p1="running")]
    assert store_state(BrokerView(2), PartitionCount(2), moved) == ("ok", None)


def test_merge_status_of_one_process_is_its_own() -> None:
    assert merge_status(NORMAL, []) == NORMAL
    assert merge_status(LATE, []) == LATE


def test_merge_status_with_degraded_processes_is_degraded_since_the_first() -> None:
    assert merge_status(NORMAL, [LATE, EARLY]) == Status(
        "degraded", 7_000, "early", [0, 1, 2], 30, 3, NO_WORKER, "no worker", 4, [], 3, 2
    )


def test_merge_status_of_normal_processes_is_normal_since_the_last() -> None:
    other = Status("normal", 6_000, None, [], 0, 0, OK, None, 4, [])
    assert merge_status(NORMAL, [other]) == Status("normal", 6_000, None, [], 0, 0, OK, None, 4, [], 2)
