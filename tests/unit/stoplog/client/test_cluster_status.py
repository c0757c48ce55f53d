from __future__ import annotations

import pytest

from stoplog.client.cluster_status import GONE_S, Node, Nodes, by_role, store_state
from stoplog.client.transport.broker_monitor import BrokerView
from stoplog.wire.heartbeats import Heartbeat, PartitionState, StampedHeartbeat


def beat(
    id_: str, at_ms: int, role: str = "worker", *, stopping: bool = False, clock: int = 0
) -> StampedHeartbeat:
    return StampedHeartbeat(Heartbeat(id_, role, "1", "host", clock, stopping=stopping), at_ms)


def names(nodes: Nodes, now: float) -> list[str]:
    return [node.id for node in nodes.alive(now)]


def test_a_node_is_there_while_it_beats() -> None:
    nodes = Nodes()
    nodes.heard([beat("w", 1_000), beat("g", 1_000, "gateway")], 50.0)
    nodes.heard([beat("w", 7_000)], 56.0)
    assert names(nodes, 59.0) == ["g", "w"]
    assert nodes.alive(59.0)[1].age_ms == 3_000
    assert names(nodes, 61.0) == ["w"]
    assert names(nodes, 56.0 + GONE_S) == []


def test_a_workers_lane_is_shown() -> None:
    nodes = Nodes()
    beats = [Heartbeat(f"w{lane}", "worker", "1", "host", 0, lane=lane) for lane in "ba"]
    nodes.heard([StampedHeartbeat(node, 1_000) for node in beats], 50.0)
    assert [(node.id, node.lane) for node in nodes.alive(50.0)] == [("wa", "a"), ("wb", "b")]


def test_one_that_stops_is_gone_at_once() -> None:
    nodes = Nodes()
    nodes.heard([beat("w", 1_000), beat("w", 1_500, stopping=True)], 50.0)
    assert names(nodes, 50.0) == []


def test_beats_found_in_the_topic_are_judged_by_the_brokers_clock() -> None:
    nodes = Nodes()
    nodes.heard([beat("died", 1_000), beat("lives", 70_000)], 5.0)
    assert names(nodes, 5.0) == ["lives"]


def test_nodes_are_seen_on_where_stamps_go_on_from_an_earlier_time() -> None:
    """After a change of leader the broker's clock is another machine's."""
    nodes = Nodes()
    nodes.heard([beat("a", 100_000), beat("b", 100_000)], 5.0)
    nodes.heard([beat("a", 42_000)], 7.0)
    assert names(nodes, 7.0) == ["a", "b"]
    nodes.heard([beat("b", 42_500)], 7.5)
    assert names(nodes, 16.0) == ["a", "b"]


def test_nodes_own_clocks_do_not_matter() -> None:
    nodes = Nodes()
    nodes.heard([beat("past", 1_000, clock=-(10**12)), beat("future", 1_000, clock=10**15)], 5.0)
    assert names(nodes, 5.0) == ["future", "past"]


def test_by_role() -> None:
    nodes = Nodes()
    nodes.heard([beat("a", 1), beat("b", 1), beat("g", 1, "gateway")], 0.0)
    assert by_role(nodes.alive(0.0)) == {"worker": 2, "gateway": 1}


def worker(**states: str) -> Node:
    partitions = {int(p[1:]): PartitionState(state) for p, state in states.items()}
    return Node("w", "worker", "1", "host", 0, partitions)


@pytest.mark.parametrize(
    ("view", "nodes", "state", "says"),
    [
        (None, [], "connecting", "not been heard"),
        (BrokerView(error="k:1 is silent"), [worker(p0="running", p1="running")], "unreachable", "k:1"),
        (BrokerView(0), [], "topics_wrong", "stoplog topics create"),
        (BrokerView(3), [], "topics_wrong", "3 partitions"),
        (BrokerView(2), [worker(p0="running")], "no_worker", "partition 1"),
        (BrokerView(2), [worker(p0="running", p1="standby")], "no_worker", "partition 1"),
        (BrokerView(2), [worker(p0="running", p1="restoring")], "recovering", "partition 1"),
        (BrokerView(2, (1,)), [worker(p0="running", p1="running")], "under_replicated", "partition 1"),
    ],
)
def test_the_worst_of_the_store_is_told(
    view: BrokerView | None, nodes: list[Node], state: str, says: str
) -> None:
    found, why = store_state(view, 2, nodes)
    assert found == state
    assert says in (why or "")


def test_a_store_is_well_while_one_lane_runs() -> None:
    lanes = [worker(p0="running", p1="running"), worker(p0="restoring", p1="running"), worker(p1="restoring")]
    assert store_state(BrokerView(2), 2, lanes) == ("ok", None)


def test_a_store_that_is_well() -> None:
    moved = [worker(p0="running", p1="standby"), worker(p1="running")]
    assert store_state(BrokerView(2), 2, moved) == ("ok", None)
