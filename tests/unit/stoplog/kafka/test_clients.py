from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from stoplog.kafka import clients
from stoplog.kafka.connection import KafkaConnection

Config = dict[str, Any]

SDK = ["check_producer", "sdk_admin", "sdk_consumer"]
WORKER = ["changelog_producer", "reply_producer", "worker_consumer"]


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """Return the configuration with which a function creates its client."""
    created: list[Config] = []

    def create(config: Config, logger: Any = None) -> None:
        created.append(config if logger is None else {**config, "logger": logger})

    monkeypatch.setattr(clients, "Producer", create)
    monkeypatch.setattr(clients, "LastingConsumer", lambda config: create(config()))
    monkeypatch.setattr(clients, "ExplainingAdmin", lambda _, config: create(config))

    def read(name: str) -> Config:
        arguments: dict[str, tuple[Any, ...]] = {
            "check_producer": (2_000, print),
            "changelog_producer": (2_000,),
            "reply_producer": (2_000,),
            "worker_consumer": ("stoplog",),
        }
        getattr(clients, name)(KafkaConnection("kafka:9092"), *arguments.get(name, ()))
        return created.pop()

    return read


@pytest.mark.parametrize("name", [*SDK, *WORKER, "silent_admin"])
def test_every_client_is_created_for_the_given_servers(name: str, config_of: Callable[[str], Config]) -> None:
    assert config_of(name)["bootstrap.servers"] == "kafka:9092"


@pytest.mark.parametrize("name", SDK)
def test_clients_of_the_sdk_never_create_topics(name: str, config_of: Callable[[str], Config]) -> None:
    assert config_of(name)["allow.auto.create.topics"] is False


@pytest.mark.parametrize("name", ["sdk_consumer", "worker_consumer"])
def test_consumers_bound_memory_and_commit_nothing_on_their_own(
    name: str, config_of: Callable[[str], Config]
) -> None:
    config = config_of(name)
    assert config["enable.auto.commit"] is False
    assert config["fetch.max.bytes"] == 8 * 1024 * 1024
    assert config["receive.message.max.bytes"] == 16 * 1024 * 1024


@pytest.mark.parametrize("name", ["check_producer", "changelog_producer"])
def test_producers_of_the_log_write_once_to_all_replicas(
    name: str, config_of: Callable[[str], Config]
) -> None:
    config = config_of(name)
    assert (config["enable.idempotence"], config["acks"]) == (True, "all")


def test_replies_are_sent_at_once_and_never_again(config_of: Callable[[str], Config]) -> None:
    config = config_of("reply_producer")
    assert (config["acks"], config["linger.ms"]) == (1, 0)
    assert "enable.idempotence" not in config


@pytest.mark.parametrize("name", [*SDK, *WORKER])
def test_lines_of_librdkafka_are_logged_at_debug(
    name: str, config_of: Callable[[str], Config], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config_of(name)["logger"].log(logging.ERROR, "%s: broker is down", "kafka:9092")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "kafka:9092: broker is down")
    ]


def test_sdk_consumer_reports_the_end_and_shortens_waits_only_on_demand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created: list[Config] = []
    monkeypatch.setattr(clients, "LastingConsumer", lambda config: created.append(config()))
    connection = KafkaConnection("kafka:9092")
    clients.sdk_consumer(connection)
    clients.sdk_consumer(connection, report_end=True, fetch_wait_ms=10)
    plain, reader = created
    assert reader.keys() - plain.keys() == {"enable.partition.eof", "fetch.wait.max.ms"}
    assert (reader["enable.partition.eof"], reader["fetch.wait.max.ms"]) == (True, 10)
