"""``POST /json``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoplog.client.answer import Answer
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect

ALICE = {"entries": [{"key": "user", "value": "alice"}]}


async def test_request_within_limits_is_a_200_in_proto3_json(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/json", json={"domain": "edge", "descriptors": [ALICE]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "overallCode": "OK",
        "statuses": [
            {
                "code": "OK",
                "currentLimit": {"requestsPerUnit": 100},
                "limitRemaining": 99,
                "durationUntilReset": "60s",
            }
        ],
        "responseHeadersToAdd": [
            {"key": "ratelimit-policy", "value": '"default";q=100'},
            {"key": "ratelimit", "value": '"default";r=99;t=60'},
        ],
    }
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert limiter.checks == [Check("alice")]


async def test_request_over_a_limit_is_a_429(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = Answer(False, 10, 0, 60_000, 2_001, 7)
    response = await http.post("/json", json={"domain": "edge", "descriptors": [ALICE]})
    assert response.status_code == 429
    assert response.json()["overallCode"] == response.json()["statuses"][0]["code"] == "OVER_LIMIT"
    assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"hitsAddend": 3}, 3),
        ({"hits_addend": "3"}, 3),
        ({"descriptors": [{**ALICE, "hitsAddend": "0"}]}, 0),
        (
            {
                "descriptors": [
                    {**ALICE, "hits_addend": 4, "limit": {"requestsPerUnit": 9, "unit": "UNKNOWN"}}
                ]
            },
            4,
        ),
    ],
)
async def test_fields_with_either_name_and_numbers_as_text_are_accepted(
    http: httpx.AsyncClient, limiter: FakeLimiter, fields: dict[str, Any], cost: int
) -> None:
    response = await http.post("/json", json={"domain": "edge", "descriptors": [ALICE], **fields})
    assert response.status_code == 200, response.text
    assert limiter.checks == [Check("alice", cost)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 30_000,
        b'{"domain": "edge"}',
        b'{"domain": "edge", "descriptors": [{}]}',
        b'{"domain": "edge", "descriptors": [], "hits": 1}',
        b'{"domain": "edge", "descriptors": [{"entries": [{"key": "a", "value": "b"}]}], "hitsAddend": -1}',
        b'{"domain": "edge", "descriptors": [{"entries": [{"key": "a", "value": "\\ud800"}]}]}',
        b'{"domain": "edge", "descriptors": [{"entries": [{"key": "a", "value": 7}]}]}',
    ],
)
async def test_invalid_request_is_a_400(http: httpx.AsyncClient, limiter: FakeLimiter, body: bytes) -> None:
    response = await http.post("/json", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["remedy"]
    assert limiter.checks == []


@pytest.mark.parametrize(
    ("start", "unit", "end"),
    [
        (b'{"domain": "edge", "descriptors": [', b'{"entries": [{}]},', b"]}"),
        (b'{"domain": "edge", "descriptors": [{"entries": [', b"{},", b"]}]}"),
    ],
    ids=["descriptors", "entries"],
)
async def test_body_that_would_take_long_to_parse_is_refused(
    http: httpx.AsyncClient, limiter: FakeLimiter, start: bytes, unit: bytes, end: bytes
) -> None:
    for size, status in ((32 * 1024, 400), (32 * 1024 + 1, 413)):
        body = start + unit * ((size - len(start) - len(end)) // len(unit))
        body = (body[:-1] + end).ljust(size)
        response = await http.post("/json", content=body, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text
        assert "send" in response.json()["remedy"]
    assert limiter.checks == []


async def test_legacy_header_fields_are_sent_if_the_settings_say_so(limiter: FakeLimiter) -> None:
    async with connect(limiter, legacy_headers=True) as http:
        response = await http.post("/json", json={"domain": "edge", "descriptors": [ALICE]})
    added = {it["key"]: it["value"] for it in response.json()["responseHeadersToAdd"]}
    assert response.headers["x-ratelimit-remaining"] == added["x-ratelimit-remaining"] == "99"


async def test_without_the_extra_the_response_is_a_501_with_a_remedy(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("messages", "response", "service", "server"):
        monkeypatch.delitem(sys.modules, f"stoplog_gateway.envoy.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    response = await http.post("/json", json={"domain": "edge", "descriptors": [ALICE]})
    assert response.status_code == 501
    assert response.json()["remedy"] == "install Stoplog with the extra: pip install 'stoplog[envoy]'"


@pytest.mark.parametrize(
    ("query", "header", "fails_closed"),
    [
        ("", None, False),
        ("?unavailable=deny", None, True),
        ("", "deny", True),
        ("?unavailable=deny", "allow", True),
    ],
)
async def test_query_or_header_field_makes_all_descriptors_fail_closed(
    http: httpx.AsyncClient, limiter: FakeLimiter, query: str, header: str | None, fails_closed: bool
) -> None:
    headers = {} if header is None else {"Stoplog-Unavailable": header}
    body = {"domain": "edge", "descriptors": [ALICE, ALICE]}
    assert (await http.post(f"/json{query}", json=body, headers=headers)).status_code == 200
    assert limiter.fail_closed == [fails_closed] * 2
    limiter.error = ZeroDivisionError("a bug")
    response = await http.post(f"/json{query}", json=body, headers=headers)
    assert response.status_code == (429 if fails_closed else 500)
    assert (response.headers.get("retry-after") == "1") is fails_closed


async def test_mapping_makes_a_failed_request_fail_closed(limiter: FakeLimiter, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("edge: [{client: '{user}', on_unavailable: deny}]")
    async with connect(limiter, envoy_mapping=mapping) as http:
        body = {"domain": "edge", "descriptors": [ALICE]}
        assert (await http.post("/json", json=body)).status_code == 200
        assert limiter.fail_closed == [True]
        limiter.error = ZeroDivisionError("a bug")
        response = await http.post("/json", json=body)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["overallCode"] == "OVER_LIMIT"


async def test_unknown_value_of_unavailable_is_a_422(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    body = {"domain": "edge", "descriptors": [ALICE]}
    response = await http.post("/json?unavailable=denied", json=body)
    assert (response.status_code, response.json()["field"]) == (422, "unavailable")
    assert limiter.checks == []
