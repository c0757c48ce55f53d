"""Limiters in programs and servers that fork, and in real web servers of Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.broker import CHECKOUT
from tests.support.forking import KINDS
from tests.support.system import PATIENCE_S, System, running_system

PATIENT_MS = 30_000
"""Deadline and publish timeout of limiters whose checks must be decided, on a busy machine too."""


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run a broker, a worker and a gateway for all tests of the module."""
    with running_system(fresh_kafka, tmp_path_factory.mktemp("servers")) as system:
        yield system


def environment(system: System) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "gateway", CHECKOUT / "streams"))),
        "STOPLOG_KAFKA": system.bootstrap,
        "STOPLOG_DEADLINE_MS": str(PATIENT_MS),
        "STOPLOG_PUBLISH_TIMEOUT_MS": str(PATIENT_MS),
        "STOPLOG_APPLY_TIMEOUT_MS": str(2 * PATIENT_MS),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_child_of_a_process_with_a_limiter_is_a_node_of_its_own(system: System, kind: str) -> None:
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.support.forking", kind]
    ended = subprocess.run(
        program, env=environment(system), capture_output=True, text=True, timeout=PATIENCE_S, cwd=CHECKOUT
    )
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    processes = {"spawn": 2, "within": 1, "destroyed": 0}.get(kind, 3)
    assert len({pid for pid, *_ in answers}) == processes
    for pid, node_id, allowed, degraded, _ in answers:
        assert node_id.endswith(f"-{pid}")
        assert allowed
        assert not degraded
