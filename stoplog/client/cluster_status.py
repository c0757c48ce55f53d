"""Who is there, and how the store is: from beats, and from the broker's metadata.

A node is there if its last beat *arrived* less than 10 s ago by this gateway's own monotonic clock. For
beats that were in the topic before this gateway came, arrival says nothing; there the broker's stamps
are compared with each other, with the last record's. That one, not the highest: after a change of leader
the stamps may go on from an earlier time. Nodes that ended before such a change are then shown for 10 s
too long at most, and where the stamps leap ahead the others are missed until they next beat.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from stoplog.client.transport.broker_monitor import BrokerView
from stoplog.wire.heartbeats import PartitionState, StampedHeartbeat

LATE_S: Final = 5.0
"""Seconds without a beat after which a node is pointed out: two are missing."""

GONE_S: Final = 10.0
"""Seconds without a beat after which a node is gone."""

RUNNING: Final = "running"
"""The state in which a worker judges a partition."""

STANDBY: Final = "standby"
"""The state in which a worker only keeps a copy; any other: it is about to judge."""

CONNECTING: Final = "connecting"
UNREACHABLE: Final = "unreachable"
TOPICS_WRONG: Final = "topics_wrong"
NO_WORKER: Final = "no_worker"
RECOVERING: Final = "recovering"
UNDER_REPLICATED: Final = "under_replicated"
OK: Final = "ok"

STATES: Final = (CONNECTING, UNREACHABLE, TOPICS_WRONG, NO_WORKER, RECOVERING, UNDER_REPLICATED, OK)
"""Of the store; the worst that holds is shown."""


class Node(msgspec.Struct, frozen=True):
    """A worker or gateway that was heard of in the last 10 s.

    ``age_ms``: when last, by our own clock. ``lane``: of a worker, ``a`` the default one.
    """

    id: str
    role: str
    version: str
    host: str
    age_ms: int
    partitions: dict[int, PartitionState]
    lane: str = ""


class Status(msgspec.Struct, frozen=True):
    """How this gateway, with all its processes, and its store are.

    Attributes:
        mode: ``normal`` or ``degraded`` (some partition's checks are let through without an answer).
        since_ms: Since when, ms since the Unix epoch by this gateway's clock.
        why: What made it degraded; ``None`` when normal.
        degraded_partitions: Partitions let through at once.
        let_through: Checks let through since this degraded mode began; 0 when normal.
        uncounted: Checks of those that could not be published; 0 when normal.
        store: One of :data:`STATES`.
        store_why: What is the matter with the store and what to do; ``None`` when ok.
        partitions: Partitions of ``checks``.
        nodes: Workers and gateways, by role, lane and id.
        processes: Gateways that share this port and run (``STOPLOG_PROCESSES``); all above is of all of them.
        degraded_processes: Those of them that are degraded.
    """

    mode: str
    since_ms: int
    why: str | None
    degraded_partitions: list[int]
    let_through: int
    uncounted: int
    store: str
    store_why: str | None
    partitions: int
    nodes: list[Node]
    processes: int = 1
    degraded_processes: int = 0


class Readiness(msgspec.Struct, frozen=True):
    """Whether checks of one partition at least are answered from the store; ``reason`` says why not."""

    ready: bool
    reason: str | None = None


class Nodes:
    """The nodes heard of."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[StampedHeartbeat, float]] = {}
        self._last_ms = 0

    def heard(self, beats: list[StampedHeartbeat], now: float) -> None:
        """Take note of *beats*, in the topic's order, at *now* (seconds, monotonic)."""
        for beat in beats:
            self._last_ms = beat.at_ms
            if beat.heartbeat.stopping:
                self._last.pop(beat.heartbeat.id, None)
            else:
                self._last[beat.heartbeat.id] = (beat, now)

    def alive(self, now: float) -> list[Node]:
        """Who is there at *now*, by role, lane and id; the others are forgotten."""
        oldest_ms = self._last_ms - GONE_S * 1000
        self._last = {
            id_: (beat, arrived)
            for id_, (beat, arrived) in self._last.items()
            if now - arrived < GONE_S and beat.at_ms > oldest_ms
        }
        nodes = [
            Node(n.id, n.role, n.version, n.host, int((now - arrived) * 1000), n.partitions, n.lane)
            for n, arrived in ((beat.heartbeat, arrived) for beat, arrived in self._last.values())
        ]
        return sorted(nodes, key=lambda node: (node.role, node.lane, node.id))


def by_role(nodes: list[Node]) -> dict[str, int]:
    """How many of each role."""
    return dict(Counter(node.role for node in nodes))


def store_state(view: BrokerView | None, partitions: int, nodes: list[Node]) -> tuple[str, str | None]:
    """The worst that is known of the store, and for the operator what it is and what to do.

    Args:
        view: What the broker last said; ``None``: nothing yet.
        partitions: What topics.yaml says.
        nodes: Who is there.
    """
    if view is None:
        return CONNECTING, "the broker has not been heard of yet"
    if view.error is not None:
        return UNREACHABLE, view.error
    if not view.partitions:
        return TOPICS_WRONG, "topic checks is not there: run `stoplog topics create`"
    if view.partitions != partitions:
        return TOPICS_WRONG, (
            f"topic checks has {view.partitions} partitions and topics.yaml says {partitions}: use the "
            f"topics.yaml that the topics were made with"
        )
    states: dict[int, set[str]] = {partition: set() for partition in range(partitions)}
    for node in nodes:
        for partition, beat in node.partitions.items():
            if beat.state != STANDBY:
                states.setdefault(partition, set()).add(beat.state)
    if missing := [p for p, there in states.items() if not there]:
        return NO_WORKER, f"no worker has partition {_list(missing)}: start one with `stoplog worker`"
    if waiting := [p for p, there in states.items() if RUNNING not in there]:
        return RECOVERING, f"partition {_list(waiting)} is being recovered by its worker"
    if view.under_replicated:
        lacking = _list(list(view.under_replicated))
        return UNDER_REPLICATED, f"partition {lacking} of checks lacks in-sync replicas: look at the brokers"
    return OK, None


def _list(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions))
