"""Other workers of this lane, by their beats: whether one is there, and what it judges."""

from __future__ import annotations

from typing import Final

from stoplog.wire.heartbeats import Heartbeat

BEAT_S: Final = 2.0
"""Between two beats of a worker; it also sends one when what it judges has changed."""

_GONE_S: Final = 3 * BEAT_S


class Peers:
    """Workers that were heard of lately.

    Args:
        node_id: This worker's own, whose beats come by as well.
        lane: This worker's.
    """

    def __init__(self, node_id: str, lane: str) -> None:
        self._node_id = node_id
        self._lane = lane
        self._until: dict[str, float] = {}

    def heard(self, beat: Heartbeat, now: float) -> set[int]:
        """Take a beat that came at *now*, monotonic seconds; returns the partitions that its sender judges.

        Those of this worker itself, of gateways and of other lanes say nothing here.
        """
        if beat.role != "worker" or beat.lane != self._lane or beat.id == self._node_id:
            return set()
        if beat.stopping:
            self._until.pop(beat.id, None)
            return set()
        self._until[beat.id] = now + _GONE_S
        return {partition for partition, its in beat.partitions.items() if its.state == "running"}

    def any(self, now: float) -> bool:
        """Whether there is another worker that could take over from this one."""
        return any(until > now for until in self._until.values())
