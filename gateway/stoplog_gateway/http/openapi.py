"""Build the OpenAPI document: schemas from the msgspec structs of the API, and examples for each route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import cleandoc
from typing import Any, Final

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from stoplog.asgi.problem import UNAVAILABLE, Kind, Problem, problem
from stoplog.client.limits_admin import MAX_PAGE
from stoplog.policy import MAX_ID_BYTES
from stoplog_gateway.access.proxy_paths import is_for_proxies
from stoplog_gateway.access.scopes import Scope, scope_of
from stoplog_gateway.http.auth import SEND_PROXY_TOKEN, SEND_TOKEN
from stoplog_gateway.http.problems import (
    BUG,
    BUSY,
    CONTENT_TYPE,
    FORBIDDEN,
    INVALID,
    MALFORMED,
    NO_LIMITS,
    PROXY_UNAUTHORIZED,
    TOO_LARGE,
    UNAUTHORIZED,
    UPGRADE_FIRST,
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
OLD_WORKER: Final[Failure] = (
    UPGRADE_FIRST,
    "reservations need a newer release of all workers, in all lanes; upgrade worker worker-1@host first, or "
    "stop it",
    None,
    "upgrade worker worker-1@host first, or stop it",
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

ID_SCHEMA: Final[dict[str, Any]] = {
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$",
}
"""The schema of an id. A schema cannot express that 256 is a number of bytes of UTF-8."""

PAGE_SIZE: Final[dict[str, Any]] = {"minimum": 1, "maximum": MAX_PAGE}

TEMPLATE: Final = "#/components/schemas/{name}"

TAGS: Final = [
    {"name": "checks", "description": "May this client spend this now?"},
    {"name": "limits", "description": "Limits of clients and plans, and the default limits."},
    {"name": "clients", "description": "Usage and counters of clients."},
    {"name": "operation", "description": "State of the gateway and its store."},
]

SECURITY: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token from the file that STOPLOG_TOKENS_FILE names.",
    },
    "proxyToken": {
        "type": "apiKey",
        "in": "header",
        "name": "stoplog-token",
        "description": "The token of a proxy. `Authorization` belongs to the proxy's caller.",
    },
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
                operations = document["paths"][route.path_format]
                self._restore_nulls(route, operations)
                _add_access(route, operations)
            for schema in schemas.values():
                schema["description"] = cleandoc(schema["description"])
                for field in schema["properties"].values():
                    if "type" in field:  # more exact than the Python types that the decoder accepts
                        field.pop("anyOf", None)
            document["components"] = {"schemas": schemas, "securitySchemes": SECURITY}
            self.openapi_schema = document
        return self.openapi_schema

    def _documented_routes(self) -> Iterator[APIRoute]:
        for router in self.documented_routers:
            yield from (r for r in router.routes if isinstance(r, APIRoute) and r.include_in_schema)

    def _restore_nulls(self, route: APIRoute, operations: dict[str, Any]) -> None:
        """Restore the null values in examples of responses, which FastAPI removes."""
        for method in route.methods or ():
            for status, response in route.responses.items():
                operations[method.lower()]["responses"][str(status)].update(deepcopy(response))


def schema_of(model: type) -> dict[str, Any]:
    """Return a reference to *model*'s schema."""
    return {"$ref": TEMPLATE.format(name=model.__name__)}


def id_field(description: str) -> msgspec.Meta:
    """Return the annotation of a field that is an id."""
    return msgspec.Meta(description=description, extra_json_schema=ID_SCHEMA)


def number_field(description: str, minimum: int, maximum: int) -> msgspec.Meta:
    """Return the annotation of a whole number, of type ``int | float``: to JSON, 3.0 is an integer, too."""
    schema = {"type": "integer", "minimum": minimum, "maximum": maximum}
    return msgspec.Meta(description=description, extra_json_schema=schema)


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
    for case in (*cases, bug):
        _add_failure(responses, case)
    return responses


def _add_failure(responses: dict[Any, Any], case: Failure) -> None:
    kind, detail, field, remedy = case
    shown = examples({kind.name: problem(kind, detail, field, remedy)})
    key = next((status for status in responses if str(status) == str(kind.status)), None)
    if key is None:
        content = {"schema": schema_of(Problem), "examples": shown}
        # FastAPI writes the statuses of a document as texts.
        status = str(kind.status) if any(isinstance(status, str) for status in responses) else kind.status
        responses[status] = {
            "description": kind.title,
            "content": {"application/problem+json": content},
        }
    else:
        response = responses[key]
        response["description"] += f"; {kind.title[0].lower()}{kind.title[1:]}"
        response["content"]["application/problem+json"]["examples"] |= shown


def _add_access(route: APIRoute, operations: dict[str, Any]) -> None:
    """Add to *operations* what their scopes require: a token, and the responses without one."""
    for method in route.methods or ():
        scope = scope_of(route.path, method)
        if scope is None:
            continue
        operation = operations[method.lower()]
        for_proxies = is_for_proxies(route.path)
        operation["security"] = [{"proxyToken" if for_proxies else "token": []}, {}]
        for case in _access_failures(scope, for_proxies=for_proxies):
            _add_failure(operation["responses"], case)


def _access_failures(scope: Scope, *, for_proxies: bool) -> list[Failure]:
    detail = f"this request needs a token with the scope {scope}"
    field = "stoplog-token" if for_proxies else "Authorization"
    lacking = f"use a token with the scope {scope}; `stoplog tokens list` shows all"
    kind, remedy = (PROXY_UNAUTHORIZED, SEND_PROXY_TOKEN) if for_proxies else (UNAUTHORIZED, SEND_TOKEN)
    return [
        (kind, detail, field, remedy),
        (FORBIDDEN, f"the token web lacks the scope {scope}", field, lacking),
    ]
