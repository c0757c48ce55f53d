"""A worker killed between every two steps of its flush: all that it decided is what the log says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stoplog_gateway.ports import is_free

from stoplog.partitioning import partition_of
from tests.support.broker import fresh_broker
from tests.support.dying_worker import DIED, FIRST_POINTS, POINTS
from tests.support.faults.oracle import Oracle, check_state, checkpointed, read_tables
from tests.support.system import Gateway, Process, System, eventually, running_system

STEADY = [f"steady-{number}" for number in range(8)]
"""Clients, some in each partition, that never come to their limit: there is always something to flush."""
assert {partition_of(client, 4) for client in STEADY} == {0, 1, 2, 3}
_PAUSE_S = 0.02
SETTINGS: Any = {"session_timeout_ms": 1_500, "flush_interval_ms": 100}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One log for all kills."""
    folder = tmp_path_factory.mktemp("system")
    with fresh_broker() as broker, running_system(broker, folder, workers=0, gateways=0) as made:
        made.add_worker(**SETTINGS)
        made.add_gateway()
        made.wait_ready()
        for client in STEADY:
            made.gateways[0].set_limits(client, "1000000/hour")
        yield made


@contextmanager
def load(system: System, name: str) -> Iterator[None]:
    """Checks from four callers at once, by *STEADY* and by clients that soon are at their limit."""
    gateway, stopping = system.gateways[0], threading.Event()

    def call(caller: int) -> None:
        number = caller
        while not stopping.wait(_PAUSE_S):
            number += 7
            client = f"{name}-{number % 24}"
            for asking in (client, STEADY[number % 8]):
                gateway.http.post("/v1/check", json={"client_id": asking, "cost": number % 4})
            if number % 90 == 0:
                # While nobody is there it is stored, and takes effect later.
                gateway.http.put(f"/v1/limits/{client}", json={"limits": [f"{number % 40}/minute"]})

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def run_as(worker: Process, *module: str) -> None:
    worker._command = [sys.executable, "-m", *module]
    worker.start()


def answered(gateway: Gateway) -> bool:
    """Whether checks are answered from the store, in every partition."""
    return not any(gateway.check(client, cost=0)["degraded"] for client in STEADY)


@pytest.mark.parametrize("point", POINTS)
def test_worker_killed_between_checkpoint_steps_loses_nothing(system: System, point: str) -> None:
    [worker] = system.workers
    if worker.status is None:
        assert worker.stop() == 0
    with load(system, point):
        run_as(worker, "tests.support.dying_worker", point)
        die_and_be_followed(system)
    compare(system)


@pytest.mark.parametrize("point", FIRST_POINTS)
def test_worker_killed_in_its_first_checkpoint_loses_nothing(tmp_path: Path, point: str) -> None:
    with fresh_broker() as broker, running_system(broker, tmp_path, workers=0, gateways=0) as system:
        gateway = system.add_gateway()
        eventually("the gateway listens", lambda: not is_free(gateway.port), on_failure=system.logs)
        with load(system, point):
            system.add_worker("tests.support.dying_worker", point, **SETTINGS)
            die_and_be_followed(system)
        compare(system)


def die_and_be_followed(system: System) -> None:
    [worker], [gateway] = system.workers, system.gateways
    eventually("it died", lambda: worker.status is not None, on_failure=system.logs)
    assert worker.status == DIED, worker.tail()
    run_as(worker, "stoplog_worker", "worker")
    eventually("another has taken over", lambda: answered(gateway), on_failure=system.logs)


def compare(system: System) -> None:
    """Stop the worker; its replies, its changelogs and its tables are what the log says."""
    [worker] = system.workers
    oracle = Oracle(system.broker.bootstrap)
    # What the gateway let through may still be on its way into the log.
    eventually("all is flushed", lambda: checkpointed(oracle.read(), oracle.stored()), on_failure=system.logs)
    truths = oracle.read()
    assert worker.stop() == 0
    assert oracle.check_replies(truths) > 0
    stored = oracle.stored()
    for partition, truth in enumerate(truths):
        check_state(partition, truth, stored[partition], "changelog")
        tables = read_tables(Path(worker.log.parent, worker.name), partition)
        check_state(partition, truth, tables, "tables")
