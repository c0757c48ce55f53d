"""The nodes that are alive while the number of partitions grows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from stoplog_worker.growth import members as module
from stoplog_worker.growth.members import Members, refuse_old

from stoplog.errors import TopicError
from stoplog.wire.heartbeats import GrowthState, Heartbeat, PartitionState, encode_heartbeat


class Nodes:
    """The topic ``nodes``."""

    def __init__(self) -> None:
        self.values = [b"no heartbeat"]

    def offset_range(self, *_: Any) -> tuple[int, int]:
        return 0, len(self.values)

    def read(self, _topic: str, _partition: int, start: int, end: int) -> list[Any]:
        return [
            SimpleNamespace(
                offset=lambda offset=offset: offset, value=lambda offset=offset: self.values[offset]
            )
            for offset in range(start, end)
        ]

    def add(self, id_: str, *, role: str = "gateway", **fields: Any) -> None:
        self.values.append(encode_heartbeat(Heartbeat(id_, role, "1.0", "host", 0, **fields)))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which pass with each poll."""
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds

    monkeypatch.setattr(module, "monotonic", lambda: passed[0])
    monkeypatch.setattr(module, "sleep", sleep)
    return passed


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def followed(nodes: Nodes) -> Members:
    return Members(nodes, lambda *_: None)  # type: ignore[arg-type]


def test_node_is_alive_until_it_stops_or_is_silent(now: list[float], nodes: Nodes) -> None:
    nodes.add("early")
    members = followed(nodes)
    for name in ("g1", "g2", "g3"):
        nodes.add(name)
    nodes.values.append(b"no heartbeat")
    nodes.add("g2", stopping=True)
    assert [one.heartbeat.id for one in members.poll()] == ["g1", "g3"]
    now[0] += 9.0
    nodes.add("g3")
    members.poll()
    now[0] += 1.0
    assert [one.heartbeat.id for one in members.poll()] == ["g3"]


def test_look_at_the_nodes_ends_once_each_that_has_not_stopped_has_sent_a_heartbeat(
    now: list[float], nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("g1", "g2", "w1"):
        nodes.add(name)
    nodes.add("g2", stopping=True)
    members = followed(nodes)

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if 1.0 <= now[0] < 1.0 + seconds:
            nodes.add("g1")
            nodes.add("w1", stopping=True)

    monkeypatch.setattr(module, "sleep", sleep)
    members.watch()
    assert 1.0 <= now[0] < 1.2
    assert [one.heartbeat.id for one in members.poll()] == ["g1"]
    nodes.add("g1", stopping=True)
    followed(nodes).watch()
    assert now[0] < 1.2, "all have stopped"
    nodes.add("killed")
    followed(nodes).watch()
    assert now[0] > 1.0 + module.WATCH_S


def test_node_of_a_release_that_cannot_pause_is_refused(now: list[float], nodes: Nodes) -> None:
    members = followed(nodes)
    nodes.add("new", growth=GrowthState())
    refuse_old(members.poll())
    nodes.add("old")
    with pytest.raises(TopicError, match=r"gateway old \(1.0\) run\(s\) a release that cannot pause"):
        refuse_old(members.poll())


def test_wait_that_ends_without_all_confirmations_names_the_others(now: list[float], nodes: Nodes) -> None:
    members = followed(nodes)
    nodes.add("g1", growth=GrowthState(3, paused=True))
    nodes.add("g2", growth=GrowthState(3))
    with pytest.raises(TopicError, match=r"pause: gateway g2 \(1.0\) did not confirm within 5 s"):
        members.wait("pause", lambda one: one.growth.paused, 5)
    nodes.add("g2", growth=GrowthState(3, paused=True))
    members.wait("pause", lambda one: one.growth.paused, 5)


def test_system_answers_once_all_lanes_run_all_partitions(now: list[float], nodes: Nodes) -> None:
    members = followed(nodes)

    def worker(lane: str, *running: int, epoch: int = 3) -> None:
        partitions = {number: PartitionState("running") for number in running}
        growth = GrowthState(epoch)
        nodes.add(f"w{lane}", role="worker", lane=lane, partitions=partitions, growth=growth)

    nodes.add("g1", growth=GrowthState(3, paused=True, checks=7))
    worker("a", 0, 1)
    worker("b", 0)
    assert not members.wait_for_answers(3, 2, {"a", "b"}, 1)
    worker("b", 0, 1)
    assert not members.wait_for_answers(3, 2, {"a", "b"}, 1), "the gateway still pauses"
    nodes.add("g1", growth=GrowthState(3, checks=8))
    assert members.wait_for_answers(3, 2, {"a", "b"}, 1)
    assert (members.checks(3), members.checks(2)) == (8, 0)
    worker("a", 0, 1, epoch=2)
    assert not members.wait_for_answers(3, 2, {"a", "b"}, 1)


def test_system_without_its_workers_does_not_answer(now: list[float], nodes: Nodes) -> None:
    members = followed(nodes)
    nodes.add("g1", growth=GrowthState(3))
    assert not members.wait_for_answers(3, 2, {""}, 1), "the worker has ended"
    began = now[0]
    assert not members.wait_for_answers(3, 2, set(), 1), "there was none"
    assert now[0] == began
    partitions = {0: PartitionState("running"), 1: PartitionState("running")}
    nodes.add("w", role="worker", partitions=partitions, growth=GrowthState(3))
    assert members.lanes() == {""}
    assert members.wait_for_answers(3, 2, {""}, 1)
    assert not members.wait_for_answers(3, 2, {"", "b"}, 1), "lane b has none any more"


def test_silence_while_the_broker_does_not_answer_is_not_that_of_the_nodes(
    now: list[float], nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = followed(nodes)
    nodes.add("g1")
    members.poll()
    now[0] += 6.0
    offset_range = nodes.offset_range

    def slow(*args: Any) -> tuple[int, int]:
        now[0] += 30.0
        return offset_range(*args)

    monkeypatch.setattr(nodes, "offset_range", slow)
    assert [one.heartbeat.id for one in members.poll()] == ["g1"]
    monkeypatch.setattr(nodes, "offset_range", offset_range)
    now[0] += 3.0
    assert [one.heartbeat.id for one in members.poll()] == ["g1"]
    now[0] += 1.0
    assert members.poll() == []
