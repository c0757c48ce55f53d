from __future__ import annotations

import pytest

import stoplog.client.engine
from tests.support.fake_kafka import Kafka


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> type[Kafka]:
    """Replace the transport of every engine by a fake; tests may change the attributes of its class."""

    class FakeTransport(Kafka):
        pass

    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", FakeTransport)
    return FakeTransport
