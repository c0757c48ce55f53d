"""The HTTP API without fakes: a broker, a worker and a gateway, each in its own process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stoplog_gateway.local.child_process import Child
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

PATIENT: dict[str, Any] = {"deadline_ms": 5_000, "apply_timeout_ms": 25_000}
READY_S = 90.0
"""Seconds until a worker must have all partitions and answer. An idle machine needs about 10 s."""


@contextmanager
def running(name: str, *command: str, folder: Path, **settings: object) -> Iterator[Child]:
    """Run a program of this checkout with these ``STOPLOG_*`` settings."""
    env = {f"STOPLOG_{key.upper()}": str(value) for key, value in settings.items()}
    child = Child(name, [sys.executable, "-m", *command], env=env, log=folder / f"{name}.log")
    child.start()
    try:
        yield child
    finally:
        child.terminate()
        child.join(20)


def wait_ready(client: httpx.Client, *children: Child) -> None:
    """Return once the store answers checks."""
    until = time.monotonic() + READY_S
    reason = "nothing listens yet"
    while time.monotonic() < until:
        for child in children:
            if child.status is not None:
                pytest.fail(f"{child.name} ended with {child.status}:\n{child.tail(40)}")
        try:
            response = client.get("/readyz?strict=1")
            if response.status_code == 200:
                return
            reason = response.json()["detail"]
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # the state of another process has no event to await
    pytest.fail(f"not ready after {READY_S:g} s: {reason}\n" + "\n".join(c.tail(40) for c in children))


@pytest.fixture(scope="module")
def api(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("api")
    common: dict[str, Any] = {"kafka": fresh_kafka.bootstrap, "home": folder, "folder": folder}
    port = free_port()
    with (
        running("worker", "stoplog_worker", "worker", metrics_port=free_port(), **common) as worker,
        # A busy machine does not miss these deadlines, so the store answers every check.
        running("gateway", "stoplog_gateway", "gateway", port=port, **PATIENT, **common) as gateway,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):
        wait_ready(client, worker, gateway)
        yield client


def check(api: httpx.Client, client_id: str, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/check", json={"client_id": client_id, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert not answer["degraded"], answer
    return answer


def put(api: httpx.Client, path: str, limits: Any) -> dict[str, Any]:
    response = api.put(path, json={"limits": limits})
    assert response.status_code == 200, response.text
    changed: dict[str, Any] = response.json()
    assert changed["applied"]
    return changed


def samples(api: httpx.Client) -> dict[str, float]:
    """Return all values of ``/metrics``, summed over their labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(api.get("/metrics").text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_client_without_configuration_has_100_per_minute(api: httpx.Client) -> None:
    response = api.post("/v1/check", json={"client_id": "nobody in particular"})
    answer = response.json()
    assert (answer["allowed"], answer["limit"], answer["remaining"]) == (True, 100, 99)
    assert answer["policy_version"] == -1
    assert 0 < answer["reset_after_ms"] <= 61_000
    assert response.headers["ratelimit-policy"] == '"default";q=100'
    assert response.headers["ratelimit"].startswith('"default";r=99;t=6')


def test_limit_set_applies_to_the_next_check(api: httpx.Client) -> None:
    changed = put(api, "/v1/limits/alice", ["3/hour"])
    answers = [check(api, "alice") for _ in range(4)]
    assert [a["allowed"] for a in answers] == [True, True, True, False]
    assert [a["remaining"] for a in answers] == [2, 1, 0, 0]
    assert {a["policy_version"] for a in answers} == {changed["policy_version"]}

    response = api.post("/v1/check", json={"client_id": "alice"})
    assert 0 < int(response.headers["retry-after"]) <= 3_660
    assert -(-response.json()["retry_after_ms"] // 1_000) == int(response.headers["retry-after"])

    put(api, "/v1/limits/alice", ["4/hour"])
    assert [check(api, "alice")["allowed"] for _ in range(2)] == [True, False]

    assert api.delete("/v1/limits/alice").status_code == 200
    assert check(api, "alice")["limit"] == 100


def test_check_of_cost_0_spends_nothing(api: httpx.Client) -> None:
    put(api, "/v1/limits/peeked", ["2/hour"])
    assert [check(api, "peeked", cost=0)["remaining"] for _ in range(3)] == [2, 2, 2]
    assert check(api, "peeked", cost=2)["remaining"] == 0
    assert not check(api, "peeked", cost=1)["allowed"]


def test_cost_above_limit_is_denied_without_retry_after(api: httpx.Client) -> None:
    put(api, "/v1/limits/greedy", ["2/hour"])
    answer = check(api, "greedy", cost=3)
    assert (answer["allowed"], answer["retry_after_ms"], answer["remaining"]) == (False, None, 2)


def test_client_blocked_or_unlimited_is_always_denied_or_allowed(api: httpx.Client) -> None:
    put(api, "/v1/limits/blocked", ["0/minute"])
    assert not check(api, "blocked")["allowed"]
    put(api, "/v1/limits/free", "unlimited")
    answer = check(api, "free", cost=1_000_000)
    assert (answer["allowed"], answer["limit"], answer["remaining"]) == (True, None, None)


def test_policy_with_several_limits_requires_all(api: httpx.Client) -> None:
    put(api, "/v1/limits/several", ["100/hour", {"max": 2, "window_seconds": 86_400}])
    assert [check(api, "several")["allowed"] for _ in range(3)] == [True, True, False]


def test_plan_applies_to_checks_that_name_it(api: httpx.Client) -> None:
    put(api, "/v1/plans/tiny", ["1/hour"])
    assert [check(api, "planned", plan="tiny")["allowed"] for _ in range(2)] == [True, False]
    put(api, "/v1/limits/planned", ["7/hour"])
    assert check(api, "planned", plan="tiny")["limit"] == 7


def test_resource_has_its_own_limits_and_counters(api: httpx.Client) -> None:
    put(api, "/v1/limits/user?resource=login", ["1/hour"])
    assert [check(api, "user", resource="login")["allowed"] for _ in range(2)] == [True, False]
    assert check(api, "user")["remaining"] == 99
    assert api.get("/v1/limits/user").status_code == 404
    assert api.get("/v1/limits/user?resource=login").json()["limits"] == ["1/hour"]


@pytest.mark.parametrize("id_", ["a/b c/", "zoë 漢字", "50%?#&+"])
def test_client_with_unusual_id_is_limited(id_: str, api: httpx.Client) -> None:
    path = f"/v1/limits/{quote(id_, safe='')}"
    put(api, path, ["1/hour"])
    assert api.get(path).json()["id"] == id_
    assert [check(api, id_)["allowed"] for _ in range(2)] == [True, False]


def test_reset_of_a_client_at_its_limit_allows_it_again(api: httpx.Client) -> None:
    put(api, "/v1/limits/again", ["1/hour"])
    assert [check(api, "again")["allowed"] for _ in range(2)] == [True, False]
    response = api.post("/v1/clients/again/reset")
    assert response.status_code == 200
    assert response.json() == {"client_id": "again", "resource": None, "applied": True, "existed": True}
    assert [check(api, "again")["allowed"] for _ in range(2)] == [True, False]


def test_check_list_is_answered_in_order(api: httpx.Client) -> None:
    for i in range(5):
        put(api, f"/v1/limits/listed-{i}", [f"{i + 1}/hour"])
    checks = [{"client_id": f"listed-{i % 5}"} for i in range(30)]
    answers = api.post("/v1/checks", json=checks).json()
    assert [a["limit"] for a in answers] == [i % 5 + 1 for i in range(30)]
    assert [a["allowed"] for a in answers] == [i // 5 <= i % 5 for i in range(30)]


async def test_64_callers_of_one_client_are_admitted_exactly_its_limit(api: httpx.Client) -> None:
    put(api, "/v1/limits/hot", ["100/hour"])
    base = str(api.base_url)
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=base, timeout=30, limits=limits, trust_env=False) as client:
        responses = await asyncio.gather(
            *(client.post("/v1/check", json={"client_id": "hot"}) for _ in range(320))
        )
    answers = [response.json() for response in responses]
    assert not any(a["degraded"] for a in answers)
    assert sum(a["allowed"] for a in answers) == 100


def test_stored_limits_are_listed_page_by_page(api: httpx.Client) -> None:
    wanted = {f"paged-{i}" for i in range(7)}
    for name in wanted:
        put(api, f"/v1/limits/{name}", ["9/hour"])
    found: dict[str, Any] = {}
    pages, after = 0, None
    while True:
        query = {"kind": "client", "limit": "3"} | ({"after": after} if after else {})
        page = api.get("/v1/limits", params=query).json()
        assert len(page["items"]) <= 3
        found |= {item["id"]: item["limits"] for item in page["items"]}
        pages, after = pages + 1, page["next"]
        if after is None:
            break
    assert pages >= 3
    assert wanted <= found.keys()
    assert all(found[name] == ["9/hour"] for name in wanted)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "kind=reset",
        "kind=",
        "after=",
        "after=x",
        "after=%C3%A9",
        "after=AAAA",
    ],
)
def test_limits_page_with_invalid_cursor_is_refused(query: str, api: httpx.Client) -> None:
    response = api.get(f"/v1/limits?{query}")
    assert response.status_code == 422
    assert response.json()["field"] == query.partition("=")[0]


