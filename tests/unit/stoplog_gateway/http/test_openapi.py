"""The OpenAPI document is complete, and its examples work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from stoplog_gateway.http.app import _MODELS, create_app
from stoplog_gateway.settings import GatewaySettings

from stoplog.asgi.problem import Problem
from stoplog.policy import parse_policy
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_limiter import FakeLimiter

DOCUMENT = create_app(GatewaySettings(), FakeLimiter()).openapi()
TYPES = {model.__name__: model for model in (*_MODELS, Problem)}
OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
NAMES = [f"{method} {path}" for method, path, _ in OPERATIONS]


def struct_of(schema: dict[str, Any]) -> Any:
    """Return the struct that a schema was generated from."""
    if schema.get("type") == "array":
        return list[struct_of(schema["items"])]  # type: ignore[misc]
    return TYPES[schema["$ref"].rpartition("/")[2]]


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from refs(child)
    elif isinstance(node, list):
        for child in node:
            yield from refs(child)


def test_every_reference_has_a_schema() -> None:
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(refs(DOCUMENT)) <= known


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_is_documented(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    assert all(p["description"] for p in operation.get("parameters", ()))
    assert "500" in operation["responses"]
    for status, response in operation["responses"].items():
        [(media, content)] = response["content"].items()
        assert content["schema"]
        assert (media == "application/problem+json") == (int(status) >= 400)
        if media != "text/plain":
            for example in content["examples"].values():
                encoded = msgspec.json.encode(example["value"])
                msgspec.json.decode(encoded, type=struct_of(content["schema"]))
    if method == "PUT" or (
        path.startswith(("/v1/check", "/v1/reservations", "/v1/refunds")) and method != "DELETE"
    ):
        assert operation["requestBody"]["content"]["application/json"]["examples"]
        assert {"400", "413", "415", "422"} <= operation["responses"].keys()
    if (method in ("PUT", "DELETE") and not path.startswith("/v1/reservations")) or path.endswith("/reset"):
        assert operation["security"] == [{"token": []}, {}]
        assert {"200", "202", "401", "403", "422", "503"} <= operation["responses"].keys()


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
async def test_every_example_request_succeeds(
    method: str, path: str, operation: dict[str, Any], http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.stored = {
        key: parse_policy("1/day")
        for key in (UpdateKey("client", "alice"), UpdateKey("plan", "free"), UpdateKey("default"))
    }
    names, headers = (
        {p["name"]: p["schema"]["examples"][0] for p in operation.get("parameters", ()) if p["in"] == place}
        for place in ("path", "header")
    )
    bodies: dict[str, Any] = {"none": {"value": None}}
    if "requestBody" in operation:
        bodies = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in bodies.values():
        response = await http.request(method, path.format(**names), json=example["value"], headers=headers)
        assert response.status_code == 200, response.text
        [(media, content)] = operation["responses"]["200"]["content"].items()
        assert response.headers["content-type"].startswith(media)
        if media == "application/json":
            msgspec.json.decode(response.content, type=struct_of(content["schema"]))
            documented = {h.lower() for h in operation["responses"]["200"].get("headers", ())}
            assert documented >= {h for h in response.headers if "ratelimit" in h}


async def test_document_is_served(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).json() == DOCUMENT


async def test_docs_page_loads_only_files_of_the_gateway(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    parts = re.findall(r'(?:src|href)="(?!data:)(.*?)"', page.text)
    assert len(parts) == 3
    for response in [page, *[await http.get(f"/{part}") for part in parts]]:
        assert response.status_code == 200
        assert "script-src 'self';" in response.headers["content-security-policy"]
    assert (await http.get("/docs/redoc.standalone.js")).status_code == 404
