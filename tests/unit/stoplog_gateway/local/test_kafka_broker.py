"""The embedded broker as a process: start, refusal, and restart on the same data."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from stoplog_gateway.local.kafka_broker import Broker, BrokerFailed
from stoplog_gateway.ports import free_port

from tests.support.broker import QuickBroker, fresh_broker, home_with_jars, make_topics


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with fresh_broker(topics=False) as broker:
        yield broker


def topics(broker: Broker) -> set[str]:
    found = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).topics
    return {name for name in found if not name.startswith("__")}


def test_broker_after_a_stop_keeps_its_data(broker: Broker) -> None:
    make_topics(broker.bootstrap)
    before = topics(broker)
    assert "checks" in before

    broker.stop()
    assert not broker.running
    broker.start()

    assert topics(broker) == before


def test_broker_after_a_kill_keeps_its_data(broker: Broker) -> None:
    make_topics(broker.bootstrap)
    before = topics(broker)

    broker.kill()
    broker.start()

    assert topics(broker) == before


def test_second_broker_on_a_home_names_the_first(broker: Broker) -> None:
    with pytest.raises(BrokerFailed) as refused:
        Broker(broker.home, port=free_port()).start()

    text = str(refused.value)
    assert f"process {broker.pid}, port {broker.port}" in text
    assert "STOPLOG_HOME" in text
    assert "\n" not in text


def test_broker_with_a_taken_port_names_it_and_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerFailed) as refused:
            Broker(home_with_jars(tmp_path), port=port).start()

    text = str(refused.value)
    assert f"port {port} is taken" in text
    assert "STOPLOG_BROKER_PORT" in text
    assert "STOPLOG_KAFKA" in text
    assert "\n" not in text


class Hasty(QuickBroker):
    """A broker whose port was free when it looked, and is taken before it listens on it."""

    looks = 0

    def _refuse_taken_ports(self) -> None:
        self.looks += 1
        if self.looks > 1:
            super()._refuse_taken_ports()


def test_broker_whose_port_another_one_takes_is_not_ready_through_it(broker: Broker, tmp_path: Path) -> None:
    late = Hasty(home_with_jars(tmp_path), port=broker.port)
    with pytest.raises(BrokerFailed, match=f"port {broker.port} is taken: set STOPLOG_BROKER_PORT"):
        late.start()
    late.kill()


def test_broker_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    broker = Broker(home_with_jars(tmp_path), port=free_port(), heap="8m")
    with pytest.raises(BrokerFailed, match=r"OutOfMemoryError|heap"):
        broker.start()
    broker.kill()
