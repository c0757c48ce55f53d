"""docker/nginx/nginx.conf with a real nginx: auth_request, with its refusals turned into 429."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.programs import path_of
from tests.support.proxied import Proxied, running_proxy
from tests.support.system import Process, System, eventually
from tests.support.upstream import upstream

pytestmark = pytest.mark.needs("nginx")

CONFIG = CHECKOUT / "docker" / "nginx" / "nginx.conf"


def configuration(folder: Path, *, listen: int, stoplog: int, app: int) -> Path:
    """Write the example with these ports, longer timeouts, and its files in *folder*; return its path."""
    text, patience = re.subn(r"(?<=_timeout )\d+ms;", "30s;", CONFIG.read_text())
    assert patience == 2
    for port, ours in ((8000, listen), (8080, stoplog), (3000, app)):
        assert text.count(f"127.0.0.1:{port};") == 1
        text = text.replace(f"127.0.0.1:{port};", f"127.0.0.1:{ours};")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(text.replace("http {", f"http {{\naccess_log off;\n{temporary}"))
    return config


@pytest.fixture(scope="module")
def proxied(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    gateway = system.add_gateway(deadline_ms=20_000)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    with upstream() as app:
        config = configuration(folder, listen=port, stoplog=gateway.port, app=app.server_port)
        options = f"daemon off; pid {folder}/nginx.pid;"
        nginx = Process(
            "nginx",
            [path_of("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config), "-g", options],
            env={},
            log=folder / "nginx.log",
        )
        with running_proxy(nginx, port, gateway, app) as running:
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


def test_nginx_without_gateway_fails_open(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "0/hour")
    assert http.get("/").status_code == 429
    gateway.kill()
    responses = [http.get("/") for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    assert all("ratelimit" not in response.headers for response in responses)
