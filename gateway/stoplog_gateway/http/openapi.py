"""The OpenAPI document: schemas from the structs that are really read and sent, examples for each route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from stoplog_gateway.http.problems import (
    BUG,
    BUSY,
    CONTENT_TYPE,
    FORBIDDEN,
    INVALID,
    MALFORMED,
    NO_LIMITS,
    TOO_LARGE,
    UNAUTHORIZED,
    UNAVAILABLE,
    Kind,
    Problem,
    problem,
)

Entry = dict[int | str, dict[str, Any]]
"""What FastAPI takes as ``responses``."""

Case = tuple[Kind, str, str | None, str | None]
"""A failure as an example: kind, detail, field, remedy."""

NO_BROKER: Final[Case] = (
    UNAVAILABLE,
    "the change could not be published (no broker): try again",
    None,
    "try again when /readyz answers 200",
)
READ_FAILS: Final[tuple[Case, ...]] = (
    (
        UNAVAILABLE,
        "limit-updates cannot be read: no broker answers",
        None,
        "try again when /readyz answers 200",
    ),
    (
        BUSY,
        "a read of limits is under way and 16 wait: try again later",
        None,
        "try again after Retry-After seconds",
    ),
)
NOTHING_STORED: Final[Case] = (NO_LIMITS, "it has no limits of its own", "client_id", "set some with PUT")
BAD_LIMIT: Final[Case] = (
    INVALID,
    "limits[0]: a window of 0 ms",
    "limits[0]",
    "a window is 1 second to 31 days",
)
BAD_RESOURCE: Final[Case] = (INVALID, "resource: contains a control character", "resource", "remove it")
BAD_PAGE: Final[Case] = (INVALID, "limit: out of bounds", "limit", "use 1 to 1,000")
BODY_FAILS: Final[tuple[Case, ...]] = (
    (MALFORMED, "Input data was truncated", "body", "send one JSON value and nothing else"),
    (TOO_LARGE, "the body is over 1 MiB", "body", "send at most 1 MiB at once"),
    (CONTENT_TYPE, "text/plain is not JSON", "Content-Type", "send Content-Type: application/json"),
)
NO_TOKEN: Final[Case] = (
    UNAUTHORIZED,
    "this needs the admin token",
    "Authorization",
    "send Authorization: Bearer <STOPLOG_ADMIN_TOKEN>",
)
BEYOND_LOOPBACK: Final[Case] = (
    FORBIDDEN,
    "the gateway listens on 0.0.0.0, beyond loopback, and has no admin token",
    "Authorization",
    "set STOPLOG_ADMIN_TOKEN and send Authorization: Bearer <token>",
)
CHANGE_FAILS: Final[tuple[Case, ...]] = (NO_TOKEN, BEYOND_LOOPBACK, NO_BROKER)

TEMPLATE: Final = "#/components/schemas/{name}"

TAGS: Final = [
    {"name": "checks", "description": "May this client spend this now?"},
    {"name": "limits", "description": "What clients, plans and everybody else are held to."},
    {"name": "clients", "description": "A client's counters."},
    {"name": "operation", "description": "How the gateway and its store are."},
]

BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "STOPLOG_ADMIN_TOKEN; set it behind a proxy.",
}


class Api(FastAPI):
    """FastAPI whose document takes its schemas from msgspec."""

    models: Sequence[type] = ()
    resources: Sequence[APIRouter] = ()

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
                tags=self.openapi_tags,
            )
            _, schemas = msgspec.json.schema_components((*self.models, Problem), ref_template=TEMPLATE)
            for route in self._described():
                self._restore(route, document["paths"][route.path_format])
            for schema in schemas.values():
                schema["description"] = cleandoc(schema["description"])
            document["components"] = {"schemas": schemas, "securitySchemes": {"adminToken": BEARER}}
            self.openapi_schema = document
        return self.openapi_schema

    def _described(self) -> Iterator[APIRoute]:
        for resource in self.resources:
            yield from (r for r in resource.routes if isinstance(r, APIRoute) and r.include_in_schema)

    def _restore(self, route: APIRoute, operations: dict[str, Any]) -> None:
        """FastAPI leaves out whatever is null, in examples of answers too."""
        for method in route.methods or ():
            for status, entry in route.responses.items():
                operations[method.lower()]["responses"][str(status)].update(entry)


def ref(model: type) -> dict[str, Any]:
    """A reference to *model*'s schema."""
    return {"$ref": TEMPLATE.format(name=model.__name__)}


def array(model: type, longest: int) -> dict[str, Any]:
    """The schema of a list of *model*."""
    return {"type": "array", "items": ref(model), "maxItems": longest}


def examples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Named examples; structs are shown as their JSON."""
    return {name: {"value": msgspec.to_builtins(value, str_keys=True)} for name, value in values.items()}


def body(schema: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads a JSON body."""
    content = {"application/json": {"schema": schema, "examples": examples(values)}}
    return {"requestBody": {"required": True, "content": content}}


def with_token(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """``openapi_extra`` of a route that needs the admin token, where one is set."""
    return {**(extra or {}), "security": [{"adminToken": []}, {}]}


def answers(
    status: int,
    description: str,
    schema: dict[str, Any],
    values: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
) -> Entry:
    """A success, in ``responses``."""
    entry: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema, "examples": examples(values)}},
    }
    if headers:
        entry["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
        }
    return {status: entry}


def fails(*cases: Case) -> Entry:
    """Failures, in ``responses``, an example each; a bug is always one of them."""
    entries: Entry = {}
    bug: Case = (BUG, "the gateway failed in a way it should not; its log has the traceback", None, None)
    for kind, detail, field, remedy in (*cases, bug):
        shown = examples({kind.name: problem(kind, detail, field, remedy)})
        if (entry := entries.get(kind.status)) is None:
            content = {"schema": ref(Problem), "examples": shown}
            entries[kind.status] = {
                "description": kind.title,
                "content": {"application/problem+json": content},
            }
        else:
            entry["description"] += f"; {kind.title[0].lower()}{kind.title[1:]}"
            entry["content"]["application/problem+json"]["examples"] |= shown
    return entries
