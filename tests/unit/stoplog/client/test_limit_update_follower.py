"""Cases that a real broker cannot produce at will; all others are in
tests/integration/test_limit_update_follower.py."""

from __future__ import annotations

from collections import deque
from threading import Event
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

import stoplog.client.limit_update_follower
from stoplog.client.limit_update_follower import LimitUpdateFollower
from stoplog.kafka.lasting_consumer import LastingConsumer
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES
from stoplog.wire.limit_updates import Update, UpdateKey, encode_update_key, encode_update_value

KEY, VALUE = encode_update_key(UpdateKey("client", "alice")), encode_update_value(parse_policy("5/minute"))


class Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def topic(self) -> str:
        return UPDATES

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return KEY

    def value(self) -> bytes | None:
        return VALUE

    def headers(self) -> Any:
        return None

    def error(self) -> None:
        return None


class OffsetClient:
    """The client that requests the ends of the partition."""

    def __init__(self, log: Log) -> None:
        self.get_watermark_offsets = log.get_watermark_offsets

    def poll(self, _: float) -> None:
        """Return no record: nothing is assigned."""


class Log:
    """Both consumers and the listener, of one partition of ``limit-updates`` with three records."""

    def __init__(self) -> None:
        self.messages = [Message(offset) for offset in range(3)]
        self.failures: deque[str] = deque()
        self.versions: list[int] = []
        self.proofs = 0
        self.stopping = Event()
        self._next = 0

    def follow(self) -> None:
        """Follow until there is a proof."""
        consumer, offset_client = cast(LastingConsumer, self), cast(LastingConsumer, OffsetClient(self))
        LimitUpdateFollower(consumer, offset_client, 1, self, lambda report: report()).run(self.stopping)

    # --- the consumers ---

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, len(self.messages)

    def assign(self, places: list[TopicPartition]) -> None:
        [place] = places
        self._next = place.offset

    def poll(self, _: float) -> Message | None:
        self._fail_in("poll")
        return self._take()

    def consume(self, _: int, __: float) -> list[Message]:
        self._fail_in("consume")
        return [] if (message := self._take()) is None else [message]

    def _fail_in(self, call: str) -> None:
        if self.failures and self.failures[0] == call:
            self.failures.popleft()
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def _take(self) -> Message | None:
        if self._next == len(self.messages):
            return None
        self._next += 1
        return self.messages[self._next - 1]

    # --- the listener ---

    def on_updates(self, updates: list[tuple[int, Update]]) -> None:
        self.versions += [update.version for _, update in updates]

    def on_updates_read(self, partitions: list[int], at: float) -> None:
        self.proofs += 1
        self.stopping.set()

    def wants_proof(self) -> bool:
        return False


@pytest.mark.parametrize("call", ["poll", "consume"])
def test_failed_read_is_repeated(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stoplog.client.limit_update_follower, "RETRY_S", 0.0)
    log = Log()
    log.failures.append(call)
    log.follow()
    assert (log.versions, log.proofs) == ([0, 1, 2], 1)
    assert not log.failures


def test_update_with_unreadable_header_is_not_reported() -> None:
    class Odd(Message):
        def headers(self) -> Any:
            raise SystemError("a result with an exception set")

    log = Log()
    log.messages[2] = Odd(2)
    log.follow()
    assert (log.versions, log.proofs) == ([0, 1], 1)
