"""The Faust app: the group, its assignments and tables. No record passes through Faust's streams.

Faust subscribes to ``limit-updates`` so that the group has partitions to assign; the owner of partition p
of it owns p of ``checks`` and of both tables. Nothing is ever fetched through it: see DESIGN.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import faust
from faust.app.base import BootStrategy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as AIOKafkaConsumer

from stoplog.topics import UPDATES
from stoplog_worker.assignment.faust_tables import Assigned, Manager, Table
from stoplog_worker.assignment.static_membership import Membership
from stoplog_worker.lease import Lease
from stoplog_worker.settings import Settings

_UNPOLLED_S: Final = 10 * 365 * 86_400.0
"""aiokafka leaves the group if nothing is fetched for this long, and here nothing ever is."""


class _ConsumerThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, whose requests to the group pass through :class:`Membership`."""

    async def on_start(self) -> None:
        await super().on_start()
        Membership(self._consumer._coordinator, self.app.lease, self.app.fenced)


class _Consumer(AIOKafkaConsumer):
    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Boot(BootStrategy):
    """No web server (Faust's would serve the tables to all the world), and no producer."""

    enable_web = False
    enable_kafka_producer = False


class App(faust.App):
    """Faust, told to assign and nothing else.

    Args:
        settings: The worker's.
        lease: Extended by heartbeats.
        on_revoked: Awaited before the group is joined again.
        on_assigned: Awaited with generation, active and standby partitions after it was.
        on_stopping: Awaited before anything of Faust's is stopped, and the group left.
        on_fenced: Called, in another thread, when another worker has taken this one's instance id.
    """

    BootStrategy = _Boot

    def __init__(
        self,
        settings: Settings,
        lease: Lease,
        on_revoked: Callable[[], Awaitable[None]],
        on_assigned: Assigned,
        on_stopping: Callable[[], Awaitable[None]],
        on_fenced: Callable[[], None],
    ) -> None:
        session_s = settings.session_timeout_ms / 1_000
        super().__init__(
            settings.app_id,
            broker=[f"kafka://{server.strip()}" for server in settings.bootstrap.split(",")],
            broker_client_id=f"stoplog-{settings.instance_id}",
            # The group tells members apart by it, in what Faust keeps of their assignments.
            canonical_url=f"http://{settings.instance_id}",
            consumer_group_instance_id=settings.instance_id,
            datadir=str(settings.tables),
            store="rocksdb://",
            Table=Table,
            TableManager=Manager,
            table_standby_replicas=1,
            topic_disable_leader=True,
            topic_allow_declare=False,
            stream_wait_empty=False,
            web_enabled=False,
            broker_session_timeout=session_s,
            # How late the others hear of a member's death, after the group has; a heartbeat costs little.
            broker_heartbeat_interval=session_s / 60,
            broker_rebalance_timeout=max(15.0, session_s),
            broker_request_timeout=max(15.0, session_s + 1),
            broker_max_poll_interval=_UNPOLLED_S,
            # aiokafka fetches ahead what nobody will take.
            consumer_max_fetch_size=1024,
        )
        self.lease = lease
        self.fenced = on_fenced
        self._revoked = on_revoked
        self._stopping = on_stopping
        self.tables.assigned = on_assigned
        self.topics.add(self.topic(UPDATES, key_serializer="raw", value_serializer="raw"))
        self.on_partitions_revoked.connect(self._let_go)

    def _new_transport(self) -> Any:
        transport = super()._new_transport()
        transport.Consumer = _Consumer
        return transport

    @property
    def member(self) -> str:
        """This member's id in the group."""
        return str(self.consumer._thread._consumer._coordinator.member_id)

    async def _let_go(self, *_args: Any, **_kwargs: Any) -> None:
        await self._revoked()

    async def on_stop(self) -> None:
        """Flush while still a member of the group, then let Faust stop and leave it."""
        await self._stopping()
        await super().on_stop()
