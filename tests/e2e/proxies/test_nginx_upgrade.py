"""A request cannot be hidden in another one behind nginx with the usual header fields for WebSockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import add_token
from stoplog_gateway.ports import free_port, is_free

from tests.support.programs import path_of
from tests.support.system import Process, eventually

pytestmark = pytest.mark.needs("nginx")

CONFIG = """
events {{}}
http {{
  access_log off;
  {temporary}
  upstream stoplog {{ server 127.0.0.1:{gateway}; keepalive 1; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  server {{
    listen 127.0.0.1:{port};
    location = /v1/check {{
      proxy_pass http://stoplog;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Authorization "Bearer {token}";
    }}
  }}
}}
"""
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket"}


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


@pytest.fixture(scope="module")
def token(tokens_file: Path) -> str:
    """The token of nginx: without one, a gateway on loopback does not serve callers behind proxies."""
    return add_token(tokens_file, "nginx", frozenset({Scope.CHECK}))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tokens_file: Path, token: str) -> Iterator[int]:
    """A gateway without a store: it fails open."""
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()
    env = {
        "STOPLOG_PORT": str(port),
        "STOPLOG_KAFKA": f"127.0.0.1:{free_port()}",
        "STOPLOG_TOKENS_FILE": str(tokens_file),
        "STOPLOG_DRAIN_S": "0",
    }
    process = Process(
        "gateway", [sys.executable, "-m", "stoplog_gateway", "gateway"], env=env, log=folder / "gateway.log"
    )
    process.start()
    try:
        eventually("the gateway listens", lambda: not is_free(port), on_failure=process.tail)
        yield port
    finally:
        process.stop()


@pytest.fixture(scope="module")
def nginx(gateway: int, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of nginx, which passes only ``/v1/check`` on."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = Path(folder, "nginx.conf")
    config.write_text(CONFIG.format(temporary=temporary, gateway=gateway, port=port, token=token))
    options = f"daemon off; pid {folder}/nginx.pid;"
    command = [path_of("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config), "-g", options]
    process = Process("nginx", command, env={}, log=folder / "nginx.log")
    process.start()
    try:
        eventually("nginx listens", lambda: not is_free(port), on_failure=process.tail)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        process.stop()


def test_request_hidden_in_a_body_is_not_answered(nginx: httpx.Client) -> None:
    headers = {**UPGRADE, "content-type": "application/json"}
    for _ in range(5):
        response = nginx.post("/v1/check", content=HIDDEN, headers=headers)
        assert response.status_code == 400
        assert response.json()["type"] == "urn:stoplog:problem:malformed-json"
        # A response to the hidden request would be the next one on nginx's connection to the gateway.
        assert nginx.post("/v1/check", json={"client_id": "a"}).json()["allowed"]


def test_check_that_offers_another_protocol_is_answered(nginx: httpx.Client) -> None:
    response = nginx.post("/v1/check", json={"client_id": "a"}, headers=UPGRADE)
    assert response.json()["allowed"]


@pytest.mark.needs("curl")
def test_curl_that_offers_h2c_is_answered(gateway: int) -> None:
    command = [path_of("curl"), "-s", "--http2", f"http://127.0.0.1:{gateway}/v1/check"]
    command += ["-H", "Content-Type: application/json", "-d", '{"client_id": "a"}']
    done = subprocess.run(
        command, capture_output=True, check=True, timeout=30, env={**os.environ, "no_proxy": "*"}
    )
    assert b'"allowed":true' in done.stdout
