"""The other workers of this lane, as known from their heartbeats."""

from __future__ import annotations

from typing import Final

from stoplog.wire.heartbeats import HEARTBEAT_S, RUNNING, Heartbeat

_EXPIRY_S: Final = 3 * HEARTBEAT_S
"""A worker without a heartbeat for this long counts as gone."""


class Peers:
    """Workers of this lane that sent a heartbeat recently.

    Args:
        node_id: The id of this worker, whose own heartbeats are ignored.
        lane: The lane of this worker.
    """

    def __init__(self, node_id: str, lane: str) -> None:
        self._node_id = node_id
        self._lane = lane
        self._alive_until: dict[str, float] = {}

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> set[int]:
        """Record a heartbeat and return the partitions that its sender processes.

        Heartbeats of this worker, of gateways and of other lanes are ignored.

        Args:
            heartbeat: A record of ``nodes``.
            now: When it arrived, monotonic seconds.
        """
        if heartbeat.role != "worker" or heartbeat.lane != self._lane or heartbeat.id == self._node_id:
            return set()
        if heartbeat.stopping:
            self._alive_until.pop(heartbeat.id, None)
            return set()
        self._alive_until[heartbeat.id] = now + _EXPIRY_S
        return {number for number, partition in heartbeat.partitions.items() if partition.state == RUNNING}

    def any_alive(self, now: float) -> bool:
        """Return whether another worker could take over partitions from this one."""
        return any(until > now for until in self._alive_until.values())
