"""What the workers that are alive can do, of all lanes, as their heartbeats announce it.

Some steps are allowed only once every worker can take part. A worker of an older release, or one with other
settings, would not understand their records.
"""

from __future__ import annotations

from math import inf
from typing import Final

from stoplog.wire.heartbeats import HEARTBEAT_S, Heartbeat

EXPIRY_S: Final = 3 * HEARTBEAT_S
"""A worker without a heartbeat for this long counts as gone. Nothing is agreed on before this worker has
received its own heartbeats for this long: it could not know of the others."""


class LiveWorkers:
    """The last heartbeats of the other workers.

    Args:
        node_id: The id of this worker.
    """

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._heard: dict[str, tuple[Heartbeat, float]] = {}
        """The last heartbeat of each other worker, and until when it counts as alive."""
        self._own_since = inf
        """Since when this worker receives its own heartbeats without a gap."""
        self._own_at = -inf

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Record the heartbeat of a node, which arrived at *now*, monotonic seconds."""
        if heartbeat.role != "worker":
            return
        if heartbeat.id == self._node_id:
            if now >= self._own_at + EXPIRY_S:
                self._own_since = now
            self._own_at = now
            return
        if heartbeat.stopping:
            self._heard.pop(heartbeat.id, None)
            return
        if heartbeat.id not in self._heard:
            self._heard = {node: entry for node, entry in self._heard.items() if entry[1] > now}
        self._heard[heartbeat.id] = heartbeat, now + EXPIRY_S

    def others(self, now: float) -> list[Heartbeat] | None:
        """Return the last heartbeats of all other live workers; ``None`` if some may not be known yet."""
        if now < self._own_since + EXPIRY_S or now >= self._own_at + EXPIRY_S:
            return None
        return [heartbeat for heartbeat, until in self._heard.values() if until > now]
