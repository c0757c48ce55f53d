"""The Faust app: the group, its assignments and tables. No record passes through Faust's streams.

Faust subscribes to ``limit-updates``, so that the group has partitions to assign. The owner of a partition of
it owns the same partition of ``checks`` and of both tables. Nothing is fetched through Faust: see
docs/design/rebalancing.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import faust
from faust.app.base import BootStrategy
from faust.assignor import PartitionAssignor
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as AIOKafkaConsumer

from stoplog.topics import UPDATES
from stoplog_worker.assignment.coordination import Coordination
from stoplog_worker.assignment.faust_credentials import faust_credentials
from stoplog_worker.assignment.faust_tables import OnAssigned, UnmanagedTable, UnmanagedTableManager
from stoplog_worker.assignment.reconnect_backoff import ReconnectBackoff
from stoplog_worker.assignment.static_membership import StaticMembership
from stoplog_worker.lease import Lease
from stoplog_worker.settings import Settings

_UNPOLLED_S: Final = 10 * 365 * 86_400.0
"""aiokafka leaves the group if nothing is fetched for this long. Stoplog never fetches through it."""


class _ConsumerThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, with three extensions of aiokafka."""

    async def on_start(self) -> None:
        await super().on_start()
        client, coordinator = self._consumer._client, self._consumer._coordinator
        ReconnectBackoff(client)
        StaticMembership(coordinator, self.app.lease, self.app.fenced)
        Coordination(coordinator, client, self.app.coordination_failed)


class _Consumer(AIOKafkaConsumer):
    """Faust's consumer. Nothing is read through it, so its position stays where it is."""

    async def verify_all_partitions_active(self) -> None:
        """Compare no positions with the ends of the partitions: Faust would report every stream as stuck."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Boot(BootStrategy):
    """Start no web server (Faust's would publish the tables) and no producer."""

    enable_web = False
    enable_kafka_producer = False


class _FirstPartitions:
    """The metadata of a cluster whose topics have no more partitions than clients are hashed over."""

    def __init__(self, cluster: Any, partitions: int) -> None:
        self._cluster = cluster
        self._used = frozenset(range(partitions))

    def partitions_for_topic(self, topic: str) -> frozenset[int]:
        return self._used & (self._cluster.partitions_for_topic(topic) or frozenset())


class _Assignor(PartitionAssignor):
    """Faust's assignor, which leaves out partitions that were added to topics with Kafka's own tools.

    Faust would assign them too. It would also place the topics apart if only some of them were changed.
    """

    app: FaustApp

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        used = _FirstPartitions(cluster, self.app.partitions)
        return super()._perform_assignment(used, member_metadata)


class FaustApp(faust.App):
    """A Faust app that joins the group and assigns partitions, and does nothing else.

    Args:
        settings: The worker's settings.
        partitions: The number of partitions over which clients are hashed.
        lease: Extended by each heartbeat that the group confirms.
        on_revoked: Awaited before this member joins the group again.
        on_assigned: Awaited after it has joined, with generation, active and standby partitions.
        on_stopping: Awaited before Faust stops and leaves the group.
        on_fenced: Called in another thread when another worker has taken this worker's instance id.
        on_failed: Called in another thread with the exception that ended the membership in the group.
    """

    BootStrategy = _Boot

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        lease: Lease,
        on_revoked: Callable[[], Awaitable[None]],
        on_assigned: OnAssigned,
        on_stopping: Callable[[], Awaitable[None]],
        on_fenced: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        session_s = settings.session_timeout_ms / 1_000
        super().__init__(
            settings.app_id,
            broker=[f"kafka://{server.strip()}" for server in settings.bootstrap.split(",")],
            broker_credentials=faust_credentials(settings.connection),
            broker_client_id=f"stoplog-{settings.instance_id}",
            # Faust identifies the group's members by their URL in its assignments.
            canonical_url=f"http://{settings.instance_id}",
            consumer_group_instance_id=settings.instance_id,
            datadir=str(settings.tables),
            store="rocksdb://",
            Table=UnmanagedTable,
            TableManager=UnmanagedTableManager,
            PartitionAssignor=_Assignor,
            table_standby_replicas=1,
            topic_disable_leader=True,
            topic_allow_declare=False,
            stream_wait_empty=False,
            web_enabled=False,
            broker_session_timeout=session_s,
            # The other members learn of a rebalance with their next heartbeat. A heartbeat costs little.
            broker_heartbeat_interval=session_s / 60,
            broker_rebalance_timeout=max(15.0, session_s),
            broker_request_timeout=max(15.0, session_s + 1),
            broker_max_poll_interval=_UNPOLLED_S,
            # aiokafka prefetches records, which are never used.
            consumer_max_fetch_size=1024,
        )
        self.partitions = partitions
        self.lease = lease
        self.fenced = on_fenced
        self.coordination_failed = on_failed
        self._revoked = on_revoked
        self._stopping = on_stopping
        self.tables.on_assigned = on_assigned
        self.topics.add(self.topic(UPDATES, key_serializer="raw", value_serializer="raw"))
        self.on_partitions_revoked.connect(self._on_revoke)

    def _new_transport(self) -> Any:
        transport = super()._new_transport()
        transport.Consumer = _Consumer
        return transport

    @property
    def member(self) -> str:
        """This member's id in the group."""
        return str(self.consumer._thread._consumer._coordinator.member_id)

    async def _on_revoke(self, *_args: Any, **_kwargs: Any) -> None:
        await self._revoked()

    async def on_stop(self) -> None:
        """Make a checkpoint while still a member of the group. Then stop Faust, which leaves the group."""
        await self._stopping()
        await super().on_stop()
