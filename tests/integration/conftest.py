"""What several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.broker import Broker
from tests.integration.bench import Bench


@pytest.fixture
def bench(fresh_kafka: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Of the partition that the test names; settings, too, are its own."""
    partition, settings = request.param
    made = Bench(fresh_kafka, tmp_path, partition, **settings)
    yield made
    made.close()
