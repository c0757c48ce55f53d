"""docker/envoy/envoy.yaml under a real Envoy, which asks over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ports import free_port
from tests.broker import CHECKOUT
from tests.e2e.proxies.proxied import Proxied, running_proxy
from tests.system import Process, System, eventually
from tests.upstream import upstream

CONFIG = CHECKOUT / "docker" / "envoy" / "envoy.yaml"
PROGRAM = CHECKOUT / ".venv" / "envoy" / "envoy" / "_bin" / "envoy"


def configuration(folder: Path, *, listen: int, sluice: int, app: int) -> Path:
    """The example with these ports and more patience."""
    text = CONFIG.read_text()
    for example, here in (
        ("port_value: 10000}", f"port_value: {listen}}}"),
        ("port_value: 8081}", f"port_value: {sluice}}}"),
        ("port_value: 3000}", f"port_value: {app}}}"),
        (" timeout: 0.5s\n", " timeout: 30s\n"),
    ):
        assert text.count(example) == 1
        text = text.replace(example, here)
    config = folder / "envoy.yaml"
    config.write_text(text)
    return config


@pytest.fixture(scope="module")
def proxied(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    assert PROGRAM.is_file(), "these tests need Envoy: make .venv/envoy"
    folder = tmp_path_factory.mktemp("envoy")
    port, sluice = free_port(), free_port()
    gateway = system.add_gateway(deadline_ms=20_000, envoy=f"127.0.0.1:{sluice}")
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    with upstream() as app:
        config = configuration(folder, listen=port, sluice=sluice, app=app.server_port)
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        envoy = Process(
            "envoy", [str(PROGRAM), "-c", str(config), *options], env={}, log=folder / "envoy.log"
        )
        with running_proxy(envoy, port, gateway, app) as running:
            yield running


def test_n_requests_come_through_and_the_others_are_429(proxied: Proxied) -> None:
    gateway, app, http = proxied
    gateway.set_limits("127.0.0.1", "3/hour")
    responses = [http.get(f"/{i}", headers={"x-forwarded-for": f"192.0.2.{i}"}) for i in range(5)]
    assert [response.status_code for response in responses] == [200, 200, 200, 429, 429]
    assert app.paths == ["/0", "/1", "/2"]
    assert [response.headers["x-ratelimit-limit"] for response in responses] == ["3"] * 5
    left = [response.headers["x-ratelimit-remaining"] for response in responses]
    assert left == ["2", "1", "0", "0", "0"]
    assert all("retry-after" not in response.headers for response in responses[:3])
    for response in responses:
        reset = response.headers["x-ratelimit-reset"]
        assert 3_590 <= int(reset) <= 3_660
        assert response.headers["ratelimit-policy"] == '"default";q=3'
        remaining = response.headers["x-ratelimit-remaining"]
        assert response.headers["ratelimit"] == f'"default";r={remaining};t={reset}'
    for denied in responses[3:]:
        assert denied.headers["retry-after"] == denied.headers["x-ratelimit-reset"]


def test_each_descriptor_has_counters_and_limits_of_its_own(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "100/hour")
    gateway.set_limits("127.0.0.1?resource=path%3D/login", "1/hour")
    before = gateway.check("127.0.0.1", cost=0)["remaining"]
    responses = [http.post(path, content=b"abc") for path in ("/login", "/login?x", "/")]
    assert [response.status_code for response in responses] == [200, 429, 200]
    assert [response.headers["x-ratelimit-limit"] for response in responses] == ["1", "1", "100"]
    # Of the second sign-in the client itself was charged: each descriptor is decided on its own.
    assert gateway.check("127.0.0.1", cost=0)["remaining"] == before - 3


def test_without_a_gateway_all_comes_through(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "0/hour")
    assert http.get("/").status_code == 429
    gateway.kill()
    responses = [http.get("/") for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    assert all("x-ratelimit-limit" not in response.headers for response in responses)
