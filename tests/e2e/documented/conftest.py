"""One system for everything that is shown to users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.broker import fresh_broker
from tests.support.system import System, running_system


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("documented")
    # A deadline that a busy machine does not miss: what is let through is none of these tests.
    with fresh_broker() as broker, running_system(broker, folder, deadline_ms=10_000) as system:
        yield system
