"""Who else is there, and what they judge."""

from __future__ import annotations

from typing import Any

from stoplog_worker.consumer.peers import BEAT_S, Peers

from stoplog.wire.heartbeats import Heartbeat, PartitionState


def beat(id_: str = "other", **given: Any) -> Heartbeat:
    partitions = {1: PartitionState("running"), 2: PartitionState("restoring"), 3: PartitionState("standby")}
    return Heartbeat(**{**BEAT, "id": id_, "partitions": partitions, **given})


BEAT: dict[str, Any] = {"role": "worker", "version": "0", "host": "here", "at_ms": 0, "lane": "a"}


def test_only_what_runs_is_judged() -> None:
    assert Peers("me", "a").heard(beat(), 0.0) == {1}


def test_a_peer_is_there_until_it_has_been_silent_for_three_beats() -> None:
    peers = Peers("me", "a")
    assert not peers.any(0.0)
    peers.heard(beat(), 0.0)
    assert peers.any(3 * BEAT_S - 0.1)
    assert not peers.any(3 * BEAT_S)


def test_a_peer_that_stops_can_take_nothing_over() -> None:
    peers = Peers("me", "a")
    peers.heard(beat(), 0.0)
    peers.heard(beat("third"), 0.0)
    assert peers.heard(beat(stopping=True), 0.1) == set()
    assert peers.any(0.1)
    peers.heard(beat("third", stopping=True), 0.2)
    assert not peers.any(0.2)


def test_itself_gateways_and_other_lanes_are_no_peers() -> None:
    peers = Peers("me", "a")
    for one in (beat("me"), beat(role="gateway"), beat(lane="b")):
        assert peers.heard(one, 0.0) == set()
    assert not peers.any(0.0)
