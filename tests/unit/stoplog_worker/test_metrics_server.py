"""A worker's /metrics, on an address and on an inherited socket."""

from __future__ import annotations

import os
import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from stoplog_worker.metrics_server import serve_metrics
from stoplog_worker.settings import Settings

from stoplog.errors import SettingsError


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("seen", "Of the test.", registry=registry).inc()
    return registry


def test_metrics_are_served_on_an_inherited_socket(
    registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        serve_metrics(Settings(metrics_port=1), registry, os.dup(held.fileno()))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/metrics"
        answer = httpx.get(url, trust_env=False).raise_for_status()
    assert "seen_total 1.0" in answer.text
    assert capfd.readouterr().err == ""


def test_metrics_on_a_taken_port_name_the_remedy(registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127.0.0.1:{port} \(.*set STOPLOG_METRICS_PORT to a free"):
            serve_metrics(Settings(metrics_port=port), registry)
