"""docker/nginx/nginx.conf with a real nginx: auth_request, with its refusals turned into 429."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from tests.support.proxied import Proxied
from tests.support.proxies import running_nginx
from tests.support.system import System, eventually

pytestmark = pytest.mark.needs("nginx")


@pytest.fixture(scope="module")
def proxied(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    gateway = system.add_gateway(deadline_ms=20_000)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    with running_nginx(tmp_path_factory.mktemp("nginx"), gateway) as running:
        yield running


def test_nginx_beyond_limit_answers_429(proxied: Proxied) -> None:
    gateway, app, http = proxied
    gateway.set_limits("127.0.0.1", "3/hour")
    responses = [
        *(http.get(f"/{i}?plan=gold", headers={"x-client-id": "another"}) for i in range(2)),
        *(http.post(f"/{i}", content=b"abc") for i in range(2, 5)),
    ]
    assert [response.status_code for response in responses] == [200, 200, 200, 429, 429]
    assert app.paths == ["/0?plan=gold", "/1?plan=gold", "/2"]
    for left, response in enumerate(responses[:3]):
        assert response.headers["ratelimit"].startswith(f'"default";r={2 - left};t=')
        assert "retry-after" not in response.headers
    denied = responses[-1]
    assert 3_590 <= int(denied.headers["retry-after"]) <= 3_660
    assert denied.headers["ratelimit"] == f'"default";r=0;t={denied.headers["retry-after"]}'
    assert denied.headers["ratelimit-policy"] == '"default";q=3'


def test_nginx_application_refusal_reaches_caller_unchanged(proxied: Proxied) -> None:
    gateway, app, http = proxied
    gateway.set_limits("127.0.0.1", "100/hour")
    for status in (401, 403, 500):
        app.status = status
        assert http.get("/").status_code == status
    app.status = 200


def test_nginx_keeps_its_connection_to_the_gateway(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "2/hour")

    def connections() -> list[int]:
        """Return the local ports of nginx's connections to the gateway."""
        processes = [process for process in psutil.process_iter() if process.name() == "nginx"]
        sockets = [socket for process in processes for socket in process.net_connections("tcp")]
        return [socket.laddr.port for socket in sockets if socket.raddr and socket.raddr.port == gateway.port]

    gateway.http.post("/v1/clients/127.0.0.1/reset").raise_for_status()
    assert http.get("/").status_code == 200
    before = connections()
    assert len(before) == 1
    assert [http.get("/").status_code for _ in range(3)] == [200, 429, 429]
    assert connections() == before


def test_nginx_without_gateway_fails_open(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "0/hour")
    assert http.get("/").status_code == 429
    gateway.kill()
    responses = [http.get("/") for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    assert all("ratelimit" not in response.headers for response in responses)
