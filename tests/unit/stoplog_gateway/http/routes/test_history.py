from __future__ import annotations

import httpx
import pytest

from stoplog.client.limits_history import HistoryPage
from stoplog.errors import Unavailable
from stoplog.policy import parse_policy
from stoplog.wire.audit import AuditEntry, AuditRecord
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_limiter import FakeLimiter

SET = AuditRecord(1, 80, 1_000, 9, ["5/minute"], 4, "unlimited", "ops", "10.0.0.7", "r-1")
DELETED = AuditRecord(1, 70, 900, 8, None, 3, ["4/minute"], "kafka", "", "")
RESET = AuditRecord(1, 60, 800, 7, None, None, None, "local", "127.0.0.1", "r-0")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/limits/alice/history", UpdateKey("client", "alice")),
        ("/v1/limits/a%2Fb/history?resource=login", UpdateKey("client", "a/b", "login")),
        ("/v1/limits/history/history", UpdateKey("client", "history")),
        ("/v1/plans/free/history", UpdateKey("plan", "free")),
        ("/v1/default/history?resource=login", UpdateKey("default", "", "login")),
    ],
)
async def test_history_lists_changes_with_their_source(
    path: str, key: UpdateKey, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    entries = [AuditEntry(key, SET), AuditEntry(key, DELETED), AuditEntry(UpdateKey("reset", key.id), RESET)]
    limiter.history = HistoryPage(entries, "12")
    response = await http.get(path)
    assert response.status_code == 200
    found = response.json()
    items = found.pop("items")
    resource = key.resource or None
    assert found == {"kind": key.kind, "id": key.id or None, "resource": resource, "next": "12"}
    assert items[0] == {
        "change": "set",
        "resource": resource,
        "limits": ["5/minute"],
        "policy_version": 9,
        "previous_limits": "unlimited",
        "previous_version": 4,
        "at_ms": 1_000,
        "who": "ops",
        "address": "10.0.0.7",
        "request_id": "r-1",
        "position": 80,
    }
    assert [item["change"] for item in items] == ["set", "delete", "reset"]
    assert [item["address"] for item in items] == ["10.0.0.7", None, "127.0.0.1"]
    assert limiter.histories == [(key, None, 100)]


async def test_history_takes_a_cursor_and_a_number(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    assert (await http.get("/v1/limits/alice/history?before=12&limit=3")).json()["items"] == []
    assert limiter.histories == [(UpdateKey("client", "alice"), "12", 3)]


async def test_encoded_slash_before_history_names_the_client(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    key, plan = UpdateKey("client", "a/history", "login"), UpdateKey("plan", "b/history")
    limiter.stored = {key: parse_policy("1/day"), plan: parse_policy("2/day")}
    assert (await http.get("/v1/limits/a%2Fhistory?resource=login")).json()["limits"] == ["1/day"]
    assert (await http.get("/v1/plans/b%2Fhistory")).json()["limits"] == ["2/day"]
    assert not limiter.histories


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("/v1/limits//history", "client_id"),
        ("/v1/limits/a%0A/history", "client_id"),
        ("/v1/limits/%FF/history", "path"),
        ("/v1/limits/a/history?limit=many", "limit"),
        ("/v1/limits/a/history?after=1", "after"),
    ],
)
async def test_invalid_request_names_its_field(url: str, field: str, http: httpx.AsyncClient) -> None:
    response = await http.get(url)
    assert (response.status_code, response.json()["field"]) == (422, field)


async def test_history_without_an_audit_topic_names_the_command(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.error = Unavailable("topic audit lacks partition 1: run `stoplog topics create`")
    response = await http.get("/v1/limits/alice/history")
    assert response.status_code == 503
    assert "stoplog topics create" in response.json()["detail"]
