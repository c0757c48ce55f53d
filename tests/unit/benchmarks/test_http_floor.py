from __future__ import annotations

from pathlib import Path

import httpx

from tests.benchmarks.http_floor import ConstantPath
from tests.benchmarks.peers.servers import http_floor


def test_floor_answers_each_check_with_the_same_bytes(tmp_path: Path) -> None:
    with http_floor(tmp_path) as server, httpx.Client(trust_env=False) as http:
        url = f"http://127.0.0.1:{server.port}/v1/check"
        first, second = (http.post(url, json={"client_id": name}) for name in ("alice", "bob"))
        assert http.get(url).status_code == 404
    assert first.status_code == 200
    assert first.json()["allowed"] is True
    assert second.content == first.content


def test_floor_remembers_heads_as_the_gateway_does() -> None:
    path, head = ConstantPath(), b"POST /v1/check HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
    handler = path.handler_for(b"POST", b"/v1/check", 2, [], [], None)
    assert handler is not None
    path.remember(head, handler, 2, target=b"/v1/check", fields=[])
    assert path.known_heads.find(head) == (handler, 2)