def test_invalid_check_is_refused_and_not_counted(api: httpx.Client) -> None:
    put(api, "/v1/limits/careful", ["5/hour"])
    before = samples(api)["stoplog_checks_received_total"]
    for body in ({"cost": -1}, {"cost": 1.5}, {"cost": 10**9}, {"typo": 1}, {"plan": ""}):
        response = api.post("/v1/check", json={"client_id": "careful", **body})
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["field"] in body
    response = api.post("/v1/checks", json=[{"client_id": "careful"}, {"client_id": ""}])
    assert response.status_code == 422
    assert api.put("/v1/limits/careful", json={"limits": ["1/0s"]}).status_code == 422
    assert samples(api)["stoplog_checks_received_total"] == before
    assert check(api, "careful", cost=0)["remaining"] == 5


def test_request_from_another_site_changes_nothing(api: httpx.Client) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        response = api.put("/v1/limits/target", json={"limits": "0/minute"}, headers=headers)
        assert response.status_code == 403
    assert api.get("/v1/limits/target").status_code == 404


def test_status_lists_gateways_and_workers(api: httpx.Client) -> None:
    status = api.get("/v1/status").json()
    assert (status["mode"], status["why"], status["store"]) == ("normal", None, "ok")
    nodes = {node["role"]: node for node in status["nodes"]}
    assert nodes.keys() == {"worker", "gateway"}
    assert sorted(nodes["worker"]["partitions"]) == ["0", "1", "2", "3"]


def test_metrics_after_checks_count_the_answers(api: httpx.Client) -> None:
    put(api, "/v1/limits/measured", ["2/hour"])
    before = samples(api)
    for _ in range(3):
        check(api, "measured")
    after = samples(api)
    grown = {
        name: after[f"stoplog_checks_{name}_total"] - before[f"stoplog_checks_{name}_total"]
        for name in ("received", "allowed", "rejected", "degraded")
    }
    assert grown == {"received": 3, "allowed": 2, "rejected": 1, "degraded": 0}
    assert after["stoplog_check_duration_seconds_count"] - before["stoplog_check_duration_seconds_count"] == 3
    assert after["stoplog_nodes"] == 2


def test_health_of_running_system_is_alive_and_ready(api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "alive"}
    assert api.get("/readyz").json() == {"status": "ready"}
