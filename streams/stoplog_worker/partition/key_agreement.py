"""Agree on the relay key: sign only with a key that every live worker has, of all lanes.

Each worker announces its relay keys in its heartbeats. A worker without a key could not verify what is signed
with it, and would refuse the update.
"""

from __future__ import annotations

import logging
from math import inf
from typing import Final

from msgspec import UNSET

from stoplog.log_throttle import LogThrottle
from stoplog.topics import NODES
from stoplog.wire.heartbeats import HEARTBEAT_S, Heartbeat
from stoplog_worker.algorithm.relay_keys import RelayKeys

_log = logging.getLogger("stoplog.relay")

EXPIRY_S: Final = 3 * HEARTBEAT_S
"""A worker without a heartbeat for this long counts as gone. No key is agreed on before this worker has
received its own heartbeats for this long: it could not know of the others."""

_SILENCE_S: Final = 2 * EXPIRY_S
"""Seconds that an update waits for this worker's own heartbeats until the log states it."""

_PAUSE_S: Final = 60.0
"""Seconds between two log lines about updates that wait."""


class KeyAgreement:
    """The relay keys of this worker, and those that the other live workers announced.

    Args:
        node_id: The id of this worker.
        keys: The relay keys of this worker.
    """

    def __init__(self, node_id: str, keys: RelayKeys) -> None:
        self.keys = keys
        self._node_id = node_id
        self._announced: dict[str, tuple[frozenset[str], float]] = {}
        """The announced keys of each other worker, and until when it counts as alive."""
        self._own_since = inf
        """Since when this worker receives its own heartbeats without a gap."""
        self._own_at = -inf
        self._silent_since: float | None = None
        """Since when an update waits for this worker's own heartbeats."""
        self._throttle = LogThrottle(_PAUSE_S)

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Record the keys of a worker of any lane, which arrived at *now*, monotonic seconds."""
        if heartbeat.role != "worker":
            return
        if heartbeat.id == self._node_id:
            if now >= self._own_at + EXPIRY_S:
                self._own_since = now
            self._own_at = now
            return
        if heartbeat.stopping:
            self._announced.pop(heartbeat.id, None)
            return
        if heartbeat.id not in self._announced:
            self._announced = self._alive(now)
        keys = heartbeat.relay_keys
        self._announced[heartbeat.id] = frozenset(() if keys is UNSET else keys), now + EXPIRY_S

    def _alive(self, now: float) -> dict[str, tuple[frozenset[str], float]]:
        return {node: entry for node, entry in self._announced.items() if entry[1] > now}

    def signing_key(self, now: float) -> str | None:
        """Return the id of this worker's first key that every live worker has; ``None`` if there is none."""
        own = self.keys.announced
        if not own:
            return None
        if now < self._own_since + EXPIRY_S or now >= self._own_at + EXPIRY_S:
            self._report_silence(now)
            return None
        self._silent_since = None
        alive = {node: keys for node, (keys, _) in self._alive(now).items()}
        for key_id, announced in own.items():
            if all(announced in keys for keys in alive.values()):
                return key_id
        without = sorted(node for node, keys in alive.items() if not keys.issuperset(own.values()))
        if (suppressed := self._throttle.admit()) is not None:
            _log.warning(
                "no relay key is known to all workers, so none is used: %s lack some of %s. Give all workers "
                "of all lanes the same STOPLOG_RELAY_KEYS%s",
                ", ".join(without),
                ", ".join(own),
                suppressed,
            )
        return None

    def _report_silence(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > _SILENCE_S and (suppressed := self._throttle.admit()) is not None:
            _log.warning(
                "changes of limits wait for a relay key, because this worker has not received its own "
                "heartbeats from %s for %.0f s: check that it may write to and read that topic%s",
                NODES,
                now - self._silent_since,
                suppressed,
            )
