from __future__ import annotations

from stoplog.client.cluster_status import count_by_role
from stoplog.client.node_registry import EXPIRY_S, NodeRegistry
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat


def beat(
    id_: str, at_ms: int, role: str = "worker", *, stopping: bool = False, clock: int = 0
) -> StampedHeartbeat:
    return StampedHeartbeat(Heartbeat(id_, role, "1", "host", clock, stopping=stopping), at_ms)


def names(nodes: NodeRegistry, now: float) -> list[str]:
    return [node.id for node in nodes.alive(now)]


def test_alive_lists_a_node_until_its_heartbeat_expires() -> None:
    nodes = NodeRegistry()
    nodes.record([beat("w", 1_000), beat("g", 1_000, "gateway")], 50.0)
    nodes.record([beat("w", 7_000)], 56.0)
    assert names(nodes, 59.0) == ["g", "w"]
    assert nodes.alive(59.0)[1].age_ms == 3_000
    assert names(nodes, 61.0) == ["w"]
    assert names(nodes, 56.0 + EXPIRY_S) == []


def test_alive_shows_each_workers_lane() -> None:
    nodes = NodeRegistry()
    beats = [Heartbeat(f"w{lane}", "worker", "1", "host", 0, lane=lane) for lane in "ba"]
    nodes.record([StampedHeartbeat(node, 1_000) for node in beats], 50.0)
    assert [(node.id, node.lane) for node in nodes.alive(50.0)] == [("wa", "a"), ("wb", "b")]


def test_lanes_counts_those_with_a_worker_that_is_alive() -> None:
    nodes = NodeRegistry()
    assert nodes.lanes(50.0) == 0
    beats = [Heartbeat(f"w{n}", "worker", "1", "host", 0, lane=lane) for n, lane in enumerate("aab")]
    gateway = Heartbeat("g", "gateway", "1", "host", 0)
    nodes.record([StampedHeartbeat(node, 1_000) for node in (*beats, gateway)], 50.0)
    assert nodes.lanes(50.0) == 2
    nodes.record([StampedHeartbeat(beats[0], 11_000)], 60.5)
    assert nodes.lanes(60.5) == 1


def test_stopping_node_is_gone_at_once() -> None:
    nodes = NodeRegistry()
    nodes.record([beat("w", 1_000), beat("w", 1_500, stopping=True)], 50.0)
    assert names(nodes, 50.0) == []


def test_heartbeats_found_in_the_topic_expire_by_the_brokers_clock() -> None:
    nodes = NodeRegistry()
    nodes.record([beat("died", 1_000), beat("lives", 70_000)], 5.0)
    assert names(nodes, 5.0) == ["lives"]


def test_timestamps_that_go_back_after_a_change_of_leader_drop_no_node() -> None:
    # The new leader's clock is that of another machine.
    nodes = NodeRegistry()
    nodes.record([beat("a", 100_000), beat("b", 100_000)], 5.0)
    nodes.record([beat("a", 42_000)], 7.0)
    assert names(nodes, 7.0) == ["a", "b"]
    nodes.record([beat("b", 42_500)], 7.5)
    assert names(nodes, 16.0) == ["a", "b"]


def test_nodes_own_clocks_are_ignored() -> None:
    nodes = NodeRegistry()
    nodes.record([beat("past", 1_000, clock=-(10**12)), beat("future", 1_000, clock=10**15)], 5.0)
    assert names(nodes, 5.0) == ["future", "past"]


def test_count_by_role_counts_the_nodes_of_each_role() -> None:
    nodes = NodeRegistry()
    nodes.record([beat("a", 1), beat("b", 1), beat("g", 1, "gateway")], 0.0)
    assert count_by_role(nodes.alive(0.0)) == {"worker": 2, "gateway": 1}


def test_partitions_grant_holds_if_any_live_worker_says_so() -> None:
    nodes = NodeRegistry()
    beats = [
        Heartbeat("w1", "worker", "1", "host", 0, holds=[0, 2]),
        Heartbeat("w2", "worker", "1", "host", 0, lane="b", holds=[2, 3]),
        Heartbeat("old", "worker", "0.2.0", "host", 0),
    ]
    nodes.record([StampedHeartbeat(node, 1_000) for node in beats], 50.0)
    assert nodes.partitions_with_holds(50.0) == {0, 2, 3}
    nodes.record([StampedHeartbeat(Heartbeat("w1", "worker", "1", "host", 0, holds=[0]), 9_000)], 58.0)
    assert nodes.partitions_with_holds(61.0) == {0}


def test_live_workers_of_an_older_release_are_named_and_gateways_are_not() -> None:
    nodes = NodeRegistry()
    beats = [
        Heartbeat("w1", "worker", "1", "host", 0, holds=[]),
        Heartbeat("old", "worker", "0.2.0", "host", 0),
        Heartbeat("g", "gateway", "0.2.0", "host", 0),
    ]
    nodes.record([StampedHeartbeat(node, 1_000) for node in beats], 50.0)
    assert nodes.workers_without_holds(50.0) == ["old"]
    assert nodes.workers_without_holds(61.0) == []


def test_partition_has_unjudged_costs_if_any_live_worker_says_so() -> None:
    nodes = NodeRegistry()
    beats = [
        Heartbeat("w1", "worker", "1", "host", 0, holds=[0, 2], unjudged=[2]),
        Heartbeat("w2", "worker", "1", "host", 0, lane="b", holds=[0, 2]),
    ]
    nodes.record([StampedHeartbeat(node, 1_000) for node in beats], 50.0)
    assert nodes.unjudged_partitions(50.0) == {2}
    nodes.record([StampedHeartbeat(Heartbeat("w1", "worker", "1", "host", 0), 3_000)], 52.0)
    assert nodes.unjudged_partitions(52.0) == set()
