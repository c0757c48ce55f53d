"""The examples in docker/envoy with a real Envoy, over gRPC and, with ext_authz, over HTTP."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.docs import all_blocks
from tests.support.proxied import Proxied
from tests.support.proxies import running_envoy
from tests.support.system import System, eventually

pytestmark = pytest.mark.needs("envoy")


@pytest.fixture(scope="module")
def proxied(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    port = free_port()
    gateway = system.add_gateway(deadline_ms=20_000, envoy=f"127.0.0.1:{port}")
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    with running_envoy("envoy.yaml", tmp_path_factory.mktemp("envoy"), gateway, {8081: port}) as running:
        yield running


@pytest.fixture(scope="module")
def authorized(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    gateway = system.add_gateway(deadline_ms=20_000)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    folder = tmp_path_factory.mktemp("ext_authz")
    with running_envoy("ext_authz.yaml", folder, gateway, {8080: gateway.port}) as running:
        yield running


@pytest.fixture(scope="module")
def metered(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    """Envoy with the two blocks of docs/envoy.md about hits after the response."""
    folder = tmp_path_factory.mktemp("metered")
    page = [block.text for block in all_blocks() if block.page == "docs/envoy.md"]
    [mapping] = [text for text in page if "after_response:" in text]
    [limits] = [text for text in page if text.startswith("typed_per_filter_config:")]
    (folder / "mapping.yaml").write_text(mapping)
    example = (CHECKOUT / "docker" / "envoy" / "envoy.yaml").read_text()
    [shown] = re.findall(r"^ *rate_limits:\n.*?(?=^ *$)", example, re.MULTILINE | re.DOTALL)
    port = free_port()
    # Without leases, because the tests compare exact counts.
    settings: dict[str, Any] = {
        "deadline_ms": 20_000,
        "lease_max_ms": 0,
        "envoy_mapping": folder / "mapping.yaml",
    }
    gateway = system.add_gateway(envoy=f"127.0.0.1:{port}", **settings)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    system.wait_reservations()
    indent = " " * (len(shown) - len(shown.lstrip()) - 2)  # beside `route`, and not within it
    edits = {shown: textwrap.indent(limits, indent)}
    with running_envoy("envoy.yaml", folder, gateway, {8081: port}, edits) as running:
        yield running


def test_rate_limit_service_beyond_limit_answers_429(proxied: Proxied) -> None:
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


def test_descriptors_with_own_limits_are_counted_apart(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "100/hour")
    gateway.set_limits("127.0.0.1?resource=path%3D/login", "1/hour")
    before = gateway.check("127.0.0.1", cost=0)["remaining"]
    responses = [http.post(path, content=b"abc") for path in ("/login", "/login?x", "/")]
    assert [response.status_code for response in responses] == [200, 429, 200]
    assert [response.headers["x-ratelimit-limit"] for response in responses] == ["1", "1", "100"]
    # The denied second login charged the client, too: each descriptor is decided on its own.
    assert gateway.check("127.0.0.1", cost=0)["remaining"] == before - 3


def test_hits_that_are_reported_after_the_response_are_charged_above_the_limit(metered: Proxied) -> None:
    gateway, app, http = metered
    gateway.set_limits("127.0.0.1", "1000/hour")

    def becomes(left: int) -> None:
        eventually(f"{left} are left", lambda: gateway.check("127.0.0.1", cost=0)["remaining"] == left)

    app.body = b"x" * 600
    assert http.get("/0").status_code == 200
    becomes(1_000 - 601)
    assert http.get("/1").status_code == 200
    becomes(0)
    app.body = b""
    assert http.get("/2").status_code == 429, "1,202 of 1,000 were charged"
    assert "/2" not in app.paths


def test_negative_hits_are_returned_if_the_limits_are_refundable(metered: Proxied) -> None:
    gateway, app, http = metered
    app.body = b""

    def becomes(left: int) -> None:
        eventually(f"{left} are left", lambda: gateway.check("127.0.0.1", cost=0)["remaining"] == left)

    def request(path: str) -> None:
        assert http.get(path).status_code == 200

    gateway.http.post("/v1/clients/127.0.0.1/reset").raise_for_status()
    gateway.set_limits("127.0.0.1", "50/hour")
    request("/free")
    eventually("the refund is refused", lambda: bool(gateway.lines("a refund to client '127.0.0.1'")))
    becomes(49)
    gateway.set_limits("127.0.0.1", "50/hour", "refundable")
    request("/")
    becomes(48)
    for _ in range(3):
        request("/free")
        becomes(48)


def test_rate_limit_service_without_gateway_fails_open(proxied: Proxied) -> None:
    gateway, _, http = proxied
    gateway.set_limits("127.0.0.1", "0/hour")
    assert http.get("/").status_code == 429
    gateway.kill()
    responses = [http.get("/") for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    assert all("x-ratelimit-limit" not in response.headers for response in responses)


def test_ext_authz_beyond_limit_answers_429(authorized: Proxied) -> None:
    gateway, app, http = authorized
    gateway.set_limits("127.0.0.1", "4/hour")
    requests = [
        ("GET", "/0?plan=gold&x=%FF", {"x-client-id": "another"}),
        ("POST", "/1", {"x-forwarded-for": "192.0.2.1"}),
        ("POST", "/2//", {}),
        ("PROPFIND", "/3", {}),
        ("GET", "/4", {}),
        ("POST", "/5", {}),
    ]
    responses = [
        http.request(method, path, headers=headers, content=b"abc" if method == "POST" else None)
        for method, path, headers in requests
    ]
    assert [response.status_code for response in responses] == [200] * 4 + [429] * 2
    assert app.paths == ["/0?plan=gold&x=%FF", "/1", "/2//", "/3"]
    for response, left in zip(responses, (3, 2, 1, 0, 0, 0), strict=True):
        assert response.headers["ratelimit-policy"] == '"default";q=4'
        assert response.headers["ratelimit"].startswith(f'"default";r={left};t=')
    assert all("retry-after" not in response.headers for response in responses[:4])
    for denied in responses[4:]:
        assert 3_590 <= int(denied.headers["retry-after"]) <= 3_660
        assert denied.headers["content-type"] == "application/problem+json"
        assert denied.json()["title"] == "Too many requests"


def test_ext_authz_without_gateway_fails_open(authorized: Proxied) -> None:
    gateway, app, http = authorized
    gateway.set_limits("127.0.0.1", "0/hour")
    assert http.get("/").status_code == 429
    gateway.kill()
    before = len(app.paths)
    responses = [http.get("/") for _ in range(5)]
    assert [response.status_code for response in responses] == [200] * 5
    assert len(app.paths) - before == 5
    assert all("ratelimit" not in response.headers for response in responses)
