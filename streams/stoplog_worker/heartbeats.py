"""Send the heartbeats of a worker: what it processes, and that it is running."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
from confluent_kafka import KafkaException

from stoplog import __version__
from stoplog.kafka import clients as kafka
from stoplog.lanes import DEFAULT_LANE
from stoplog.topics import NODES
from stoplog.wire.heartbeats import (
    HEARTBEAT_S,
    RESTORING,
    RUNNING,
    STANDBY,
    GrowthState,
    Heartbeat,
    PartitionState,
    encode_heartbeat,
)
from stoplog_worker.metrics import Metrics
from stoplog_worker.settings import Settings

_LAST_S: Final = 1.0
"""Seconds to wait for the last heartbeat to be sent."""


class HeartbeatSender:
    """Sends a heartbeat every two seconds, and one whenever the worker's partitions have changed.

    Args:
        settings: The worker's settings.
        metrics: Receives the number of partitions by state.
        partition_states: Returns the partitions of this worker.
        partitions_with_holds: Returns those that grant holds.
        unjudged_partitions: Returns those in which costs were charged lately that no limit judged.
        growth: Returns what this worker does for the last step in which the number of partitions grew.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        partition_states: Callable[[], dict[int, PartitionState]],
        partitions_with_holds: Callable[[], list[int]],
        unjudged_partitions: Callable[[], list[int]],
        growth: Callable[[], GrowthState],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._partition_states = partition_states
        self._partitions_with_holds = partitions_with_holds
        self._unjudged_partitions = unjudged_partitions
        self._growth = growth
        self._relay_keys = list(settings.keys.announced.values())
        self._stopping = False
        self._producer = kafka.reply_producer(settings.connection, settings.send_timeout_ms)

    async def run(self) -> None:
        """Send heartbeats until canceled."""
        while True:
            self.send()
            await asyncio.sleep(HEARTBEAT_S)

    def send(self) -> None:
        """Send a heartbeat now."""
        growth = self._growth()
        partitions = {} if growth.paused else self._partition_states()
        heartbeat = Heartbeat(
            id=self._settings.node_id,
            role="worker",
            version=__version__,
            host=socket.gethostname(),
            at_ms=int(time.time() * 1_000),
            partitions={} if self._stopping else partitions,
            stopping=self._stopping,
            lane=self._settings.lane or DEFAULT_LANE,
            relay_keys=self._relay_keys or msgspec.UNSET,
            holds=self._partitions_with_holds(),
            unjudged=self._unjudged_partitions() or msgspec.UNSET,
            stated_plans=True,
            growth=growth,
        )
        for state in (RUNNING, RESTORING, STANDBY):
            count = sum(1 for partition in partitions.values() if partition.state == state)
            self._metrics.partitions.labels(state).set(count)
        # The broker has been away for long, or the topic is being created again. Another heartbeat follows.
        with suppress(BufferError, KafkaException):
            self._producer.produce(NODES, encode_heartbeat(heartbeat), self._settings.node_id.encode())
        self._producer.poll(0)

    def announce_stop(self) -> None:
        """Send a heartbeat with ``stopping`` set. All later ones have it as well."""
        self._stopping = True
        self.send()

    def close(self) -> None:
        """Wait for the last heartbeat, for a second at most."""
        self._producer.flush(_LAST_S)
