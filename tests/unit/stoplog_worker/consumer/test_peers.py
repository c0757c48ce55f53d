"""Other workers are known by their heartbeats."""

from __future__ import annotations

from typing import Any

from stoplog_worker.consumer.peers import Peers

from stoplog.wire.heartbeats import HEARTBEAT_S, Heartbeat, PartitionState

FIELDS: dict[str, Any] = {"role": "worker", "version": "0", "host": "here", "at_ms": 0, "lane": "a"}


def heartbeat(id_: str = "other", **fields: Any) -> Heartbeat:
    partitions = {1: PartitionState("running"), 2: PartitionState("restoring"), 3: PartitionState("standby")}
    return Heartbeat(**{**FIELDS, "id": id_, "partitions": partitions, **fields})


def test_heartbeat_of_a_peer_returns_only_its_running_partitions() -> None:
    assert Peers("me", "a").on_heartbeat(heartbeat(), 0.0) == {1}


def test_peer_silent_for_three_heartbeats_counts_as_gone() -> None:
    peers = Peers("me", "a")
    assert not peers.any_alive(0.0)
    peers.on_heartbeat(heartbeat(), 0.0)
    assert peers.any_alive(3 * HEARTBEAT_S - 0.1)
    assert not peers.any_alive(3 * HEARTBEAT_S)


def test_stopping_peer_cannot_take_over() -> None:
    peers = Peers("me", "a")
    peers.on_heartbeat(heartbeat(), 0.0)
    peers.on_heartbeat(heartbeat("third"), 0.0)
    assert peers.on_heartbeat(heartbeat(stopping=True), 0.1) == set()
    assert peers.any_alive(0.1)
    peers.on_heartbeat(heartbeat("third", stopping=True), 0.2)
    assert not peers.any_alive(0.2)


def test_heartbeats_of_itself_gateways_and_other_lanes_are_ignored() -> None:
    peers = Peers("me", "a")
    for one in (heartbeat("me"), heartbeat(role="gateway"), heartbeat(lane="b")):
        assert peers.on_heartbeat(one, 0.0) == set()
    assert not peers.any_alive(0.0)
