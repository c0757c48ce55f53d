from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from stoplog.errors import Busy, UpgradeFirst
from tests.support.fake_limiter import FakeLimiter


async def test_unknown_path_is_a_404(http: httpx.AsyncClient) -> None:
    response = await http.get("/v2/check")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["field"] == "path"
    assert response.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("GET", "/v1/check", "POST"),
        ("POST", "/v1/limits/alice", "GET, HEAD, PUT, DELETE"),
        ("PATCH", "/v1/default", "GET, HEAD, PUT, DELETE"),
        ("POST", "/v1/limits", "GET, HEAD"),
    ],
)
async def test_unsupported_method_is_a_405_with_the_allowed_ones(
    method: str, url: str, allowed: str, http: httpx.AsyncClient
) -> None:
    response = await http.request(method, url)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["remedy"] == f"use {allowed}"


@pytest.mark.parametrize("url", ["/v1/limits/alice", "/v1/plans/free", "/v1/default", "/v1/limits"])
async def test_busy_store_is_a_503_with_retry_after(
    url: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.error = Busy("16 wait")
    response = await http.get(url)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:stoplog:problem:busy"
    assert "Retry-After" in response.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("POST", "/v1/reservations", {"client_id": "alice"}),
        ("PUT", "/v1/limits/alice", {"limits": ["10 in flight"]}),
    ],
)
async def test_feature_that_an_old_worker_cannot_read_is_a_409_with_its_name(
    method: str, url: str, body: dict[str, Any], http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.error = UpgradeFirst("these", ["worker-2@old"])
    response = await http.request(method, url, json=body)
    assert response.status_code == 409
    assert response.json()["type"] == "urn:stoplog:problem:upgrade-first"
    assert response.json()["remedy"] == "upgrade worker worker-2@old first, or stop it"


async def test_bug_is_one_log_entry_and_a_500_without_internals(
    http: httpx.AsyncClient, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError("secret")
    response = await http.post("/v1/check", json={"client_id": "alice"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("POST", "/v1/check", b'{"%s": 1}' % (b"x" * 500_000)),
        ("PUT", "/v1/default", b'{"limits": {"%s": 1}}' % (b"x" * 500_000)),
        ("PUT", "/v1/default", b'{"limits": "%s1.5/day"}' % (b" " * 500_000)),
        ("GET", f"/v2/{'x' * 50_000}", b""),
        ("GET", f"/v1/limits?{'x' * 50_000}=1", b""),
    ],
)
async def test_long_text_of_a_request_is_truncated_in_the_response(
    method: str, url: str, body: bytes, http: httpx.AsyncClient
) -> None:
    headers = {"content-type": "application/json"}
    response = await http.request(method, url, content=body, headers=headers)
    assert response.status_code in (404, 422)
    assert len(response.content) < 2_000


async def test_line_feed_in_a_path_is_escaped_in_the_log(
    http: httpx.AsyncClient, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError()
    assert (await http.get("/v1/authorize/a%0Ab", headers={"x-client-id": "a"})).status_code == 500
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == r"bug in GET '/v1/authorize/a\nb'"
