"""Fixtures of the fault tests: a cluster with three workers, and the table of measurements."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.report import ROWS, table
from tests.support.faults.rigs import Rigs


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    made = Rigs(lambda: tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("seconds of failing open, by fault")
        terminalreporter.write_line(table())
