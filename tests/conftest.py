"""Shared by all suites: skips for missing programs, an end for every child process, and a broker."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.broker import fresh_broker
from tests.support.programs import install_commands, missing
from tests.support.reaper import reaping
from tests.support.signals import default_signals_for_children

# Property tests use random inputs and print what reproduces a failure. A slow machine is no failure.
settings.register_profile("stoplog", deadline=None, print_blob=True)
settings.load_profile("stoplog")

# pytest-xdist sets the size of the terminal for its processes, and a Rich console keeps its first size.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

_MISSING = "missing program"
"""Name of the property with which a skipped test's report names the program that it needs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--allow-no-tests``."""
    parser.addoption(
        "--allow-no-tests",
        action="store_true",
        help="End with 0, not 5, if -k or -m selects no test: one of several runs may have none.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker ``needs``."""
    config.addinivalue_line("markers", "needs(*programs): programs of tests/support/programs.py that it runs")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a missing program, before its fixtures start anything."""
    for marker in item.iter_markers("needs"):
        for program in missing(marker.args):
            item.user_properties.append((_MISSING, program.name))
            pytest.skip(f"{program.name} is not installed: {program.install}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI: a test that did not run proves nothing."""
    report = yield
    if report.skipped and "CI" in os.environ:
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the programs for lack of which tests were skipped, and the commands that install them."""
    skipped = Counter(
        program
        for report in terminalreporter.stats.get("skipped", ())
        for key, program in getattr(report, "user_properties", ())
        if key == _MISSING
    )
    if skipped:
        terminalreporter.section("skipped for lack of a program")
        for program, tests in sorted(skipped.items()):
            terminalreporter.write_line(f"{program}: {tests} {'test' if tests == 1 else 'tests'}")
        for command in install_commands(skipped):
            terminalreporter.write_line(f"To run them: {command}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End with 0 if no test was selected and ``--allow-no-tests`` was given."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("--allow-no-tests"):
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    """Child processes find no signal ignored, and none of them outlives the run."""
    with default_signals_for_children(), reaping():
        yield


@pytest.fixture(scope="module")
def fresh_kafka() -> Iterator[Broker]:
    """Run an empty broker for the module, with the topics of topics.yaml; tests may stop or pause it."""
    with fresh_broker() as broker:
        yield broker
