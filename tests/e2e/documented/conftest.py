"""One system for all commands and examples of the documentation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stoplog_gateway.access.local_token import TOKEN_FILE, ensure_local_token

from tests.support.broker import fresh_broker
from tests.support.system import System, running_system


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("documented")
    # A deadline that a busy machine does not miss, because a check that fails open prints something else.
    tokens_file = ensure_local_token(folder)
    with (
        fresh_broker() as broker,
        running_system(broker, folder, deadline_ms=10_000, tokens_file=tokens_file) as system,
    ):
        token = (folder / TOKEN_FILE).read_text().strip()
        system.gateways[0].http.headers["Authorization"] = f"Bearer {token}"
        system.wait_reservations()
        yield system
