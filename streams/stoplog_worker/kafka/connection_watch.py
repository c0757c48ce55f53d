"""Log why Kafka cannot be used while a worker runs: refused credentials, an expired certificate and the like.

Both Kafka clients of a worker try again by themselves, and their log lines name no setting and no remedy.
"""

from __future__ import annotations

import logging
import threading
from time import sleep
from typing import Final

from confluent_kafka import KafkaException

from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.log_throttle import LogThrottle
from stoplog.topics import CHECKS

_log = logging.getLogger("stoplog.worker")

_INTERVAL_S: Final = 5.0
"""Seconds between two requests while Kafka answers."""

_RETRY_S: Final = 1.0
"""Seconds between two requests while it does not."""

_TIMEOUT_S: Final = 2.0
"""Seconds to wait for an answer."""

_FAILURES: Final = 2
"""Requests that fail in a row before the log states it: a broker that restarts is no problem of settings."""

_SAME_TEXT_S: Final = 600.0
"""Seconds between two log lines with the same cause."""


class ConnectionWatch(threading.Thread):
    """Asks Kafka for metadata at regular intervals until the process ends.

    Args:
        connection: How to reach Kafka.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        super().__init__(name="connection-watch", daemon=True)
        self._connection = connection
        self._throttle = LogThrottle(_SAME_TEXT_S)
        self._failures = 0

    def run(self) -> None:
        """Ask, and log why there is no answer."""
        admin: clients.ExplainingAdmin | None = None
        while True:
            sleep(_RETRY_S if self._failures else _INTERVAL_S)
            try:
                if admin is None:
                    admin = clients.silent_admin(self._connection)
                admin.list_topics(CHECKS, _TIMEOUT_S)
            except KafkaException as exc:
                assert admin is not None  # its request has failed
                self._failed(admin.explain(exc.args[0]))
            except Unavailable as exc:  # no token for OAUTHBEARER
                self._failed(str(exc))
            else:
                self._failures = 0

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures >= _FAILURES and (suppressed := self._throttle.admit(why)) is not None:
            _log.warning("Kafka at %s cannot be used: %s%s", self._connection.bootstrap, why, suppressed)
