"""A healthy system logs no warnings and no errors, from its first start on."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.partitioning import partition_of
from tests.support.system import running_system

TIMEOUT_S = 1
"""Faust's stream timeout in this test (300 s by default). A stream without progress then counts as stuck."""
COMMIT_INTERVAL_S = 0.2
"""Faust's commit interval (2.8 s by default). Faust examines its streams every 2.5 intervals."""
WATCHED_S = 8
"""Several of Faust's timeouts. The test is about time that passes without an event, so it sleeps."""
CLIENTS = {partition_of(name, 4): name for name in (f"client-{number}" for number in range(40))}
"""A client of each partition."""
FAULT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
FAUST = {"STREAM_PROCESSING_TIMEOUT": str(TIMEOUT_S), "BROKER_COMMIT_INTERVAL": str(COMMIT_INTERVAL_S)}


@pytest.mark.timeout(180)
def test_healthy_system_logs_no_warning_or_error_from_its_first_start_on(
    fresh_kafka: Broker, tmp_path: Path
) -> None:
    with running_system(fresh_kafka, tmp_path, workers=0, gateways=0) as system:
        for _ in range(2):
            system.add_worker(env=FAUST)
        gateway = system.add_gateway(deadline_ms=10_000)  # a slow machine is not a fault
        system.wait_ready()
        for client in CLIENTS.values():
            # Faust assigns the partitions of limit-updates. Each has a record now.
            gateway.set_limits(client, "5/minute")
        until = time.monotonic() + WATCHED_S
        while time.monotonic() < until:
            for client in CLIENTS.values():
                gateway.check(client)
            time.sleep(0.2)
        lines = {process.name: process.log.read_text().splitlines() for process in (*system.workers, gateway)}
    assert any("judging from offset" in line for line in lines["worker-1"]), "the log is incomplete"
    faults = [f"{name}: {line}" for name, found in lines.items() for line in found if FAULT.search(line)]
    assert not faults, "\n".join(faults)
