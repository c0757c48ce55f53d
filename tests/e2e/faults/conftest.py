"""Fixtures of the fault tests: one cluster with three workers, and the table of measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.faults.cluster import running_cluster
from tests.support.faults.report import ROWS, table
from tests.support.faults.rig import Rig
from tests.support.system import System, eventually


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with running_cluster(folder) as cluster, ExitStack() as stack:
        # Without a deny cache, every denial has a decision in the log to be compared with.
        settings = {
            "kafka": cluster.bootstrap,
            "topics": cluster.topics,
            "deny_cache": 0,
            "lease_max_ms": 10_000,
        }
        system = System(cluster.nodes[0], folder, stack, **settings)
        rig = Rig(cluster, system)
        for _ in range(3):
            system.add_worker()
        gateway = system.add_gateway()
        system.wait_ready()
        eventually(
            "every worker has joined",
            lambda: rig.settled(gateway) and all(worker.lines("generation") for worker in system.workers),
            on_failure=system.logs,
        )
        gateway.stop()
        system.gateways.remove(gateway)
        yield rig


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("seconds of failing open, by fault")
        terminalreporter.write_line(table())
