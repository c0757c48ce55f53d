"""In place of the transport: a broker and workers that answer at once, unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from stoplog.client.batcher import Carried
from stoplog.client.limiter import Limiter
from stoplog.client.transport.broker_monitor import BrokerView
from stoplog.wire.checks import Batch, Check, Denials, Denied, SingleCheck, decode_checks_record
from stoplog.wire.heartbeats import Heartbeat, decode_heartbeat
from stoplog.wire.limit_updates import Update, decode_update
from stoplog.wire.replies import LookupReply, Reply, UpdateReply, WindowUse
from tests.support.clockwork import answer_to

PARTITIONS = 4


class Kafka:
    """What a limiter's ``Transport`` is replaced by."""

    prefix = "g."
    look_prefix = "g?"
    incarnation = 7
    reply_partition = 0
    view = BrokerView(PARTITIONS)

    def __init__(self, bootstrap: str, *, listener: Limiter, **_: Any) -> None:
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        self.answer: Callable[[Batch], Reply | None] = answer_to
        self.checks: list[Check] = []
        self.denied: list[Denied] = []
        self.beats: list[Heartbeat] = []
        self.updates: list[list[Update]] = [[] for _ in range(PARTITIONS)]
        self.stopped = False

    def start(self) -> None:
        self.loop.call_soon(self.listener.positioned)
        self.loop.call_soon(self.listener.broker_seen, self.view)

    def stop(self) -> None:
        self.stopped = True

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, carried: Carried | None = None
    ) -> None:
        batch = decode_checks_record(value)
        assert isinstance(batch, Batch)
        self.checks += batch.checks
        if batch.partition >= 0 and (reply := self.answer(batch)) is not None:
            self.loop.call_soon(self.listener.replied, [reply])

    def send_denials(self, partition: int, value: bytes, checks: int) -> None:
        record = decode_checks_record(value)
        assert isinstance(record, Denials)
        assert sum(row.checks for row in record.sums) == checks
        self.denied += record.sums

    def send_look(self, partition: int, value: bytes) -> None:
        single = decode_checks_record(value)
        assert isinstance(single, SingleCheck)
        assert single.reply_to is not None
        look = LookupReply(single.reply_to.id, -1, None, [WindowUse("100/minute", 1, 60_000)])
        for _lane in "ab":
            self.loop.call_soon(self.listener.looked, [look])

    def send_beat(self, key: bytes, value: bytes) -> None:
        self.beats.append(decode_heartbeat(value))

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        order: int | None = None,
    ) -> None:
        log = self.updates[partition]
        update = decode_update(len(log), key, value, None)
        log.append(update)
        self.loop.call_soon(done, None, update.version)
        self.loop.call_soon(self.listener.told, [UpdateReply(id_, True, update.version, partition)])

    def read_updates(self, partition: int, start: int | None) -> Iterator[Update]:
        yield from self.updates[partition][start or 0 :]
