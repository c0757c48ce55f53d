"""Fixtures of several integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.worker_bench import Bench


@pytest.fixture
def bench(fresh_kafka: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Run a consumer thread with the partition and the settings of the test's parameters."""
    partition, settings = request.param
    bench = Bench(fresh_kafka, tmp_path, partition, **settings)
    yield bench
    bench.close()
