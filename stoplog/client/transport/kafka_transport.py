"""The gateway's way to Kafka: one producer, one consumer, two threads.

The *reply thread* waits for replies and beats, decodes them, serves the producer's reports, and hands
what it has to the event loop with one wake-up for all that was there. The *broker thread* asks for
metadata, so that a broker that is gone is noticed without any check being asked.

Nothing here blocks the event loop. No other part of a running gateway talks to Kafka; `stoplog up` and the
commands about brokers and topics do, with an AdminClient of their own.
"""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from functools import partial
from itertools import count
from time import monotonic, sleep
from typing import Any, Final, Protocol

import msgspec
from confluent_kafka import (
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from stoplog.client.batcher import Carried
from stoplog.client.limit_update_follower import Following
from stoplog.client.transport.broker_monitor import BrokerView
from stoplog.errors import Unavailable, UndecodableRecord
from stoplog.kafka import clients as kafka
from stoplog.kafka.batch_skipper import Steps, drain, unreadable
from stoplog.topics import CHECKS, NODES, REPLIES, UPDATES
from stoplog.wire.format import ReplyTo, headers_of
from stoplog.wire.heartbeats import StampedHeartbeat, decode_heartbeat
from stoplog.wire.limit_updates import Update, decode_update, order_header, reply_to_header
from stoplog.wire.replies import LookupReply, Reply, UpdateReply, decode_reply, reply_incarnation

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
"""Longest sleep of the reply thread when nothing comes: failed deliveries are noticed this late."""

DRAIN: Final = 1_000
"""Records taken at once when there are several."""

ASK_S: Final = 5.0
"""Between two looks at the broker's metadata when all is well."""

ASK_AGAIN_S: Final = 1.0
"""The same while it does not answer, or has no topics yet."""

ASK_TIMEOUT_S: Final = 2.0
POSITION_TIMEOUT_S: Final = 0.5

PURGE_S: Final = 0.5
"""A purge waits for nobody; its reports come from other threads all the same."""

WARM_S: Final = 0.1
"""A connected producer has its id after 10 ms or so."""

READ_DRAIN: Final = 100
"""Records that a read of a topic takes at once: decoding them holds the event loop up, for under 1 ms."""

READ_REST_S: Final = 0.001
"""Between two of those, so that the event loop gets its turn; without, it would wait 5 ms each time."""

READ_TIMEOUT_S: Final = 10.0
"""A read of a topic that yields nothing for this long is given up."""

BEATS_BACK: Final = 1_000
"""Records of ``nodes`` read at the start: 10 s of beats of 200 nodes."""


class Listener(Protocol):
    """Who is told; always in the event loop."""

    def positioned(self) -> None:
        """From now on no reply can be missed."""

    def replied(self, replies: list[Reply]) -> None:
        """Replies to this gateway's batches."""

    def told(self, words: list[UpdateReply]) -> None:
        """Words on this gateway's updates."""

    def looked(self, looks: list[LookupReply]) -> None:
        """Replies to this gateway's looks."""

    def heard(self, beats: list[StampedHeartbeat]) -> None:
        """Beats of any node."""

    def updated(self, updates: list[tuple[int, Update]]) -> None:
        """Limit updates that anybody wrote, each with its partition."""

    def followed(self, partitions: list[int], at: float) -> None:
        """All updates written to *partitions* before *at* (``stoplog.clock``) have been told."""

    def wants_proof(self) -> bool:
        """Whether :meth:`followed` would be of use; asked in another thread."""

    def undelivered(self, failures: list[tuple[int, int]]) -> None:
        """Batches that could not be published: number, checks."""

    def unlogged(self, checks: int) -> None:
        """Sums of *checks* denied checks could not be published."""

    def broker_down(self, why: str) -> None:
        """No broker can be reached."""

    def broker_seen(self, view: BrokerView) -> None:
        """A look at the broker's metadata."""

    def undecodable(self, records: int) -> None:
        """Records of ``replies`` and ``nodes`` that were passed over."""

    def failed(self, why: str) -> None:
        """A thread has ended that never should: nothing more will be told."""


_decode_word = msgspec.json.Decoder(UpdateReply).decode
_decode_look = msgspec.json.Decoder(LookupReply).decode


class Transport:
    """Kafka, for one gateway.

    Args:
        bootstrap: Where Kafka is.
        incarnation: This gateway's random 64 bits.
        reply_partition: The partition of ``replies`` that it reads.
        publish_timeout_ms: Milliseconds until a record that could not be published is dropped.
        follow: Partitions of ``limit-updates`` to follow; 0: nobody wants to know.
        loop: The event loop to tell.
        listener: Whom to tell.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        incarnation: int,
        reply_partition: int,
        publish_timeout_ms: int,
        follow: int,
        loop: AbstractEventLoop,
        listener: Listener,
    ) -> None:
        self.incarnation = incarnation
        self.reply_partition = reply_partition
        self._bootstrap = bootstrap
        self._publish_timeout_ms = publish_timeout_ms
        self._loop = loop
        self._listener = listener
        self.prefix = f"{incarnation:016x}."
        self.look_prefix = f"{incarnation:016x}?"
        self._failures: list[tuple[int, int]] = []
        self._down: str | None = None
        self._fatal: str | None = None
        self._producing = threading.Lock()
        self._tokens = count()
        self._unreported: dict[int, float] = {}  # when each record was given to the producer, oldest first
        self._stopping = threading.Event()
        self._ask = threading.Event()
        self._producer = self._new_producer()
        self._consumer = kafka.sdk_consumer(self._bootstrap)
        self._steps = Steps(self._consumer)
        works = [("stoplog-replies", self._receive), ("stoplog-broker", self._watch_broker)]
        if follow:
            works.append(("stoplog-updates", partial(self._follow, follow)))
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True) for name, work in works
        ]

    def start(self) -> None:
        """Begin to receive; returns at once, whether or not a broker is there."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Publish what can be within the publish timeout, then end; blocks."""
        self._producer.flush(self._publish_timeout_ms / 1000)
        self._stopping.set()
        self._ask.set()
        for thread in self._threads:
            thread.join()
        _abandon(self._producer)
        self._consumer.close()
        if self._failures:
            self._tell(self._listener.undelivered, self._failures)

    # --- out --------------------------------------------------------------------------------

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, carried: Carried | None = None
    ) -> None:
        """Publish a batch; a later failure is told as ``(number, checks)``.

        Raises:
            Unavailable: it will not be published.
        """

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._failures.append((number, checks))
            if carried is not None:
                carried.done(None if error is None else error.str())

        headers = {} if carried is None else {"headers": carried.headers}
        self._produce(CHECKS, value, partition=partition, on_delivery=report, **headers)

    def send_look(self, partition: int, value: bytes) -> None:
        """Publish a single check, whose reply is told under its own id.

        Raises:
            Unavailable: it will not be published.
        """
        self._produce(CHECKS, value, partition=partition)

    def send_denials(self, partition: int, value: bytes, checks: int) -> None:
        """Publish the sums of *checks* denied checks; a later failure is told.

        Raises:
            Unavailable: they will not be published.
        """

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._tell(self._listener.unlogged, checks)

        self._produce(CHECKS, value, partition=partition, on_delivery=report)

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        order: int | None = None,
    ) -> None:
        """Publish a limit update whose word is to come under *id_*.

        Args:
            partition: Of ``limit-updates``.
            key: As encoded.
            value: As encoded; ``None`` deletes.
            id_: Its owner's word comes under it.
            done: Told, in the loop, why it could not be published, or ``None`` and its offset.
            order: Of a plan's or default's update outside its home partition: its offset there.

        Raises:
            Unavailable: it will not be published.
        """

        def report(error: KafkaError | None, message: Message) -> None:
            self._tell(done, error.str() if error is not None else None, message.offset() or 0)

        headers = [reply_to_header(ReplyTo(self.reply_partition, id_))]
        if order is not None:
            headers.append(order_header(order))
        self._produce(UPDATES, value, key=key, partition=partition, headers=headers, on_delivery=report)

    def send_beat(self, key: bytes, value: bytes) -> None:
        """Publish a beat; one that is lost does not matter.

        Raises:
            Unavailable: it will not be published.
        """
        self._produce(NODES, value, key=key, partition=0)

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        on_delivery: Callable[[KafkaError | None, Message], None] | None = None,
        **options: Any,
    ) -> None:
        token = next(self._tokens)

        def report(error: KafkaError | None, message: Message) -> None:
            self._reported(token)
            if on_delivery is not None:
                on_delivery(error, message)

        try:
            with self._producing:
                self._unreported[token] = monotonic()
                self._producer.produce(topic, value, on_delivery=report, **options)
        except BufferError as exc:
            self._reported(token)
            raise Unavailable("the producer's queue is full: the broker takes records too slowly") from exc
        except KafkaException as exc:
            self._reported(token)
            raise Unavailable(f"the producer refused a record: {exc.args[0].str()}") from exc

    def _reported(self, token: int) -> None:
        with self._producing:  # a flush reports in a thread of its own, while another looks for the oldest
            self._unreported.pop(token, None)

    # --- in ---------------------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> None:
        """Do *work*; if it ends by an exception, say so: without it no check would ever be answered."""
        try:
            work()
        except Exception as exc:
            name = threading.current_thread().name
            log.critical("thread %s cannot go on", name, exc_info=exc)
            self._tell(self._listener.failed, f"thread {name} ended: {exc!r}")

    def _receive(self) -> None:
        positioned = False
        while not self._stopping.is_set():
            if not positioned and (positioned := self._take_position()):
                self._tell(self._listener.positioned)
            try:
                messages = drain(self._consumer, DRAIN, POLL_S) if positioned else []
            except KafkaException as exc:
                log.warning("%s could not be read, and is tried again: %s", REPLIES, exc)
                messages = []
                self._stopping.wait(1.0)
            if messages:
                self._sort(messages)
            self._serve_producer()

    def _take_position(self) -> bool:
        replies = TopicPartition(REPLIES, self.reply_partition)
        nodes = TopicPartition(NODES, 0)
        try:
            _, replies.offset = self._consumer.get_watermark_offsets(replies, POSITION_TIMEOUT_S)
            low, high = self._consumer.get_watermark_offsets(nodes, POSITION_TIMEOUT_S)
            self._warm(self._producer)
        except KafkaException as exc:
            log.debug("no position in %s yet: %s", REPLIES, exc)
            self._stopping.wait(POLL_S)
            return False
        nodes.offset = max(low, high - BEATS_BACK)
        self._consumer.assign([replies, nodes])
        return True

    def _serve_producer(self) -> None:
        """Let the producer report, and tell what it said."""
        self._producer.poll(0)
        if self._failures:
            failures, self._failures = self._failures, []
            self._tell(self._listener.undelivered, failures)
        if self._down is not None:
            down, self._down = self._down, None
            self._tell(self._listener.broker_down, down)
            self._ask.set()
        if self._fatal is not None:
            log.error("the producer failed for good and is replaced: %s", self._fatal)
            self._fatal = None
            self._renew_producer()
        elif self._overdue():
            self._renew_producer()

    def _overdue(self) -> bool:
        """Whether a record was not delivered within the publish timeout.

        The producer must not be left to give it up alone (``message.timeout.ms``): librdkafka would then send
        again, under a new epoch that no broker can compare with the old one, whatever else was under way, and
        a batch that had been stored all the same would be in the log, and counted, twice.
        """
        with self._producing:
            oldest = next(iter(self._unreported.values()), None)
        return oldest is not None and monotonic() - oldest > self._publish_timeout_ms / 1_000

    def _warm(self, producer: Producer) -> None:
        """Have *producer* connected, with an id and the metadata of ``checks``, before it is needed.

        An idempotent producer whose first record comes before its id takes half a second over it.
        """
        producer.list_topics(CHECKS, POSITION_TIMEOUT_S)
        self._stopping.wait(WARM_S)

    def _sort(self, messages: list[Message]) -> None:
        """Decode what is for us, and hand it over."""
        replies: list[Reply] = []
        words: list[UpdateReply] = []
        looks: list[LookupReply] = []
        beats: list[StampedHeartbeat] = []
        undecodable = 0
        for message in self._steps.sift(messages):
            if message.error() is not None:
                continue
            value = message.value()
            if not value:
                continue
            try:
                if message.topic() == NODES:
                    beats.append(StampedHeartbeat(decode_heartbeat(value), message.timestamp()[1]))
                elif value[0] == 0x7B:  # {
                    word = _decode_word(value)
                    if word.id.startswith(self.prefix):
                        words.append(word)
                    elif word.id.startswith(self.look_prefix):
                        looks.append(_decode_look(value))
                elif reply_incarnation(value) == self.incarnation:
                    replies.append(decode_reply(value))
            # ValueError: msgspec's own errors, and bytes that are not UTF-8.
            except (UndecodableRecord, ValueError, RecursionError) as exc:
                undecodable += 1
                log.debug("%s[%s] %s: %s", message.topic(), message.partition(), message.offset(), exc)
        if undecodable:
            self._tell(self._listener.undecodable, undecodable)
        if replies or words or looks or beats:
            self._tell(self._hand_over, replies, words, looks, beats)

    def _hand_over(
        self,
        replies: list[Reply],
        words: list[UpdateReply],
        looks: list[LookupReply],
        beats: list[StampedHeartbeat],
    ) -> None:
        if replies:
            self._listener.replied(replies)
        if words:
            self._listener.told(words)
        if looks:
            self._listener.looked(looks)
        if beats:
            self._listener.heard(beats)

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *args)

    def _follow(self, partitions: int) -> None:
        # A consumer of its own: with replies' in it, the end of that partition would be told after each.
        with (
            closing(kafka.sdk_consumer(self._bootstrap, report_end=True)) as consumer,
            closing(kafka.sdk_consumer(self._bootstrap)) as asker,
        ):
            Following(consumer, asker, partitions, self._listener, self._tell).run(self._stopping)

    # --- the broker -------------------------------------------------------------------------

    def _watch_broker(self) -> None:
        admin = kafka.sdk_admin(self._bootstrap)
        while not self._stopping.is_set():
            try:
                topic = admin.list_topics(CHECKS, ASK_TIMEOUT_S).topics[CHECKS]
                lacking = tuple(p for p, it in topic.partitions.items() if len(it.isrs) < len(it.replicas))
                view = BrokerView(len(topic.partitions), lacking)
            except KafkaException as exc:
                view = BrokerView(error=f"{self._bootstrap} does not answer: {exc.args[0].str()}")
            self._tell(self._listener.broker_seen, view)
            self._ask.wait(ASK_S if view.partitions else ASK_AGAIN_S)
            self._ask.clear()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error.str()
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = f"the broker at {self._bootstrap} cannot be reached"

    def _renew_producer(self) -> None:
        """Replace the producer; what the old one held is reported as undelivered, and not sent again."""
        new = self._new_producer()
        with suppress(KafkaException):
            self._warm(new)
        with self._producing:  # whoever is about to use the old one comes before its purge, or after the swap
            old, self._producer = self._producer, new
            self._unreported.clear()
        _abandon(old)

    def _new_producer(self) -> Producer:
        return kafka.check_producer(self._bootstrap, self._publish_timeout_ms, self._on_error)

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        """One partition of ``limit-updates``, from offset *start* (or its beginning) to its present end.

        Records that cannot be decoded are passed over. Blocks: for a thread of its own.

        Raises:
            Unavailable: the broker did not answer.
        """
        consumer = kafka.sdk_consumer(self._bootstrap, report_end=True, fetch_wait_ms=10)
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(UPDATES, partition), READ_TIMEOUT_S)
            # A plain offset: librdkafka looks up a logical one (beginning) only after half a second.
            start = low if start is None else max(low, start)
            if start >= high:
                return
            consumer.assign([TopicPartition(UPDATES, partition, start)])
            steps = Steps(consumer)
            while messages := drain(consumer, READ_DRAIN, READ_TIMEOUT_S):
                for message in steps.sift(messages):
                    error = message.error()
                    if error is None:
                        with suppress(UndecodableRecord):
                            yield _update_of(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        return
                    elif not unreadable(message):
                        raise Unavailable(f"{UPDATES} cannot be read: {error.str()}")
                sleep(READ_REST_S)
            raise Unavailable(f"{self._bootstrap} gave nothing of {UPDATES} for {READ_TIMEOUT_S:g} s")
        except KafkaException as exc:
            raise Unavailable(f"{UPDATES} cannot be read: {exc.args[0].str()}") from exc
        finally:
            consumer.close()


def _abandon(producer: Producer) -> None:
    """Have all that *producer* still holds reported as undelivered."""
    producer.purge()
    producer.flush(PURGE_S)


def _update_of(message: Message) -> Update:
    offset = message.offset()
    assert offset is not None  # it was consumed
    return decode_update(offset, message.key(), message.value(), headers_of(message))
