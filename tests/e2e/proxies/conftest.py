"""One broker and one worker for the tests of all proxies. Each module starts its own gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.broker import fresh_broker
from tests.support.system import System, running_system


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    with fresh_broker() as broker, running_system(broker, folder, gateways=0) as running:
        yield running
