"""A system whose credentials are tokens that soon expire, on a broker that ends their sessions."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from stoplog.kafka.acls import ROLES
from tests.support.secure_kafka import secure_kafka
from tests.support.system import System, eventually
from tests.support.up import environment, stoplog

SESSION_MS: Final = 3_600_000
"""Longest session that the broker allows. The lifetime of the token is shorter, and ends it."""


def run_with_short_tokens(folder: Path, *, lifetime_s: float, steady_s: float, down_s: float) -> None:
    """Check for *steady_s*, then with a token endpoint that is down for *down_s*, then again.

    Args:
        folder: For the system's files.
        lifetime_s: Lifetime of the tokens, in seconds.
        steady_s: Seconds in which no check may fail open.
        down_s: Seconds without a token endpoint. They exceed the lifetime, so checks fail open.

    Raises:
        AssertionError: A check failed open while the endpoint was up, none did while it was down, or the
            system did not recover.
    """
    users = [f"stoplog-{role}" for role in ROLES]
    with secure_kafka(*users, topics=True, reauth_ms=SESSION_MS) as kafka, ExitStack() as stack:
        kafka.grant(stoplog("topics", "acls", env=environment(folder)).stdout)
        kafka.endpoint.lifetime_s = lifetime_s
        system = System(kafka.broker, folder, stack, deadline_ms=3_000)
        worker = system.add_worker(**kafka.oauth("stoplog-worker"))
        gateway = system.add_gateway(**kafka.oauth("stoplog-gateway"))
        system.wait_ready()
        degraded = _degraded_checks(gateway.check, steady_s)
        assert degraded == 0, system.logs()
        requests = len(kafka.endpoint.requests)
        assert requests >= 2 * steady_s / lifetime_s, "the tokens were not renewed"
        kafka.endpoint.down = True
        assert _degraded_checks(gateway.check, down_s) > 0, "no check failed open without a valid token"
        assert worker.status is None, system.logs()
        assert gateway.status is None, system.logs()
        assert gateway.lines("WARNING", "no new token for Kafka")
        kafka.endpoint.down = False
        eventually(
            "checks are decided again", lambda: not gateway.check("x")["degraded"], on_failure=system.logs
        )
        system.wait_ready()


def _degraded_checks(check: object, seconds: float) -> int:
    assert callable(check)
    until, degraded = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        degraded += check("steady", cost=0)["degraded"]
        time.sleep(0.05)
    return degraded
