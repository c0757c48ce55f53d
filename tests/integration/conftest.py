"""What several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.worker_bench import Bench


@pytest.fixture
def bench(fresh_kafka: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Of the partition that the test names; settings, too, are its own."""
    partition, settings = request.param
    made = Bench(fresh_kafka, tmp_path, partition, **settings)
    yield made
    made.close()
