from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoplog.client.limits_admin import Applied
from stoplog.errors import Unavailable
from stoplog.policy import Policy, parse_policy
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_limiter import FakeLimiter

PATHS = [
    ("/v1/limits/alice", UpdateKey("client", "alice")),
    ("/v1/limits/alice?resource=POST%20%2Forders", UpdateKey("client", "alice", "POST /orders")),
    ("/v1/plans/free", UpdateKey("plan", "free")),
    ("/v1/plans/free?resource=login", UpdateKey("plan", "free", "login")),
    ("/v1/default", UpdateKey("default")),
    ("/v1/default?resource=login", UpdateKey("default", "", "login")),
]


@pytest.mark.parametrize(("path", "key"), PATHS)
async def test_limits_can_be_set_read_and_deleted(
    path: str, key: UpdateKey, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    names = {"kind": key.kind, "id": key.id or None, "resource": key.resource or None}
    limits = ["100/minute", "10/second"]

    response = await http.get(path)
    assert response.status_code == 404
    assert response.json()["type"] == "urn:stoplog:problem:no-limits"

    response = await http.put(path, json={"limits": limits})
    assert response.status_code == 200
    assert response.json() == {**names, "limits": limits, "applied": True, "policy_version": 41}
    assert limiter.stored == {key: parse_policy(limits)}

    assert (await http.get(path)).json() == {**names, "limits": limits}

    response = await http.delete(path)
    assert response.status_code == 200
    deleted = {**names, "limits": None, "applied": True, "policy_version": 41, "existed": True}
    assert response.json() == deleted
    assert not limiter.stored
    assert limiter.sources[0] is not None
    assert [source and (source.who, source.address) for source in limiter.sources] == [
        ("local", "127.0.0.1")
    ] * 2


@pytest.mark.parametrize(
    ("limits", "stored"),
    [
        ("unlimited", "unlimited"),
        ("100/minute", ["100/minute"]),
        (["0/minute"], ["0/minute"]),
        ({"max": 5, "window_seconds": 60}, ["5/minute"]),
        ({"max": 5.0, "window_seconds": 6e1}, ["5/minute"]),
        ([{"max": 5.0, "window_seconds": 60}], ["5/minute"]),
        (["40/2s", {"max": 5, "window_seconds": 600}], ["5/10m", "40/2s"]),
    ],
)
async def test_limits_in_every_notation_are_stored(limits: Any, stored: Any, http: httpx.AsyncClient) -> None:
    response = await http.put("/v1/limits/alice", json={"limits": limits})
    assert response.json()["limits"] == stored


async def test_deletion_of_an_unknown_client_states_that_nothing_existed(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.applied = Applied(True, 41, False)
    response = await http.delete("/v1/limits/nobody")
    assert (response.status_code, response.json()["existed"]) == (200, False)


async def test_change_has_the_callers_request_id_or_a_new_one(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    ids = []
    for headers in ({"X-Request-Id": "r-17"}, {}, {}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 129}):
        response = await http.put("/v1/limits/alice", json={"limits": "1/day"}, headers=headers)
        ids.append(response.headers["x-request-id"])
    assert [source and source.request_id for source in limiter.sources] == ids
    assert ids[0] == "r-17"
    assert len(set(ids)) == 5
    assert all(len(id_) == 16 for id_ in ids[1:])


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_unconfirmed_change_is_a_202(
    method: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.applied = Applied(False, -1)
    body = {"limits": "1/day"} if method == "PUT" else None
    response = await http.request(method, "/v1/limits/alice", json=body)
    assert response.status_code == 202
    assert response.json()["applied"] is False
    assert response.json()["policy_version"] is None


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_change_without_a_store_is_a_503_with_the_cause(
    method: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.error = Unavailable("the change could not be published: no broker")
    body = {"limits": "1/day"} if method == "PUT" else None
    response = await http.request(method, "/v1/limits/alice", json=body)
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert "could not be published" in response.json()["detail"]


@pytest.mark.parametrize(
    "id_", ["a/b", "a/b/", "/", "é 漢字", "50%", "a?b#c", "a+b", "reset", "a&resource=b", "default"]
)
async def test_any_id_can_be_used_percent_encoded(
    id_: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    encoded = quote(id_, safe="")
    await http.put(f"/v1/limits/{encoded}?resource={encoded}", json={"limits": "1/day"})
    await http.put(f"/v1/plans/{encoded}", json={"limits": "1/day"})
    await http.post(f"/v1/clients/{encoded}/reset", params={"resource": id_})
    assert limiter.changes == [
        UpdateKey("client", id_, id_),
        UpdateKey("plan", id_),
        UpdateKey("reset", id_, id_),
    ]


async def test_id_that_ends_like_a_route_is_that_client(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    await http.post("/v1/clients/a/reset/reset")
    assert limiter.changes == [UpdateKey("reset", "a/reset")]


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("/v1/limits/", "client_id"),
        ("/v1/limits/" + "a" * 257, "client_id"),
        ("/v1/limits/alice%0A", "client_id"),
        ("/v1/limits/a%0Ab", "client_id"),
        ("/v1/limits/%00", "client_id"),
        ("/v1/limits/%FF", "path"),
        ("/v1/plans/", "plan"),
        ("/v1/plans/%7F", "plan"),
        ("/v1/limits/alice?resource=", "resource"),
        ("/v1/limits/alice?resource=%0A", "resource"),
        ("/v1/limits/alice?resource=%FF", "query"),
        ("/v1/limits/alice?ressource=login", "ressource"),
        ("/v1/default?id=alice", "id"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_invalid_name_changes_nothing(
    method: str, url: str, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    body = {"limits": "1/day"} if method == "PUT" else None
    response = await http.request(method, url, json=body)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert response.json()["remedy"]
    assert not limiter.changes


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "limits"),
        ({"limit": "1/day"}, "limit"),
        ({"limits": None}, "limits"),
        ({"limits": []}, "limits"),
        ({"limits": ["10/0s"]}, "limits[0]"),
        ({"limits": ["1/day", "-1/minute"]}, "limits[1]"),
        ({"limits": ["1.5/minute"]}, "limits[0]"),
        ({"limits": [f"{2**53 + 1}/day"]}, "limits[0]"),
        ({"limits": ["1/32d"]}, "limits[0]"),
        ({"limits": ["1/999ms"]}, "limits[0]"),
        ({"limits": ["1/day", "2/day"]}, "limits"),
        ({"limits": ["1/day", "unlimited"]}, "limits[1]"),
        ({"limits": [f"1/{i}s" for i in range(1, 10)]}, "limits"),
        ({"limits": {"max": 1, "window_seconds": 0.5}}, "limits.window_seconds"),
        ({"limits": {"max": 1, "window": 5}}, "limits.window"),
        ({"limits": [{"max": 10**4000, "window_seconds": 10**4000}]}, "limits[0].max"),
        ({"limits": [{"max": 1, "window_seconds": 10**4299}]}, "limits[0].window_seconds"),
    ],
)
async def test_invalid_limits_change_nothing(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.put("/v1/limits/alice", json=body)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert response.json()["remedy"]
    assert not limiter.changes


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.from_regex(r"-?\d{1,20}/\d*[a-z]+"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["max", "window_seconds"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_json_is_a_policy_or_a_problem_with_a_field(
    http: httpx.AsyncClient, limiter: FakeLimiter, value: Any
) -> None:
    limiter.changes.clear()
    content = json.dumps({"limits": value}).encode()
    response = await http.put("/v1/default", content=content, headers={"content-type": "application/json"})
    if response.status_code == 200:
        assert isinstance(limiter.stored[UpdateKey("default")], Policy)
    else:
        assert response.status_code in (400, 422)
        assert response.json()["field"]
        assert response.json()["remedy"]
        assert not limiter.changes


# HTTP clients remove "." and ".." from a URL, even if they are percent-encoded.
@given(st.text(max_size=300).filter(lambda id_: id_ not in (".", "..")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_id_is_that_client_or_a_problem(
    http: httpx.AsyncClient, limiter: FakeLimiter, id_: str
) -> None:
    limiter.changes.clear()
    response = await http.delete("/v1/limits/" + quote(id_, safe="", errors="surrogatepass"))
    if response.status_code == 200:
        assert limiter.changes == [UpdateKey("client", id_)]
    else:
        assert response.status_code == 422
        assert response.json()["field"] in ("client_id", "path")


async def test_list_limits_returns_pages(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.stored = {UpdateKey("plan", "free", "login"): parse_policy("5/minute")}
    gone = {"kind": "client", "id": "gone", "resource": None, "limits": None, "policy_version": 3}
    free = {
        "kind": "plan",
        "id": "free",
        "resource": "login",
        "limits": ["5/minute"],
        "policy_version": 7,
    }
    first = await http.get("/v1/limits", params={"limit": 10, "kind": "plan"})
    assert first.json() == {"items": [free], "next": "cursor"}
    # Later pages contain deletions, because an earlier page can have shown the deleted entry.
    second = await http.get("/v1/limits", params={"after": "0.12", "limit": 10, "kind": "plan"})
    assert second.json() == {"items": [gone, free], "next": "cursor"}
    assert limiter.pages == [(None, 10, "plan"), ("0.12", 10, "plan")]


@pytest.mark.parametrize("query", ["limit=many", "limit=1.5", "page=2"])
async def test_list_limits_with_an_invalid_query_is_a_422(query: str, http: httpx.AsyncClient) -> None:
    response = await http.get(f"/v1/limits?{query}")
    assert response.status_code == 422
    assert response.json()["field"] == query.partition("=")[0]
