"""Agree on the relay key: sign only with a key that every live worker has, of all lanes.

Each worker announces its relay keys in its heartbeats. A worker without a key could not verify what is signed
with it, and would refuse the update.
"""

from __future__ import annotations

import logging
from typing import Final

from msgspec import UNSET

from stoplog.log_throttle import LogThrottle
from stoplog.topics import NODES
from stoplog_worker.algorithm.relay_keys import RelayKeys
from stoplog_worker.partition.live_workers import EXPIRY_S, LiveWorkers

_log = logging.getLogger("stoplog.relay")

_SILENCE_S: Final = 2 * EXPIRY_S
"""Seconds that an update waits for this worker's own heartbeats until the log states it."""

_PAUSE_S: Final = 60.0
"""Seconds between two log lines about updates that wait."""


class KeyAgreement:
    """The relay keys of this worker, and those that the other live workers announced.

    Args:
        keys: The relay keys of this worker.
        workers: The other workers.
    """

    def __init__(self, keys: RelayKeys, workers: LiveWorkers) -> None:
        self.keys = keys
        self._workers = workers
        self._silent_since: float | None = None
        """Since when an update waits for this worker's own heartbeats."""
        self._throttle = LogThrottle(_PAUSE_S)

    def signing_key(self, now: float) -> str | None:
        """Return the id of this worker's first key that every live worker has; ``None`` if there is none."""
        own = self.keys.announced
        if not own:
            return None
        others = self._workers.others(now)
        if others is None:
            self._report_silence(now)
            return None
        self._silent_since = None
        announced = {one.id: frozenset(() if one.relay_keys is UNSET else one.relay_keys) for one in others}
        for key_id, key in own.items():
            if all(key in keys for keys in announced.values()):
                return key_id
        without = sorted(node for node, keys in announced.items() if not keys.issuperset(own.values()))
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
