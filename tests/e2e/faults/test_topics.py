"""A topic deleted and made again: a clear stop that says what to do, at each start; no crash loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from gateway.child import USAGE_EXITS
from streams.contract.topics import CHECKS, COUNTERS_CHANGELOG, create_topics, load_topics
from streams.worker import EXIT_CONFIG
from tests.broker import fresh_broker
from tests.system import eventually, running_system


@pytest.mark.parametrize("topic", [CHECKS, COUNTERS_CHANGELOG])
def test_deleted_and_made_again(topic: str, tmp_path: Path) -> None:
    with fresh_broker() as broker, running_system(broker, tmp_path) as system:
        (worker,), (gateway,) = system.workers, system.gateways
        clients = [f"client-{number}" for number in range(40)]
        for client in clients:
            gateway.check(client)
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        admin.delete_topics([topic])[topic].result(10)
        eventually("it is gone", lambda: topic not in admin.list_topics(timeout=10).topics)
        create_topics(admin, load_topics().values())

        def ended() -> bool:
            for client in clients:
                gateway.check(client)
            return worker.status is not None

        eventually("the worker stops", ended, on_failure=system.logs)
        assert worker.status == EXIT_CONFIG
        assert EXIT_CONFIG in USAGE_EXITS  # `sluice up` does not start it again
        (said,) = worker.lines("CRITICAL")
        assert ("counters" if topic == COUNTERS_CHANGELOG else topic) in said
        assert "delete" in said or "remove" in said  # what to do
        worker.start()
        worker.join(30)
        assert worker.status == EXIT_CONFIG
        assert len(worker.lines("CRITICAL")) == 2
