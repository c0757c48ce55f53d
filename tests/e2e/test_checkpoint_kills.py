"""A worker is killed between every two steps of a checkpoint. Replies and state still agree with the log."""

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
"""Clients in every partition that never reach their limits, so every checkpoint has counters to write."""
assert {partition_of(client, 4) for client in STEADY} == {0, 1, 2, 3}
_PAUSE_S = 0.02
SETTINGS: Any = {"session_timeout_ms": 1_500, "flush_interval_ms": 100}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system, with one log, for all kills."""
    folder = tmp_path_factory.mktemp("system")
    with fresh_broker() as broker, running_system(broker, folder, workers=0, gateways=0) as running:
        running.add_worker(**SETTINGS)
        running.add_gateway()
        running.wait_ready()
        for client in STEADY:
            running.gateways[0].set_limits(client, "1000000/hour")
        yield running


@contextmanager
def load(system: System, name: str) -> Iterator[None]:
    """Send checks from four callers at once, of *STEADY* and of clients that soon reach their limits."""
    gateway, stopping = system.gateways[0], threading.Event()

    def call(caller: int) -> None:
        number = caller
        while not stopping.wait(_PAUSE_S):
            number += 7
            client = f"{name}-{number % 24}"
            for client_id in (client, STEADY[number % 8]):
                gateway.http.post("/v1/check", json={"client_id": client_id, "cost": number % 4})
            if number % 90 == 0:
                # Without a worker, the limit is stored and takes effect later.
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
    """Return whether the store answers checks in every partition."""
    return not any(gateway.check(client, cost=0)["degraded"] for client in STEADY)


@pytest.mark.parametrize("point", POINTS)
def test_worker_killed_between_checkpoint_steps_loses_nothing(system: System, point: str) -> None:
    [worker] = system.workers
    if worker.status is None:
        assert worker.stop() == 0
    with load(system, point):
        run_as(worker, "tests.support.dying_worker", point)
        await_death_and_restart(system)
    compare(system)


@pytest.mark.parametrize("point", FIRST_POINTS)
def test_worker_killed_in_its_first_checkpoint_loses_nothing(tmp_path: Path, point: str) -> None:
    with fresh_broker() as broker, running_system(broker, tmp_path, workers=0, gateways=0) as system:
        gateway = system.add_gateway()
        eventually("the gateway listens", lambda: not is_free(gateway.port), on_failure=system.logs)
        with load(system, point):
            system.add_worker("tests.support.dying_worker", point, **SETTINGS)
            await_death_and_restart(system)
        compare(system)


def await_death_and_restart(system: System) -> None:
    [worker], [gateway] = system.workers, system.gateways
    eventually("the worker has died", lambda: worker.status is not None, on_failure=system.logs)
    assert worker.status == DIED, worker.tail()
    run_as(worker, "stoplog_worker", "worker")
    eventually("the new worker answers", lambda: answered(gateway), on_failure=system.logs)


def compare(system: System) -> None:
    """Stop the worker; compare its replies, its changelogs and its tables with the log."""
    [worker] = system.workers
    oracle = Oracle(system.broker.bootstrap)
    # Checks that failed open may still be on their way into the log.
    eventually(
        "the checkpoints are complete",
        lambda: checkpointed(oracle.read(), oracle.stored()),
        on_failure=system.logs,
    )
    truths = oracle.read()
    assert worker.stop() == 0
    assert oracle.check_replies(truths) > 0
    stored = oracle.stored()
    for partition, truth in enumerate(truths):
        check_state(partition, truth, stored[partition], "changelog")
        tables = read_tables(Path(worker.log.parent, worker.name), partition)
        check_state(partition, truth, tables, "tables")
