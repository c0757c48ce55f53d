"""Build the OpenAPI document: schemas from the msgspec structs of the API, and examples for each route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from stoplog.asgi.problem import UNAVAILABLE, Kind, Problem, problem
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
)

Responses = dict[int | str, dict[str, Any]]
"""Value of FastAPI's ``responses``."""

Failure = tuple[Kind, str, str | None, str | None]
"""An example of an error: kind, detail, field, remedy."""

NO_BROKER: Final[Failure] = (
    UNAVAILABLE,
    "the change could not be published (no broker): try again",
    None,
    "try again when /readyz?strict=1 answers 200",
)
READ_FAILURES: Final[tuple[Failure, ...]] = (
    (
        UNAVAILABLE,
        "limit-updates cannot be read: no broker answers",
        None,
        "try again when /readyz?strict=1 answers 200",
    ),
    (
        BUSY,
        "16 reads of limits are waiting already: try again later",
        None,
        "try again after Retry-After seconds",
    ),
)
NOTHING_STORED: Final[Failure] = (
    NO_LIMITS,
    "client alice has no limits of its own",
    "client_id",
    "set some with PUT",
)
BAD_LIMIT: Final[Failure] = (
    INVALID,
    "limits[0]: a window of 0 ms",
    "limits[0]",
    "a window is 1 second to 31 days",
)
BAD_RESOURCE: Final[Failure] = (INVALID, "resource: contains a control character", "resource", "remove it")
BAD_PAGE: Final[Failure] = (INVALID, "limit: out of bounds", "limit", "use 1 to 1,000")
BODY_FAILURES: Final[tuple[Failure, ...]] = (
    (MALFORMED, "Input data was truncated", "body", "send exactly one JSON value"),
    (TOO_LARGE, "the body exceeds 1 MiB", "body", "send at most 1 MiB per request"),
    (CONTENT_TYPE, "text/plain is not JSON", "Content-Type", "send Content-Type: application/json"),
)
NO_TOKEN: Final[Failure] = (
    UNAUTHORIZED,
    "this request needs the admin token",
    "Authorization",
    "send Authorization: Bearer <STOPLOG_ADMIN_TOKEN>",
)
BEYOND_LOOPBACK: Final[Failure] = (
    FORBIDDEN,
    "the gateway listens on 0.0.0.0, beyond loopback, and has no admin token",
    "Authorization",
    "set STOPLOG_ADMIN_TOKEN and send Authorization: Bearer <token>",
)
CHANGE_FAILURES: Final[tuple[Failure, ...]] = (NO_TOKEN, BEYOND_LOOPBACK, NO_BROKER)

TEMPLATE: Final = "#/components/schemas/{name}"

TAGS: Final = [
    {"name": "checks", "description": "May this client spend this now?"},
    {"name": "limits", "description": "Limits of clients and plans, and the default limits."},
    {"name": "clients", "description": "Usage and counters of clients."},
    {"name": "operation", "description": "State of the gateway and its store."},
]

BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "The value of STOPLOG_ADMIN_TOKEN. Set it behind a proxy.",
}


class MsgspecFastAPI(FastAPI):
    """A FastAPI application whose document takes its schemas from msgspec structs."""

    models: Sequence[type] = ()
    documented_routers: Sequence[APIRouter] = ()

    def openapi(self) -> dict[str, Any]:
        """Return the document; it is built once."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
                tags=self.openapi_tags,
            )
            _, schemas = msgspec.json.schema_components((*self.models, Problem), ref_template=TEMPLATE)
            for route in self._documented_routes():
                self._restore_nulls(route, document["paths"][route.path_format])
            for schema in schemas.values():
                schema["description"] = cleandoc(schema["description"])
            document["components"] = {"schemas": schemas, "securitySchemes": {"adminToken": BEARER}}
            self.openapi_schema = document
        return self.openapi_schema

    def _documented_routes(self) -> Iterator[APIRoute]:
        for router in self.documented_routers:
            yield from (r for r in router.routes if isinstance(r, APIRoute) and r.include_in_schema)

    def _restore_nulls(self, route: APIRoute, operations: dict[str, Any]) -> None:
        """Restore the null values in examples of responses, which FastAPI removes."""
        for method in route.methods or ():
            for status, response in route.responses.items():
                operations[method.lower()]["responses"][str(status)].update(response)


def schema_of(model: type) -> dict[str, Any]:
    """Return a reference to *model*'s schema."""
    return {"$ref": TEMPLATE.format(name=model.__name__)}


def array_of(model: type, max_items: int) -> dict[str, Any]:
    """Return the schema of a list of *model*."""
    return {"type": "array", "items": schema_of(model), "maxItems": max_items}


def examples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return named examples; structs are converted to JSON values."""
    return {name: {"value": msgspec.to_builtins(value, str_keys=True)} for name, value in values.items()}


def json_body(schema: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``openapi_extra`` of a route that reads a JSON body."""
    content = {"application/json": {"schema": schema, "examples": examples(values)}}
    return {"requestBody": {"required": True, "content": content}}


def admin_only(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return ``openapi_extra`` of a route that needs the admin token, if the gateway has one."""
    return {**(extra or {}), "security": [{"adminToken": []}, {}]}


def success(
    status: int,
    description: str,
    schema: dict[str, Any],
    values: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
) -> Responses:
    """Return ``responses`` for a success."""
    response: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema, "examples": examples(values)}},
    }
    if headers:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
        }
    return {status: response}


def failures(*cases: Failure) -> Responses:
    """Return ``responses`` for errors, with an example each. The error of a bug is always included."""
    responses: Responses = {}
    bug: Failure = (BUG, "an unexpected error occurred; the gateway's log has the traceback", None, None)
    for kind, detail, field, remedy in (*cases, bug):
        shown = examples({kind.name: problem(kind, detail, field, remedy)})
        if (response := responses.get(kind.status)) is None:
            content = {"schema": schema_of(Problem), "examples": shown}
            responses[kind.status] = {
                "description": kind.title,
                "content": {"application/problem+json": content},
            }
        else:
            response["description"] += f"; {kind.title[0].lower()}{kind.title[1:]}"
            response["content"]["application/problem+json"]["examples"] |= shown
    return responses
