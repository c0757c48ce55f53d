"""Fixtures of all suites. What a test needs is started or fetched; nothing is skipped for lack of it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.broker import fresh_broker
from tests.support.reaper import reaping

# Property tests are random each time; a failure prints what reproduces it. A slow machine is no failure.
settings.register_profile("stoplog", deadline=None, print_blob=True)
settings.load_profile("stoplog")

# Processes of pytest-xdist find a terminal's size there, and a console of Rich takes it for good when made.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: what was not run was not proven."""
    report = yield
    if report.skipped and "CI" in os.environ:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def _reaper() -> Iterator[None]:
    with reaping():
        yield


@pytest.fixture(scope="module")
def fresh_kafka() -> Iterator[Broker]:
    """A broker of the module's own with the topics of topics.yaml, empty; may be stopped or paused."""
    with fresh_broker() as broker:
        yield broker
