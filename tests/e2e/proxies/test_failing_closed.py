"""Checks that fail closed behind a real nginx and a real Envoy: with a frozen worker, and without a gateway.

Each configuration is the example with the lines of docs/proxies.md that make it deny.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from stoplog_gateway.ports import free_port

from tests.support.proxied import Proxied
from tests.support.proxies import running_envoy, running_nginx
from tests.support.system import System, eventually

CLIENT = "127.0.0.1"
SETTINGS: Final[dict[str, Any]] = {"deadline_ms": 300, "lease_max_ms": 0}
"""The gateways are killed. Without leases, they leave nothing that counts in tests of other modules."""
CHECKS = 6
"""More than the missed deadlines that open the circuit breaker: the last ones are answered at once."""

MAPPING = """
edge:
  - client: "{remote_address}"
    resource: "path={path}"
    on_unavailable: deny
  - client: "{remote_address}"
"""


@contextmanager
def frozen_worker(system: System) -> Iterator[None]:
    """Freeze the worker within the block."""
    [worker] = system.workers
    worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.signal(signal.SIGCONT)


def ready_again(system: System, proxied: Proxied) -> None:
    """Wait until checks are decided."""
    gateway = proxied.gateway
    eventually(
        "checks are decided", lambda: not gateway.check(CLIENT, cost=0)["degraded"], on_failure=system.logs
    )


@pytest.mark.needs("nginx")
def test_nginx_fails_closed(system: System, tmp_path: Path) -> None:
    gateway = system.add_gateway(**SETTINGS)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    gateway.set_limits(CLIENT, "10000/hour")
    edits = {
        "/v1/authorize;": "/v1/authorize?unavailable=deny;",
        "      error_page 500 502 503 504 = @open;\n": "",
    }
    with running_nginx(tmp_path, gateway, edits) as proxied:
        _, app, http = proxied
        assert http.get("/").status_code == 200
        with frozen_worker(system):
            # The caller's own header field must not undo what the configuration says.
            responses = [http.get("/x", headers={"stoplog-unavailable": "allow"}) for _ in range(CHECKS)]
        assert [response.status_code for response in responses] == [429] * CHECKS
        assert {response.headers["retry-after"] for response in responses} == {"1"}
        assert app.paths == ["/"]
        assert gateway.metric("stoplog_checks_failed_closed_total") == CHECKS
        assert gateway.metric("stoplog_checks_degraded_total") == 0
        ready_again(system, proxied)
        assert http.get("/").status_code == 200
        gateway.kill()
        assert http.get("/").status_code == 500
        assert app.paths == ["/"] * 2


@pytest.mark.needs("envoy")
def test_rate_limit_service_fails_closed_where_the_mapping_says_so(system: System, tmp_path: Path) -> None:
    mapping, port = tmp_path / "mapping.yaml", free_port()
    mapping.write_text(MAPPING)
    gateway = system.add_gateway(**SETTINGS, envoy=f"127.0.0.1:{port}", envoy_mapping=str(mapping))
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    gateway.set_limits(CLIENT, "10000/hour")
    gateway.set_limits(f"{CLIENT}?resource=path%3D/login", "10000/hour")  # another test limits it
    edits = {"failure_mode_deny: false": "failure_mode_deny: true"}
    with running_envoy("envoy.yaml", tmp_path, gateway, {8081: port}, edits) as proxied:
        _, app, http = proxied
        assert [http.get(path).status_code for path in ("/", "/login")] == [200, 200]
        with frozen_worker(system):
            denied = [http.get("/login") for _ in range(CHECKS)]
            allowed = http.get("/")
        assert [response.status_code for response in denied] == [429] * CHECKS
        assert {response.headers["retry-after"] for response in denied} == {"1"}
        assert allowed.status_code == 200
        assert app.paths == ["/", "/login", "/"]
        assert gateway.metric("stoplog_checks_failed_closed_total") == CHECKS
        ready_again(system, proxied)
        assert http.get("/login").status_code == 200
        gateway.kill()
        assert http.get("/login").status_code == 500
        assert app.paths == ["/", "/login", "/", "/login"]


@pytest.mark.needs("envoy")
def test_ext_authz_fails_closed(system: System, tmp_path: Path) -> None:
    gateway = system.add_gateway(**SETTINGS)
    eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
    gateway.set_limits(CLIENT, "10000/hour")
    field = "headers_to_add:\n"
    edits = {
        field: f"{field}                            - {{key: stoplog-unavailable, value: deny}}\n",
        "failure_mode_allow: true": "failure_mode_allow: false",
    }
    with running_envoy("ext_authz.yaml", tmp_path, gateway, {8080: gateway.port}, edits) as proxied:
        _, app, http = proxied
        assert http.get("/").status_code == 200
        with frozen_worker(system):
            # The query and the header field are the caller's, and must not undo the configuration.
            responses = [
                http.get("/x?unavailable=allow", headers={"stoplog-unavailable": "allow"})
                for _ in range(CHECKS)
            ]
        assert [response.status_code for response in responses] == [429] * CHECKS
        for response in responses:
            assert response.headers["retry-after"] == "1"
            assert response.json()["type"] == "urn:stoplog:problem:store-unavailable"
        assert app.paths == ["/"]
        ready_again(system, proxied)
        assert http.get("/").status_code == 200
        gateway.kill()
        assert http.get("/").status_code == 403
        assert app.paths == ["/"] * 2
