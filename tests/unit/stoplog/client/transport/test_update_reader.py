from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import pytest

import stoplog.kafka.clients
from stoplog.client.transport.update_reader import read_updates
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import UPDATES
from stoplog.wire.limit_updates import UpdateKey, encode_update_key


class Record:
    """An update that deletes alice's limits."""

    def __init__(self, offset: int) -> None:
        self.offset = lambda: offset

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return UPDATES

    def partition(self) -> int:
        return 0

    def key(self) -> bytes:
        return encode_update_key(UpdateKey("client", "alice"))

    def value(self) -> None:
        return None

    def headers(self) -> None:
        return None


class FakeConsumer:
    """A consumer of a partition with 1,000 updates."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.next = 0

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 1_000

    def assign(self, _: Any) -> None:
        """Read from the beginning."""

    def consume(self, most: int, _: float) -> list[Record]:
        first, self.next = self.next, min(1_000, self.next + most)
        return [Record(offset) for offset in range(first, self.next)]

    def poll(self, _: float) -> Record | None:
        return next(iter(self.consume(1, 0)), None)

    def close(self) -> None:
        """Hold no resources."""


def test_read_of_updates_rests_after_every_hundred_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rest the event loop waits 5 ms for each turn, because decoding keeps the interpreter."""
    monkeypatch.setattr(stoplog.kafka.clients, "LastingConsumer", FakeConsumer)
    read: list[int] = []
    rested: list[int] = []
    monkeypatch.setattr("stoplog.kafka.partition_reader.sleep", lambda _: rested.append(len(read)))
    for update in islice(read_updates(KafkaConnection("127.0.0.1:1"), 0, None), 1_000):
        read.append(update.version)
    assert read == list(range(1_000))
    assert max(after - before for before, after in pairwise([0, *rested, 1_000])) <= 101
