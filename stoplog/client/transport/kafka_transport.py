"""Kafka, as the engine uses it: one producer, one consumer, and the threads that serve them.

The *reply thread* reads replies and heartbeats, and serves the producer. The *broker thread* asks the broker
for metadata, and the *count thread* follows the number of partitions. The *update thread*, if there is one,
follows ``limit-updates``.

Nothing here blocks the event loop. No other part of a running gateway talks to Kafka. `stoplog up` and the
commands about brokers and topics do, with an admin client of their own.
"""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message

from stoplog.client.arrivals import Arrivals
from stoplog.client.instrumentation import PublishedRecord
from stoplog.client.limit_update_follower import LimitUpdateFollower
from stoplog.client.transport.audit_reader import RawAudit, read_audit
from stoplog.client.transport.broker_monitor import BrokerMonitor
from stoplog.client.transport.broker_view import BrokerView
from stoplog.client.transport.listener import TransportListener
from stoplog.client.transport.producer import ReplaceableProducer
from stoplog.client.transport.reply_consumer import POLL_S, ReplyConsumer
from stoplog.client.transport.update_reader import read_updates
from stoplog.errors import Unavailable
from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS, NODES, REPLIES, UPDATES
from stoplog.wire.audit import ChangeSource, source_headers
from stoplog.wire.format import ReplyTo
from stoplog.wire.limit_updates import Update, order_header, reply_to_header
from stoplog.wire.partition_count import PartitionCount

log = logging.getLogger(__name__)

FOLLOW_RETRY_S: Final = 1.0
"""Seconds until the consumers of ``limit-updates`` are created again, if they could not be."""


