"""Read ``replies`` and ``nodes``, decode what concerns this gateway, and hand it to the event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Message, TopicPartition

from stoplog.client.transport.listener import TransportListener
from stoplog.errors import UndecodableRecord
from stoplog.kafka import clients
from stoplog.kafka.batch_skipper import BatchSkipper, drain
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.topics import NODES, REPLIES
from stoplog.wire.heartbeats import StampedHeartbeat, decode_heartbeat
from stoplog.wire.replies import LookupReply, Reply, UpdateReply, decode_any_reply, reply_incarnation

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
"""Longest wait for a record. The reply thread serves the producer between two waits, so a failed delivery is
noticed this late."""

MAX_RECORDS: Final = 1_000
"""Records taken at once."""

POSITION_TIMEOUT_S: Final = 0.5
"""Seconds to wait for the ends of the topics."""

RETRY_S: Final = 1.0
"""Seconds until a topic that could not be read is read again."""

HEARTBEATS_BACK: Final = 1_000
"""Records of ``nodes`` read at the start: 10 s of heartbeats of 200 nodes."""

_decode_update_reply = msgspec.json.Decoder(UpdateReply).decode
_decode_lookup_reply = msgspec.json.Decoder(LookupReply).decode


class ReplyConsumer:
    """Reads one partition of ``replies``, and ``nodes``. Use it from one thread.

    All records that are there at once cause a single wake-up of the event loop.

    Args:
        connection: How to reach Kafka.
        incarnation: Random 64 bits that identify this run of the gateway in replies.
        reply_partition: The partition of ``replies``.
        stopping: Ends waits early.
        listener: Handles what was read.
        call_in_loop: Calls a function in the event loop.

    Attributes:
        update_prefix: Beginning of the ids of this gateway's limit updates.
        lookup_prefix: Beginning of the ids of this gateway's lookups.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        incarnation: int,
        reply_partition: int,
        stopping: threading.Event,
        listener: TransportListener,
        call_in_loop: Callable[..., None],
    ) -> None:
        self.update_prefix = f"{incarnation:016x}."
        self.lookup_prefix = f"{incarnation:016x}?"
        self._incarnation = incarnation
        self._reply_partition = reply_partition
        self._stopping = stopping
        self._listener = listener
        self._call_in_loop = call_in_loop
        self._connection = connection
        self._consumer: LastingConsumer | None = None
        self._skipper: BatchSkipper

    def take_position(self) -> None:
        """Read from the present end of ``replies``, and from the recent heartbeats in ``nodes``.

        Raises:
            KafkaException: The broker did not answer.
            Unavailable: There is no token for OAUTHBEARER.
        """
        if self._consumer is None:
            self._consumer = clients.sdk_consumer(self._connection)
            self._skipper = BatchSkipper(self._consumer)
        replies = TopicPartition(REPLIES, self._reply_partition)
        nodes = TopicPartition(NODES, 0)
        _, replies.offset = self._consumer.get_watermark_offsets(replies, POSITION_TIMEOUT_S)
        low, high = self._consumer.get_watermark_offsets(nodes, POSITION_TIMEOUT_S)
        nodes.offset = max(low, high - HEARTBEATS_BACK)
        self._consumer.assign([replies, nodes])

    def receive(self) -> None:
        """Wait up to :data:`POLL_S` for records, and hand over what they contain."""
        assert self._consumer is not None  # it has a position
        try:
            messages = drain(self._consumer, MAX_RECORDS, POLL_S)
        except KafkaException as exc:
            log.warning("cannot read %s, will retry: %s", REPLIES, exc)
            self._stopping.wait(RETRY_S)
            return
        if messages:
            self._sort(messages)

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()

    def _sort(self, messages: list[Message]) -> None:
        """Decode the records that concern this gateway, and hand them over."""
        replies: list[Reply] = []
        update_replies: list[UpdateReply] = []
        lookup_replies: list[LookupReply] = []
        heartbeats: list[StampedHeartbeat] = []
        undecodable = 0
        for message in self._skipper.keep(messages):
            if message.error() is not None:
                continue
            value = message.value()
            if not value:
                continue
            try:
                if message.topic() == NODES:
                    heartbeats.append(StampedHeartbeat(decode_heartbeat(value), message.timestamp()[1]))
                elif value[0] == 0x7B:  # {
                    update_reply = _decode_update_reply(value)
                    if update_reply.id.startswith(self.update_prefix):
                        update_replies.append(update_reply)
                    elif update_reply.id.startswith(self.lookup_prefix):
                        lookup_replies.append(_decode_lookup_reply(value))
                elif reply_incarnation(value) == self._incarnation:
                    reply = decode_any_reply(value)
                    if isinstance(reply, Reply):
                        replies.append(reply)
            # ValueError: the errors of msgspec, and bytes that are not UTF-8.
            except (UndecodableRecord, ValueError, RecursionError) as exc:
                undecodable += 1
                log.debug("%s[%s] %s: %s", message.topic(), message.partition(), message.offset(), exc)
        if undecodable:
            self._call_in_loop(self._listener.on_undecodable, undecodable)
        if replies or update_replies or lookup_replies or heartbeats:
            self._call_in_loop(self._hand_over, replies, update_replies, lookup_replies, heartbeats)

    def _hand_over(
        self,
        replies: list[Reply],
        update_replies: list[UpdateReply],
        lookup_replies: list[LookupReply],
        heartbeats: list[StampedHeartbeat],
    ) -> None:
        if replies:
            self._listener.on_replies(replies)
        if update_replies:
            self._listener.on_update_replies(update_replies)
        if lookup_replies:
            self._listener.on_lookup_replies(lookup_replies)
        if heartbeats:
            self._listener.on_heartbeats(heartbeats)
