from __future__ import annotations

import threading
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

import stoplog.kafka.clients
from stoplog.client.transport.producer import ReplaceableProducer
from stoplog.errors import Unavailable
from stoplog.kafka.connection import KafkaConnection, Security
from stoplog.kafka.oauth_tokens import OAuthClient
from stoplog.topics import CHECKS
from tests.support.token_endpoint import TokenEndpoint


class FakeProducer:
    """A producer whose ``produce`` waits for ``may_go_on``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[str] = []
        self.reports: list[Any] = []
        self.error: BaseException | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()

    def produce(self, *_: Any, on_delivery: Any, **__: Any) -> None:
        if self.error is not None:
            raise self.error
        self.reports.append(on_delivery)
        self.entered.set()
        self.may_go_on.wait(10)
        self.calls.append("produce")

    def purge(self) -> None:
        self.calls.append("purge")

    def flush(self, _: float) -> None:
        self.calls.append("flush")

    def poll(self, _: float) -> None:
        """Report nothing."""

    def list_topics(self, *_: Any) -> None:
        """Be connected."""


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> ReplaceableProducer:
    monkeypatch.setattr(stoplog.kafka.clients, "Producer", FakeProducer)
    return ReplaceableProducer(KafkaConnection("127.0.0.1:1"), 100, threading.Event())


def test_delivery_report_waits_while_the_oldest_record_is_looked_for(producer: ReplaceableProducer) -> None:
    """A dict that shrinks while another thread iterates over it would end that thread."""
    popped_under_lock: list[bool] = []

    class Watched(dict[int, float]):
        def pop(self, *args: Any) -> Any:
            popped_under_lock.append(producer._lock.locked())
            return super().pop(*args)

    producer._unreported = Watched()
    fake: Any = producer._producer
    fake.may_go_on.set()
    producer.send(CHECKS, b"batch")
    fake.reports[0](None, None)
    fake.error = BufferError()
    with pytest.raises(Unavailable):
        producer.send(CHECKS, b"batch")
    assert popped_under_lock == [True, True]
    assert not producer._unreported


def test_record_sent_during_a_replacement_is_purged_with_the_old_producer(
    producer: ReplaceableProducer,
) -> None:
    old: Any = producer._producer
    sending = threading.Thread(target=producer.send, args=(CHECKS, b"batch"))
    sending.start()
    assert old.entered.wait(10)
    replacing = threading.Thread(target=producer._replace)
    replacing.start()
    # Without the lock, the old producer would be purged by now, and would then be given a record.
    replacing.join(0.3)
    old.may_go_on.set()
    sending.join()
    replacing.join()
    assert old.calls == ["produce", "purge", "flush"]
    assert producer._producer is not old


def test_overdue_record_replaces_the_producer(
    producer: ReplaceableProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka would drop the record itself, and send others again under an epoch no broker can compare."""
    now = 100.0
    monkeypatch.setattr("stoplog.client.transport.producer.monotonic", lambda: now)
    old: Any = producer._producer
    old.may_go_on.set()
    producer.send(CHECKS, b"batch")
    producer.replace_if_needed()
    assert old.calls == ["produce"]
    now += 0.2
    producer.replace_if_needed()
    assert old.calls == ["produce", "purge", "flush"]
    new: Any = producer._producer
    assert new is not old
    producer.replace_if_needed()
    assert producer._producer is new


def test_fatal_error_replaces_the_producer(producer: ReplaceableProducer) -> None:
    old: Any = producer._producer
    producer._fatal = "out of order sequence"
    producer.replace_if_needed()
    assert old.calls == ["purge", "flush"]
    assert producer._producer is not old


@pytest.mark.parametrize(
    "error",
    [
        KafkaException(KafkaError(KafkaError._FATAL, "cluster authorization failed")),
        SystemError("a report was due as well"),
    ],
)
def test_fatal_error_from_a_poll_replaces_the_producer_once_a_second(
    producer: ReplaceableProducer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_self: FakeProducer, _timeout_s: float) -> None:
        raise error

    now = 100.0
    monkeypatch.setattr("stoplog.client.transport.producer.monotonic", lambda: now)
    monkeypatch.setattr(FakeProducer, "poll", fail)
    old = producer._producer
    producer.poll()
    producer.replace_if_needed()
    second = producer._producer
    assert second is not old
    producer.poll()
    producer.replace_if_needed()
    assert producer._producer is second
    now += 1.0
    producer.replace_if_needed()
    assert producer._producer is not second


def test_producer_without_a_token_refuses_records_until_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stoplog.kafka.clients, "Producer", FakeProducer)
    now = 100.0
    monkeypatch.setattr("stoplog.client.transport.producer.monotonic", lambda: now)
    endpoint = TokenEndpoint({"gateway": "secret"})
    endpoint.down = True
    client = OAuthClient(endpoint.url, "gateway", lambda: "secret")
    connection = KafkaConnection("k:1", Security("SASL_SSL", mechanism="OAUTHBEARER", oauth=client))
    producer = ReplaceableProducer(connection, 100, threading.Event())
    with pytest.raises(KafkaException):
        producer.connect()
    with pytest.raises(Unavailable, match="no token for Kafka"):
        producer.send(CHECKS, b"batch")
    assert "no token for Kafka" in (producer.take_broker_down() or "")
    endpoint.down = False
    assert connection.tokens is not None
    connection.tokens.renew()
    now += 1.0
    producer.connect()
    endpoint.close()
    assert isinstance(producer._producer, FakeProducer)