class KafkaTransport:
    """The connection of one gateway to Kafka.

    Args:
        connection: How to reach Kafka.
        incarnation: Random 64 bits that identify this run of the gateway in replies.
        reply_partition: The partition of ``replies`` to read.
        publish_timeout_ms: Milliseconds until a record that was not delivered is dropped.
        count: The number of partitions over which the listener hashes clients. Nothing that depends on it is
            published before the broker has answered that no other number is in force.
        follow_updates: Follow ``limit-updates``.
        loop: The event loop of the listener.
        listener: Handles what arrives.

    Attributes:
        arrivals: What has arrived about limit updates, for the listener.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        incarnation: int,
        reply_partition: int,
        publish_timeout_ms: int,
        count: PartitionCount,
        follow_updates: bool,
        loop: AbstractEventLoop,
        listener: TransportListener,
    ) -> None:
        self.incarnation = incarnation
        self.reply_partition = reply_partition
        self._connection = connection
        self._loop = loop
        self.arrivals: Final = Arrivals(loop)
        self._listener = listener
        self._count = count
        self._withheld: str | None = f"Kafka at {connection.bootstrap} has not answered yet"
        """Why nothing may be published yet; ``None`` if it may."""
        self._paused: str | None = None
        """Why nothing about clients and limits is published any more; ``None`` if it is."""
        self._has_answered = False
        self._undelivered: list[tuple[int, int]] = []
        self._stopping = threading.Event()
        self._producer = ReplaceableProducer(connection, publish_timeout_ms, self._stopping)
        self._consumer = ReplyConsumer(
            connection,
            incarnation=incarnation,
            reply_partition=reply_partition,
            stopping=self._stopping,
            listener=listener,
            call_in_loop=self._call_in_loop,
        )
        self.update_prefix = self._consumer.update_prefix
        self.lookup_prefix = self._consumer.lookup_prefix
        self._monitor = BrokerMonitor(connection, self._stopping, self._on_broker_view)
        self._watching = [
            self._thread("stoplog-broker", self._monitor.run),
            self._thread("stoplog-count", self._monitor.follow),
        ]
        self._threads = [self._thread("stoplog-replies", self._receive)]
        if follow_updates:
            self._threads.append(
                self._thread("stoplog-updates", partial(self._follow_updates, count.partitions))
            )

    def start(self) -> None:
        """Start to receive. Return at once, whether or not a broker can be reached."""
        for thread in (*self._watching, *self._threads):
            thread.start()

    def _thread(self, name: str, task: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._run, args=(task,), name=name, daemon=True)

    def stop(self) -> None:
        """Publish what can be published within the publish timeout, then end. Blocks."""
        self._stopping.set()  # first: a thread that waits for a broker takes a while to notice it
        self._monitor.wake()
        if self._has_answered:  # otherwise no check was published
            self._producer.flush()
        # Not the threads that watch: they may wait for a broker for seconds, and share nothing that is closed
        # here.
        for thread in self._threads:
            thread.join()
        self._producer.close()
        self._consumer.close()
        self._report_undelivered()

    def _on_broker_view(self, view: BrokerView) -> None:
        """Allow to publish once no other number of partitions than the listener's is in force."""
        self._has_answered |= view.error is None
        if view.error is None:
            other = view.recorded if view.recorded != self._count else None
            self._withheld = (
                f"changing over to the {other.partitions} partitions over which clients are hashed"
                if other is not None
                else None
            )
        elif self._withheld is not None:
            self._withheld = view.error
            self._call_in_loop(self._listener.on_broker_down, view.error)
        self._call_in_loop(self._listener.on_broker_view, view)

    # --- records to publish -------------------------------------------------------------------

    def _check_not_withheld(self) -> None:
        why = self._paused or self._withheld
        if why is not None:
            raise Unavailable(why)

    def pause(self, why: str) -> None:
        """Publish nothing but heartbeats from now on."""
        self._paused = why

    def flush(self) -> None:
        """Wait until everything published is stored, or dropped after the publish timeout. Blocks."""
        self._producer.flush()

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, record: PublishedRecord | None = None
    ) -> None:
        """Publish a batch. A later failure is reported with its *number* and how many *checks* it has.

        Raises:
            Unavailable: The batch will not be published.
        """
        self._check_not_withheld()

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._undelivered.append((number, checks))
            if record is not None:
                record.done(None if error is None else error.str())

        headers = {} if record is None else {"headers": record.headers}
        self._producer.send(CHECKS, value, report, partition=partition, **headers)

    def send_lookup(self, partition: int, value: bytes) -> None:
        """Publish a single check; the listener handles the reply to it.

        Raises:
            Unavailable: The check will not be published.
        """
        self._check_not_withheld()
        self._producer.send(CHECKS, value, partition=partition)

    def send_denials(self, partition: int, value: bytes, checks: int) -> None:
        """Publish the sums of *checks* denied checks. A later failure is reported.

        Raises:
            Unavailable: The sums will not be published.
        """
        self._check_not_withheld()

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._call_in_loop(self._listener.on_denials_lost, checks)

        self._producer.send(CHECKS, value, report, partition=partition)

    def send_settlements(self, partition: int, value: bytes) -> None:
        """Publish settlements of leases. If they are lost, the leases end unsettled; that is not reported.

        Raises:
            Unavailable: The settlements will not be published.
        """
        if self._paused is not None:
            raise Unavailable(self._paused)
        self._producer.send(CHECKS, value, partition=partition)

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        source: ChangeSource,
        order: int | None = None,
    ) -> None:
        """Publish a limit update.

        Args:
            partition: Partition of ``limit-updates``.
            key: Encoded key.
            value: Encoded value; ``None`` deletes.
            id_: Id of the reply to this update.
            done: Called in the event loop with the error or ``None``, and the offset of the record.
            source: The source of the change, which headers of the record name.
            order: For an update of a plan or the default outside its home partition: its offset there.

        Raises:
            Unavailable: The update will not be published.
        """
        self._check_not_withheld()

        def report(error: KafkaError | None, message: Message) -> None:
            self._call_in_loop(done, error.str() if error is not None else None, message.offset() or 0)

        headers = [reply_to_header(ReplyTo(self.reply_partition, id_)), *source_headers(source)]
        if order is not None:
            headers.append(order_header(order))
        self._producer.send(UPDATES, value, report, key=key, partition=partition, headers=headers)

    def send_heartbeat(self, key: bytes, value: bytes) -> None:
        """Publish a heartbeat. The loss of one does not matter, so it is not reported.

        Raises:
            Unavailable: The heartbeat will not be published.
        """
        self._producer.send(NODES, value, key=key, partition=0)

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        """Yield stored updates (:func:`~stoplog.client.transport.update_reader.read_updates`). Blocks."""
        return read_updates(self._connection, partition, start)

    def read_audit(self, partition: int, before: int | None) -> Generator[RawAudit, None, None]:
        """Yield audit records (:func:`~stoplog.client.transport.audit_reader.read_audit`). Blocks."""
        return read_audit(self._connection, partition, before)

    # --- threads ------------------------------------------------------------------------------

    def _run(self, task: Callable[[], None]) -> None:
        """Run *task*, and report its exception: without this thread no check would ever be answered."""
        try:
            task()
        except Exception as exc:
            name = threading.current_thread().name
            log.critical("thread %s failed", name, exc_info=exc)
            self._call_in_loop(self._listener.on_failure, f"thread {name} failed: {exc!r}")

    def _receive(self) -> None:
        ready = False
        while not self._stopping.is_set():
            if ready or (ready := self._get_ready()):
                self._consumer.receive()
            self._serve_producer()

    def _get_ready(self) -> bool:
        """Take the position in ``replies`` and connect the producer. Return whether that succeeded."""
        try:
            self._consumer.take_position()
            self._producer.connect()
        except (KafkaException, Unavailable) as exc:
            log.debug("no position in %s yet: %s", REPLIES, exc)
            self._stopping.wait(POLL_S)
            return False
        self._call_in_loop(self._listener.on_position)
        return True

    def _serve_producer(self) -> None:
        self._producer.poll()
        self._report_undelivered()
        if (why := self._producer.take_broker_down()) is not None:
            self._call_in_loop(self._listener.on_broker_down, why)
            self._monitor.wake()
        self._producer.replace_if_needed()

    def _report_undelivered(self) -> None:
        if self._undelivered:
            undelivered, self._undelivered = self._undelivered, []
            self._call_in_loop(self._listener.on_undelivered, undelivered)

    def _follow_updates(self, partitions: int) -> None:
        while not self._stopping.is_set():
            try:
                self._follow_updates_until_stopped(partitions)
            except Unavailable as exc:  # no token for OAUTHBEARER
                log.debug("cannot follow %s yet: %s", UPDATES, exc)
                self._stopping.wait(FOLLOW_RETRY_S)

    def _follow_updates_until_stopped(self, partitions: int) -> None:
        # A consumer of its own: in the consumer of replies, each reply would be followed by the end of its
        # partition.
        with (
            closing(clients.sdk_consumer(self._connection, report_end=True)) as consumer,
            closing(clients.sdk_consumer(self._connection)) as offset_client,
        ):
            follower = LimitUpdateFollower(
                consumer, offset_client, partitions, self._listener, self.arrivals.add
            )
            follower.run(self._stopping)

    def _call_in_loop(self, function: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)
