"""One system for all commands and examples of the documentation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.broker import fresh_broker
from tests.support.system import System, running_system


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("documented")
    # A deadline that a busy machine does not miss, because a check that fails open prints something else.
    with fresh_broker() as broker, running_system(broker, folder, deadline_ms=10_000) as system:
        yield system
