"""The nodes that are alive, by their heartbeats.

A node is alive if its last heartbeat *arrived* less than 10 s ago, by this process's monotonic clock.

Heartbeats that were in the topic before this process started arrive all at once. The broker's timestamps
distinguish them: each is compared with the timestamp of the last record. The last, not the highest, because
a new leader may stamp earlier times than the one before. Until 10 s after such a change, nodes that have
stopped may still be shown. If the stamps leap ahead instead, a node is missing until its next heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import UNSET

from stoplog.client.cluster_status import Node
from stoplog.identity.normalization import NONE
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat

EXPIRY_S: Final = 10.0
"""Seconds without a heartbeat after which a node is no longer alive."""


class NodeRegistry:
    """The last heartbeat of each node."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[StampedHeartbeat, float]] = {}
        self._last_ms = 0

    def record(self, heartbeats: list[StampedHeartbeat], now: float) -> None:
        """Record *heartbeats*, in the topic's order, which arrived at *now* (monotonic seconds)."""
        for stamped in heartbeats:
            self._last_ms = stamped.at_ms
            if stamped.heartbeat.stopping:
                self._last.pop(stamped.heartbeat.id, None)
            else:
                self._last[stamped.heartbeat.id] = (stamped, now)

    def alive(self, now: float) -> list[Node]:
        """Return the nodes alive at *now*, sorted by role, lane and id; forget all others."""
        oldest_ms = self._last_ms - EXPIRY_S * 1000
        self._last = {
            id_: (stamped, arrived)
            for id_, (stamped, arrived) in self._last.items()
            if now - arrived < EXPIRY_S and stamped.at_ms > oldest_ms
        }
        nodes = [
            Node(n.id, n.role, n.version, n.host, int((now - arrived) * 1000), n.partitions, n.lane)
            for n, arrived in ((stamped.heartbeat, arrived) for stamped, arrived in self._last.values())
        ]
        return sorted(nodes, key=lambda node: (node.role, node.lane, node.id))

    def partitions_with_holds(self, now: float) -> set[int]:
        """Return the partitions that grant holds, as the workers alive at *now* announce."""
        return _union(heartbeat.holds for heartbeat in self._heartbeats(now))

    def workers_without_holds(self, now: float) -> list[str]:
        """Return the ids of the workers alive at *now* that are of a release that cannot read holds."""
        return [one.id for one in self._heartbeats(now) if one.role == "worker" and one.holds is UNSET]

    def unjudged_partitions(self, now: float) -> set[int]:
        """Return the partitions with costs that no limit judged, as the workers alive at *now* announce."""
        return _union(heartbeat.unjudged for heartbeat in self._heartbeats(now))

    def other_id_forms(self, form: str, node_id: str, now: float) -> dict[str, str]:
        """Return gateways and programs alive at *now* whose ids have another normal form, and that form.

        Args:
            form: The normal form that they should have.
            node_id: The node that is left out, because it may be an earlier run of the caller.
            now: Monotonic seconds.
        """
        forms = {
            heartbeat.id: NONE if heartbeat.id_form is msgspec.UNSET else heartbeat.id_form
            for heartbeat in self._heartbeats(now)
            if heartbeat.role == "gateway" and heartbeat.id != node_id
        }
        return {id_: other for id_, other in forms.items() if other != form}

    def _heartbeats(self, now: float) -> list[Heartbeat]:
        return [self._last[node.id][0].heartbeat for node in self.alive(now)]

    def workers_without_stated_plans(self, now: float) -> list[str]:
        """Return the workers alive at *now* that do not read limits in the name of a plan."""
        old = {
            id_
            for id_, (stamped, _) in self._last.items()
            if stamped.heartbeat.role == "worker" and stamped.heartbeat.stated_plans is not True
        }
        # Each check with such a plan calls this, and usually there is none.
        return [node.id for node in self.alive(now) if node.id in old] if old else []

    def lanes(self, now: float) -> int:
        """Return how many lanes have a worker that is alive at *now*."""
        return len({node.lane for node in self.alive(now) if node.role == "worker"})


def _union(announced: Iterable[list[int] | msgspec.UnsetType]) -> set[int]:
    return {partition for one in announced if one is not msgspec.UNSET for partition in one}
